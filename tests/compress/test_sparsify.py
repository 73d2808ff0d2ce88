from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

import compress
import students
from compress import Context, Export, LowRank, Prune, Recover, Sparsify, cost, masks
from compress.onnx_graph import arrays, count
from compress.quantize.integer import quantized
from kd.checkpoint import load_tree, save_tree
from kd.data import Augment, DataConfig, load
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import KD, CrossEntropy, SimKD
from kd.regimes import Supervised
from kd.testing import RegimeContract, tiny_net
from teachers import Teacher

FIT = Fit(epochs=50, batch_size=50, lr=0.02, trackers=())


@pytest.fixture(scope="module")
def few():
    return load(DataConfig(train_size=300))


@pytest.fixture
def settings(context, few, trained):
    def make(**changes):
        objective = lambda: Objective({"kd": Term(KD())})  # noqa: E731
        return context(**({"data": few, "teacher": Teacher(trained), "fit": FIT, "objective": objective} | changes))

    return make


def weights(model):
    return masks.weights(masks.layers(model.net))


def zeros(model):
    return {path: weight == 0 for path, weight in weights(model).items()}


def total(model):
    return sum(int(gone.sum()) for gone in zeros(model).values()), sum(w.numel() for w in weights(model).values())


def top1(model, data):
    return evaluate(model, data.evaluation("val")).top1


class Killed(BaseException):
    """Ends a run like a kill would: nothing catches it."""


