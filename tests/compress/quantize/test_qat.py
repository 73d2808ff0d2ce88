from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import students
from compress import Export, OnnxModel, Quantize
from compress.export import convert
from compress.onnx_model import write
from compress.quantize.graph_module import GraphModule, key
from compress.quantize.integer import Ready, integer_convolutions, prepared
from compress.quantize.qat import FakeQuantized, Lesson, trained
from compress.quantize.scheme import Scheme
from kd.data import DataConfig, load
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import KD, FitNet
from teachers import Teacher

SEVEN = Scheme(reduce_range=True)


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch):
    monkeypatch.setattr("compress.quantize.quantize._SECONDS", 0.1)


@pytest.fixture(scope="module")
def few():
    return load(DataConfig(train_size=300))


@pytest.fixture(scope="module")
def static(exported, digits, tmp_path_factory) -> OnnxModel:
    images = next(digits.evaluation("train", 64)).x
    return coded(exported, images, tmp_path_factory.mktemp("static") / "int8.onnx")


@pytest.fixture
def settings(context, few):
    def make(**changes):
        fit = Fit(epochs=50, batch_size=50, lr=0.02, trackers=())
        return context(**({"data": few, "fit": fit, "objective": lambda: Objective({"kd": Term(KD())})} | changes))

    return make


def coded(exported: OnnxModel, images: torch.Tensor, path: Path) -> OnnxModel:
    return write(Ready(exported, images, SEVEN).coded(), path)