@pytest.mark.parametrize("schedule", ["oneshot", "gradual", "dynamic"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_sparsity_is_met_to_a_weight_by_a_plain_model(schedule, scope, trained, settings):
    before = copy.deepcopy(trained.state_dict())
    stage = Sparsify(0.77, scope=scope, schedule=schedule, epochs=2, lr=1e-6, every=2)  # best while it is less sparse
    made, report = stage(trained, settings())
    if scope == "layer":
        assert all(int(gone.sum()) == round(0.77 * gone.numel()) for gone in zeros(made).values())
    gone, of = total(made)
    assert scope == "layer" or gone == round(0.77 * of)
    assert report.details["sparsity"] == gone / of
    assert report.details["layers"] == {path: int(z.sum()) / z.numel() for path, z in zeros(made).items()}
    assert report.name == "sparsify"
    assert "no runtime used here is faster" in report.notes[0]
    assert type(made) is students.Classifier
    assert not made.training
    assert made.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert not any(isinstance(module, masks.Mask) for module in (*made.modules(), *trained.modules()))


def test_oneshot_moves_no_other_weight_and_the_classifier_may_stay_dense(trained, settings):
    made, _ = Sparsify(0.5, dense=("linear",))(trained, settings())
    given = weights(trained)
    for path, weight in weights(made).items():
        assert torch.equal(weight, given[path].masked_fill(zeros(made)[path], 0))
    assert not zeros(made)["linear"].any()
    others = [name for name in trained.state_dict() if name.removeprefix("net.").removesuffix(".weight") not in given]
    assert all(torch.equal(made.state_dict()[name], trained.state_dict()[name]) for name in others)
    smallest = torch.cat([w.abs()[zeros(made)[path]] for path, w in given.items()]).max()
    assert smallest <= torch.cat([w.abs()[~zeros(made)[path]] for path, w in given.items() if path != "linear"]).min()


@pytest.mark.parametrize("schedule", ["oneshot", "gradual"])
def test_a_sparsity_for_each_layer(schedule, trained, settings):
    shares = {"conv1": 0.2, "layer3.0.conv2": 0.9, "linear": 0.55}
    made, report = Sparsify(shares, schedule=schedule, epochs=1, every=2)(trained, settings())
    for path, gone in zeros(made).items():
        assert int(gone.sum()) == round(shares.get(path, 0) * gone.numel())
    assert report.details["layers"] == pytest.approx(shares, abs=0.01)
    with pytest.raises(InputError, match=r"sparsify\.sparsity: fc: is no convolution or linear layer"):
        Sparsify({"fc": 0.5})(trained, settings())
    for wrong in ({}, {"linear": 1.0}):
        with pytest.raises(InputError, match=r"sparsify\.sparsity: .* must be above 0 and below 1"):
            Sparsify(wrong)
    with pytest.raises(InputError, match=r"sparsify\.sparsity: .* no dense or pattern beside it"):
        Sparsify({"linear": 0.5}, dense=("conv1",))


def test_methods_differ_and_random_is_drawn_by_the_seed(trained, settings):
    def gone(method, **changes):
        return zeros(Sparsify(0.6, method=method)(trained, settings(calibration=32, **changes))[0])

    def share(a, b):
        return sum(int((a[path] & b[path]).sum()) for path in a) / sum(int(z.sum()) for z in a.values())

    found = {method: gone(method) for method in ("magnitude", "obd", "random")}
    assert share(found["random"], gone("random")) == 1
    assert share(found["random"], gone("random", seed=1)) == pytest.approx(0.6, abs=0.02)
    assert share(found["random"], found["magnitude"]) == pytest.approx(0.6, abs=0.02)
    assert 0.62 < share(found["obd"], found["magnitude"]) < 0.95


def test_obd_spares_a_small_weight_that_matters_and_finds_a_large_one_that_does_not(trained, settings):
    model = copy.deepcopy(trained)
    with torch.no_grad():
        model.net.linear.weight[:, 0] = 5.0  # of a channel that is dead
        norm = model.net.get_submodule("layer3.0.bn2")
        shortcut = model.net.get_submodule("layer3.0.shortcut.1")
        for scale in (norm, shortcut):
            scale.weight[0], scale.bias[0] = 0, -1
    assert not zeros(Sparsify(0.3)(model, settings())[0])["linear"][:, 0].any()
    assert zeros(Sparsify(0.3, "obd")(model, settings(calibration=16))[0])["linear"][:, 0].all()


@pytest.mark.parametrize("schedule", ["oneshot", "gradual", "dynamic"])
def test_a_pattern_holds_in_each_group_and_says_where_it_does_not_fit(schedule, trained, settings):
    made, report = Sparsify(pattern="2:4", schedule=schedule, epochs=1, every=2)(trained, settings())
    for path, gone in zeros(made).items():
        if path == "conv1":  # of one channel
            assert not gone.any()
        else:
            groups = gone.transpose(0, 1).unflatten(0, (-1, 4))
            assert (groups.sum(1) == 2).all(), path
    assert "Left dense, because their inputs do not divide as 2:4: conv1." in report.notes
    assert report.details["sparsity"] == 0.5
    assert "conv1" not in report.details["layers"]


def test_a_layer_without_weights_is_told(trained, settings):
    model = copy.deepcopy(trained)
    with torch.no_grad():
        model.net.conv1.weight.mul_(1e-6)
    _, report = Sparsify(0.9)(model, settings())
    assert "No weight is left in conv1." in report.notes


def test_training_recovers_what_oneshot_costs_and_ends_with_the_last_weights(trained, settings, few):
    at_once, _ = Sparsify(0.9)(trained, settings())
    for schedule in ("gradual", "dynamic"):
        made, report = Sparsify(0.9, schedule=schedule, epochs=4, every=2)(trained, settings())
        assert top1(made, few) > top1(at_once, few) + 10
        assert top1(made, few) == pytest.approx(report.details["curve"][-1]["top1_val"])
    _, told = Sparsify(0.5, schedule="gradual", epochs=1)(trained, settings(teacher=None, folder=None))
    assert "There is no teacher: the model learnt from the labels alone." in told.notes


class Watched(Supervised):
    """Notes how sparse its student is at each step."""

    def __init__(self, student):
        super().__init__(student)
        self.seen = []

    def forward(self, batch, guides):
        self.seen.append({path: layer.weight == 0 for path, layer in masks.layers(self.student.net).items()})
        return super().forward(batch, guides)


def watched(stage, model, settings, monkeypatch):
    """The zeros before each step of a stage that trains."""
    kept = []

    def lessons(student, context):
        kept.append(Watched(student))
        return kept[-1], []

    monkeypatch.setattr("compress.sparsify.lessons", lessons)
    stage(model, settings)
    return kept[0].seen


@pytest.mark.parametrize("schedule", ["gradual", "dynamic"])
def test_sparsity_grows_by_the_cubic_from_what_it_was_and_is_there_at_three_quarters(
    schedule, trained, settings, monkeypatch
):
    model, _ = Sparsify(0.2)(trained, settings())
    stage = Sparsify(0.8, schedule=schedule, epochs=4, every=3)
    seen = watched(stage, model, settings(folder=None), monkeypatch)
    steps, size = len(seen), total(trained)[1]
    end, chosen = int(0.75 * (steps - 1)), None
    for step, masks_then in enumerate(seen):
        if step % 3 == 0 or step == end:
            chosen = round(masks.cubic(round(0.2 * size) / size, 0.8, min(1, step / end)) * size)
        assert sum(int(gone.sum()) for gone in masks_then.values()) == chosen
    moved = any(not torch.equal(a, b) for a, b in zip(seen[end].values(), seen[-1].values(), strict=True))
    assert moved == (schedule == "dynamic")


@pytest.mark.parametrize(("schedule", "comes_back"), [("gradual", False), ("dynamic", True)])
def test_a_weight_that_was_cut_by_mistake_grows_back_where_it_is_dynamic(schedule, comes_back, trained, settings):
    """Those of the first digit are scaled down until they are cut."""
    model = copy.deepcopy(trained)
    with torch.no_grad():
        model.net.linear.weight[0] *= 1e-3
    cut, _ = Sparsify(0.5, scope="layer")(model, settings())
    assert zeros(cut)["linear"][0].all()
    made, _ = Sparsify(0.6, scope="layer", schedule=schedule, epochs=4, every=1)(cut, settings(folder=None))
    assert (~zeros(made)["linear"][0]).any() == comes_back


@pytest.mark.parametrize("schedule", ["gradual", "dynamic"])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_killed_training_ends_bit_for_bit_like_one_that_was_not(
    schedule, ema, trained, settings, tmp_path, monkeypatch
):
    stage = Sparsify(0.8, schedule=schedule, epochs=2, every=4)
    fit = replace(FIT, ema=ema, checkpoint_steps=1)
    whole, expected = stage(trained, settings(folder=tmp_path / "whole", fit=fit))
    for dies_at in (6, 10):  # between two choices of masks, and where they are fixed
        steps = []

        def die(regime, batch, step, steps=steps, dies_at=dies_at):
            steps.append(batch.clock.step)
            if batch.clock.step == dies_at:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr("kd.regimes.Offline.after_step", die)
            with pytest.raises(Killed):
                stage(trained, settings(folder=tmp_path / "broken", fit=fit))
        assert len(steps) < 12
    again, report = stage(trained, settings(folder=tmp_path / "broken", fit=fit))
    found = again.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in whole.state_dict().items())
    drop = lambda epochs: [{k: v for k, v in e.items() if k != "seconds"} for e in epochs]  # noqa: E731
    assert drop(report.details["curve"]) == drop(expected.details["curve"])
    assert total(again)[0] == round(0.8 * total(again)[1])


def test_zeros_live_through_recovery_saving_export_and_eight_bits(trained, settings, few, tmp_path):
    sparse, _ = Sparsify(0.9)(trained, settings())
    made, _ = Recover(3)(sparse, settings())
    assert top1(made, few) > top1(sparse, few) + 10
    assert total(made)[0] == total(sparse)[0]
    assert all(torch.equal(gone, zeros(sparse)[path]) for path, gone in zeros(made).items())
    students.save(made, tmp_path / "saved")
    again = students.load(tmp_path / "saved")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())
    dense, small = (cost.measure(model, (1, 8, 8)) for model in (trained, made))
    assert small.params == dense.params
    assert dense.nonzero - small.nonzero == total(made)[0]
    assert small.file_bytes < 0.16 * dense.file_bytes

    files = {
        "plain": Export().write(made, few, tmp_path / "plain.onnx"),
        "packed": Export(packed=True).write(made, few, tmp_path / "packed.onnx"),
    }
    images = next(few.evaluation("val", 64)).x
    assert torch.equal(files["plain"](images), files["packed"](images))
    assert count(files["plain"].path) == count(files["packed"].path)
    assert count(files["plain"].path).params - count(files["plain"].path).nonzero == total(made)[0]
    assert files["packed"].path.stat().st_size < 0.2 * files["plain"].path.stat().st_size
    for name, exported in files.items():
        path = tmp_path / f"{name} of integers.onnx"
        found = arrays(onnx.load(quantized(exported, "static", images, path).path).graph)
        integers = [array for array in found.values() if array.dtype == "int8" and array.ndim > 1]
        assert sum(array.size for array in integers) == total(made)[1]
        assert sum(int((array == 0).sum()) for array in integers) >= total(made)[0]
        assert not any(array.any() for array in found.values() if array.dtype == "int8" and array.ndim < 2)  # zero is 0