def student(exported: OnnxModel, static: OnnxModel, scheme: Scheme = SEVEN) -> FakeQuantized:
    return FakeQuantized(onnx.load(static.path), GraphModule(prepared(exported.path)).constants(), scheme.most)


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def moved(net: FakeQuantized, by: float) -> FakeQuantized:
    """With parameters somewhere else, as training leaves them."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(1 + by * torch.randn(value.shape, generator=draws))
    return net


def weights(model: onnx.ModelProto) -> list[np.ndarray]:
    return [array.astype(int) for array in arrays(model).values() if array.dtype == np.int8 and array.ndim > 1]


def test_what_has_not_learnt_is_the_file_that_came_in(exported, static):
    before, after = arrays(onnx.load(static.path)), arrays(student(exported, static).coded())
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype
        assert np.array_equal(array, after[name]), name


def test_weights_that_were_not_rounded_to_the_nearest_start_where_they_are(exported, digits):
    images = next(digits.evaluation("train", 64)).x
    plain, ready = (
        Ready(exported, images, Scheme(reduce_range=True, equalize=True, rounding=rounding, correct_bias=correct))
        for rounding, correct in (("nearest", False), ("learned", True))
    )
    coded = ready.coded()
    before = arrays(coded)
    net = FakeQuantized(coded, GraphModule(ready.graph).constants(), ready.scheme.most)
    after, others = arrays(net.coded()), arrays(plain.coded())
    assert all(np.array_equal(array, after[name]) for name, array in before.items())
    turned = [(before[name] != others[name]).mean() for name, array in before.items() if array.ndim == 4]
    assert len(turned) == 9
    assert all(0 < share < 0.5 for share in turned)
    for name, array in GraphModule(ready.graph).constants().items():  # those that were, start where they came from
        if array.dim() == 4:
            place = key(f"{name}_DequantizeLinear_Output")
            start = net.get_parameter(place) * net.get_buffer(f"{place}_unit")
            assert (start == array).float().mean() > 0.5


@pytest.mark.parametrize("by", [0.0, 0.03])
def test_the_runtime_answers_as_torch_does(exported, static, digits, tmp_path, by):
    net = moved(student(exported, static), by)
    small = write(net.coded(), tmp_path / "q.onnx")
    views = [view for split in ("train", "val") for view in digits.evaluation(split)]
    assert sum(len(view.y) for view in views) > 1000
    assert abs(evaluate(net, views).top1 - evaluate(small, views).top1) <= 0.3
    x = views[0].x
    with torch.no_grad():
        found = net(x)
    assert (found - small(x)).norm() < 0.02 * found.norm()


def test_everything_that_is_coded_learns(exported, static, digits):
    net = student(exported, static)
    view = next(digits.evaluation("train", 32))
    torch.nn.functional.cross_entropy(net(view.x), view.y).backward()
    found = dict(net.named_parameters())
    assert all(value.grad is not None and value.grad.isfinite().all() and value.grad.any() for value in found.values())
    stored = arrays(onnx.load(static.path))
    wanted = {name.removesuffix("_quantized") for name in stored if name.endswith("_quantized")}
    assert sum(value.dim() == 4 for value in found.values()) == 9
    assert len([name for name in found if name.endswith("_DequantizeLinear_Output") or "bias" in name]) >= len(wanted)
    assert sum(name.endswith("_scale") for name in found) > 9 + 9  # of weights, and of what flows

    before = {name: value.detach().clone() for name, value in found.items()}
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    after = arrays(net.coded())
    assert all(not torch.equal(before[name], value) for name, value in found.items())
    assert all(np.any(after[name] != array) for name, array in stored.items() if name.endswith("_scale"))


def test_parameters_are_of_one_size_whatever_they_stand_for(exported, static):
    net = student(exported, static)
    for value in net.parameters():
        sizes = value.detach().square().mean(list(range(1, value.dim()))).sqrt() if value.dim() > 1 else value.detach()
        assert 0.5 < float(sizes.square().mean().sqrt()) < 2


@pytest.mark.parametrize(("bits", "limit"), [(8, 64), (7, 63), (5, 15), (4, 7), (2, 1)])
def test_weights_keep_to_their_bits_whatever_they_learn(exported, static, bits, limit):
    net = student(exported, static, Scheme(reduce_range=True, bits=bits))
    with torch.no_grad():
        for value in net.parameters():
            if value.dim() > 1:
                value.mul_(3)
    found = weights(net.coded())
    assert len(found) == 10
    assert all(np.abs(array).max() == limit for array in found)


def test_a_bias_beside_dead_weights_is_kept(exported, static, digits, tmp_path):
    """In steps of such weights it would need more than 32 bits."""
    floats = GraphModule(prepared(exported.path)).constants()
    net = FakeQuantized(onnx.load(static.path), floats, SEVEN.most)
    place = next(name for name, _ in net.named_parameters() if name.endswith("conv1/weight_scale"))
    bias = next(name for name, value in net.named_parameters() if value.dim() == 1 and "bias" in name)
    with torch.no_grad():
        net.get_parameter(place)[0] = 1e-13
        net.get_parameter(place.replace("_scale", "_DequantizeLinear_Output"))[0] = 0
        net.get_parameter(bias)[0] = 1.5 / net.get_buffer(f"{bias}_unit").flatten()[0]
    x = next(digits.evaluation("val", 32)).x
    found = net(x).detach()
    assert (write(net.coded(), tmp_path / "q.onnx")(x) - found).norm() < 0.05 * found.norm()


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("mobilenetv2_050", {"depth": 0.34}),
        ("cifar_resnet20", {"width": 0.25, "depth": 0.34, "image_size": 8, "in_chans": 1}),
    ],
)
def test_convolutions_run_in_integers(name, factors, tmp_path):
    torch.manual_seed(0)
    model = students.create(name, num_classes=10, **({"image_size": 32} | factors)).eval()
    images = torch.rand(8, factors.get("in_chans", 3), *(factors.get("image_size", 32),) * 2)
    exported = write(convert(model, images, 18), tmp_path / "float.onnx")
    small = coded(exported, images, tmp_path / "static.onnx")
    net = moved(student(exported, small), 0.05)
    run, total = integer_convolutions(write(net.coded(), tmp_path / "qat.onnx").path)
    assert total == sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    assert run >= 0.9 * total


def test_what_rounding_ruins_is_mended(trained, uneven, settings, few, tmp_path):
    x = next(few.evaluation("val", 32)).x
    torch.testing.assert_close(uneven(x), trained(x), rtol=1e-3, atol=1e-3)
    small, report = Quantize("qat", epochs=4, lr=0.01, reduce_range=True)(uneven, settings())
    scores, learnt = report.details["candidates"], report.details["qat"]
    assert scores["static"]["top1_val"] < scores["float"]["top1_val"] - 10
    assert scores["qat"]["top1_val"] > scores["static"]["top1_val"] + 5
    assert evaluate(small, few.evaluation("val")).top1 == scores["qat"]["top1_val"]
    assert report.details["chosen"] == "qat"
    assert scores["qat"]["integer_convolutions"] == scores["qat"]["convolutions"] == 9
    assert abs(learnt["top1_after"] - scores["qat"]["top1_val"]) < 1.5
    assert learnt["top1_before"] == pytest.approx(scores["static"]["top1_val"], abs=1.5)
    assert [epoch["epoch"] for epoch in learnt["curve"]] == [0, 1, 2, 3]


def test_a_layer_in_float_learns_among_integers(exported, settings, few, tmp_path):
    small, report = Quantize("qat", epochs=1, lr=1e-4, keep_float=1, equalize=True)(exported, settings())
    scores = report.details["candidates"]
    assert scores["qat"]["convolutions"] - scores["qat"]["integer_convolutions"] == 1
    assert scores["qat"]["file_bytes"] < 1.1 * scores["static"]["file_bytes"]
    assert evaluate(small, few.evaluation("val")).top1 == scores["qat"]["top1_val"] > 80
    assert report.details["qat"]["top1_after"] == pytest.approx(scores["qat"]["top1_val"], abs=1.5)
    assert any("in float" in note for note in report.notes)


def test_few_bits_learn_from_the_teacher_and_the_model_stays(trained, settings, few):
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    plan = settings(teacher=Teacher(trained))
    report = Quantize("qat", epochs=2, lr=0.01, bits=2, source="teacher")(trained, plan)[1]
    learnt = report.details["qat"]
    assert learnt["top1_after"] > learnt["top1_before"] + 10
    assert all(torch.equal(value, state[name]) for name, value in trained.state_dict().items())
    assert not trained.training


def test_without_a_teacher_the_labels_teach_and_it_is_told(exported, static, settings):
    _, _, notes = trained_by(exported, static, settings(), Lesson(1, 1e-5, "teacher"))
    assert notes == ["There is no teacher: the model learnt from the labels alone."]


def trained_by(exported, static, plan, lesson):
    return trained(prepared(exported.path), onnx.load(static.path), SEVEN.most, plan, lesson)


def test_what_training_makes_worse_is_undone(exported, static, settings):
    model, details, notes = trained_by(exported, static, settings(), Lesson(1, 3.0, "float"))
    assert "undone" in notes[-1]
    assert details["top1_after"] == details["top1_before"] > details["curve"][0]["top1_val"]
    assert model.SerializeToString() == student(exported, static).coded().SerializeToString()


class Killed(BaseException):
    """Ends a run like a kill would: nothing catches it."""


@pytest.mark.parametrize("dies_at", [2, 9])
def test_a_killed_training_ends_bit_for_bit_like_one_that_was_not(
    dies_at, exported, static, settings, tmp_path, monkeypatch
):
    lesson, steps = Lesson(2, 0.01, "float"), []
    whole, expected, _ = trained_by(exported, static, settings(folder=tmp_path / "whole"), lesson)

    def die(regime, batch, step):
        steps.append(batch.clock.step)
        if len(steps) == dies_at:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("kd.regimes.Offline.after_step", die)
        with pytest.raises(Killed):
            trained_by(exported, static, settings(folder=tmp_path / "broken"), lesson)
    left: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr("kd.regimes.Offline.after_step", lambda regime, batch, step: left.append(batch.clock.step))
        again, found, _ = trained_by(exported, static, settings(folder=tmp_path / "broken"), lesson)

    assert left[0] == 6 * ((dies_at - 1) // 6)  # six steps an epoch, and a checkpoint after each epoch
    assert again.SerializeToString() == whole.SerializeToString()
    assert whole.SerializeToString() != student(exported, static).coded().SerializeToString()
    drop = lambda epochs: [{k: v for k, v in e.items() if k != "seconds"} for e in epochs]  # noqa: E731
    assert drop(found["curve"]) == drop(expected["curve"])


def test_losses_on_stage_maps_are_refused(exported, static, settings):
    plan = settings(objective=lambda: Objective({"fitnet": Term(FitNet())}))
    with pytest.raises(InputError, match="stage"):
        trained_by(exported, static, plan, Lesson(1, 0.01))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, r"quantize.epochs: 0: must be above 0"),
        ({"lr": 0.0}, r"quantize.lr: 0.0: must be above 0"),
        ({"lr": float("nan")}, r"quantize.lr: nan: must be above 0"),
        ({"source": "labels"}, r"quantize.source: labels: must be one of float, teacher, reference"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Quantize("qat", **settings)


def test_an_operator_without_a_gradient_is_refused_and_nothing_is_written(settings, digits, tmp_path):
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.nn.functional.mish(x).flatten(1))

    exported = Export().write(Odd(), digits, tmp_path / "odd.onnx")
    assert {"Mish", "Softplus"} & {node.op_type for node in onnx.load(exported.path).graph.node}
    with pytest.raises(InputError, match=r"quantize\.mode: qat: there is no gradient here of (Mish|Softplus)"):
        Quantize("qat")(exported, settings(folder=tmp_path / "stage"))
    assert not (tmp_path / "stage" / "model.onnx").exists()


class Pools(nn.Module):
    """Pools along one axis, or by an index of five dimensions."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.conv = nn.Conv1d(8, 4, 3, padding=1) if flat else nn.Conv2d(1, 4, 3, padding=1)
        self.pool = nn.MaxPool1d(2) if flat else nn.AdaptiveAvgPool2d(3)
        self.head = nn.Linear(16 if flat else 36, 10)

    def forward(self, x):
        return self.head(self.pool(self.conv(x[:, 0] if self.flat else x).relu()).flatten(1))


def test_a_pool_of_one_dimension_is_named(settings, digits, tmp_path):
    exported = Export().write(Pools(True).eval(), digits, tmp_path / "flat.onnx")
    with pytest.raises(InputError, match=r"quantize\.mode: qat: there is no gradient here of MaxPool of 1 dimensions"):
        Quantize("qat")(exported, settings())


def test_an_index_of_five_dimensions_is_no_obstacle(settings, digits, tmp_path):
    exported = Export().write(Pools(False).eval(), digits, tmp_path / "index.onnx")
    made, _ = Quantize("qat", epochs=1)(exported, settings())
    assert made(torch.rand(3, 1, 8, 8)).isfinite().all()


class Divides(nn.Module):
    """By what is small beside its range, which integers round to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        x = x.flatten(1)
        small = torch.where(torch.arange(64) > 0, x * 0 + 1e-4, 1000.0 + x)
        return self.head(x / small)


def test_a_net_that_integers_ruin_is_refused(settings, digits, tmp_path):
    exported = Export().write(Divides().eval(), digits, tmp_path / "divides.onnx")
    with pytest.raises(InputError, match=r"quantize\.mode: qat: in integers it gives NaN"):
        Quantize("qat")(exported, settings())