def test_sparse_models_are_pruned_and_factorised(trained, settings):
    sparse, _ = Sparsify(0.7)(trained, settings())
    narrow, _ = Prune(0.6, round_to=1)(sparse, settings())
    thin, _ = LowRank(0.6)(sparse, settings())
    assert cost.macs(narrow, (1, 8, 8)) < 0.7 * cost.macs(sparse, (1, 8, 8))
    assert total(narrow)[0] > 0.4 * total(narrow)[1]
    assert cost.macs(thin, (1, 8, 8)) < 0.7 * cost.macs(sparse, (1, 8, 8))


def test_the_student_of_sim_kd_is_sparse_too(trained, settings, tmp_path):
    simkd = lambda: Objective({"simkd": Term(SimKD())})  # noqa: E731
    made, _ = Sparsify(0.5, schedule="gradual", epochs=1)(trained, settings(objective=simkd))
    students.save(made, tmp_path / "saved")
    assert [type(edit) for edit in made.blueprint.edits] == [students.Reclassify, students.Replace]
    own = {path: gone for path, gone in zeros(made).items() if path.startswith("net.")}
    assert sum(int(gone.sum()) for gone in own.values()) > 0.4 * sum(gone.numel() for gone in own.values())
    assert students.load(tmp_path / "saved").blueprint == made.blueprint


class TestSparsifying(RegimeContract):
    def make(self):
        student = tiny_net()
        layers = masks.layers(student)
        choose = lambda weights, sparsity: masks.by_rank(masks.magnitude(weights), sparsity)  # noqa: E731
        masks.hold(layers, choose(masks.weights(layers), 0.1))
        return compress.sparsify.Sparsifying(Supervised(student), layers, choose, (0.1, 0.5), 1, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("sparsity", share) for share in (0, 1, -0.1, 1.5, float("nan"))),
        *(("pattern", words) for words in ("", "2", "4:2", "0:4", "4:4", "2:4:8", "two:four", "-1:4")),
        *(("method", "taylor"), ("scope", "net"), ("schedule", "sudden")),
        *(("epochs", 0), ("lr", 0.0), ("every", 0)),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(InputError) as refused:
        Sparsify(**{field: value})
    assert refused.value.field == f"sparsify.{field}"


def test_models_that_cannot_be_are_refused(exported, trained, settings):
    with pytest.raises(InputError, match="sparsify: must come before export"):
        Sparsify()(exported, settings())
    with pytest.raises(InputError, match=r"sparsify\.dense: fc: is no convolution or linear layer"):
        Sparsify(dense=("fc",))(trained, settings())
    with pytest.raises(InputError, match=r"sparsify\.pattern: 2:128: leaves every layer of this net dense"):
        Sparsify(pattern="2:128")(trained, settings())
    with pytest.raises(InputError, match=r"sparsify\.dense: .*: leaves every layer of this net dense"):
        Sparsify(dense=tuple(masks.layers(trained.net)))(trained, settings())


def train(folder: Path, rank: int) -> None:
    torch.manual_seed(0)
    model = students.create("cifar_resnet8", num_classes=10, in_chans=1, image_size=8, width=0.25)
    data = load(DataConfig(train_size=200, augment=Augment()))
    found = {}
    for schedule in ("gradual", "dynamic"):
        fit = Fit(batch_size=10, lr=0.1, trackers=())
        context = Context(data, None, folder / schedule, fit, lambda: Objective({"ce": Term(CrossEntropy())}))
        made, _ = Sparsify(0.8, schedule=schedule, epochs=1, every=2)(model, context)
        found[schedule] = made.state_dict()
    save_tree(folder / f"{rank}.safetensors", found)


def test_two_processes_end_with_the_same_weights_and_zeros(tmp_path):
    shared = {**os.environ, "PYTHONPATH": str(Path(compress.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    ranks = [
        {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"}
        for rank in "01"
    ]
    started = [subprocess.Popen(command, env=shared | rank) for rank in ranks]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    first, second = (load_tree(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for schedule, state in first.items():
        assert all(torch.equal(second[schedule][name], value) for name, value in state.items())
        layers = [value for name, value in state.items() if value.dim() > 1]
        size = sum(layer.numel() for layer in layers)
        assert sum(int((layer == 0).sum()) for layer in layers) == round(0.8 * size)


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    train(folder, rank)
    torch.distributed.destroy_process_group()
