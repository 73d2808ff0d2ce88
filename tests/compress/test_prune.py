from __future__ import annotations

import copy
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import RmsNorm2d
from torch import nn
from torch.nn.utils import parametrize

import students
from compress import channels, cost
from compress.importance import IMPORTANCES
from compress.labels import Axis
from compress.onnx_model import OnnxModel
from compress.prune import Prune
from kd.checkpoint import Checkpoints
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import Fit

finely = partial(Prune, round_to=1)  # for nets as narrow as these


def create(name: str, size: int = 16, width: float = 1.0) -> students.Classifier:
    """A net whose norms have seen something."""
    torch.manual_seed(0)
    model = students.create(name, num_classes=10, image_size=size, width=width, normalize=((0.4,), (0.3,)))
    model(torch.rand(16, 3, size, size))
    return model.eval()


def images(size: int = 16) -> torch.Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def shares(model: students.Classifier, pruned: students.Classifier) -> dict[str, float]:
    plan = model.blueprint
    shape = (plan.in_chans, plan.image_size, plan.image_size)
    before, after = (cost.measure(each, shape) for each in (model, pruned))
    return {"macs": after.macs / before.macs, "params": after.params / before.params}


@pytest.mark.parametrize("by", ["macs", "params"])
@pytest.mark.parametrize("target", [0.3, 0.7])
def test_the_target_is_met_and_reported(by, target, context):
    model = create("cifar_resnet20")
    pruned, report = Prune(target=target, by=by)(model, context())
    kept = shares(model, pruned)

    assert kept[by] == pytest.approx(target, abs=0.03)
    assert {name: report.details[f"kept_{name}"] for name in kept} == pytest.approx(kept)
    assert report.notes == ()
    assert report.name == "prune"
    assert report.details["groups"] == 12
    assert report.details["whole"] == []
    widths = report.details["widths"]
    assert all(pruned.net.get_submodule(path).out_channels == width for path, width in widths.items())
    assert pruned(images()).shape == (4, 10)


def test_the_given_model_stays_as_it_was(context):
    model = create("cifar_resnet8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answers, plan = model(images()), model.blueprint
    pruned, _ = Prune()(model, context())
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.zero_()

    assert model.blueprint is plan
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images()), answers)


@pytest.mark.parametrize("importance", ["l1", "l2", "bn"])
def test_what_is_silent_goes_first_and_is_not_missed(importance, context):
    model = create("cifar_resnet8")
    dead = {1: 8, 2: 16, 3: 32}
    with torch.no_grad():
        for stage, count in dead.items():
            block = model.net.get_submodule(f"layer{stage}.0")
            block.conv1.weight[::2] = 0
            block.bn1.weight[::2] = block.bn1.bias[::2] = 0
            block.conv2.weight[:, ::2] = 0
            assert count == len(block.conv1.weight[::2])
    pruned, report = finely(0.75, importance=importance)(model, context())

    assert set(report.details["widths"]) <= {f"layer{stage}.0.conv1" for stage in dead}
    assert report.details["kept_macs"] == pytest.approx(0.75, abs=0.03)
    assert torch.allclose(pruned(images()), model(images()), atol=1e-5)


def test_shortcuts_that_pad_keep_their_streams_whole(context):
    model = create("cifar_resnet20_a")
    pruned, report = Prune(0.5)(model, context())

    assert report.details["whole"] == ["conv1"]
    assert "Left whole" in report.notes[0]
    assert "conv1" in report.notes[0]
    assert shares(model, pruned)["macs"] == pytest.approx(0.5, abs=0.03)
    assert all(path.endswith("conv1") and "." in path for path in report.details["widths"])
    assert [pruned.net.get_submodule(f"layer{n}.1.conv2").out_channels for n in (1, 2, 3)] == [16, 32, 64]


def test_shuffled_channels_keep_their_places(context):
    model = create("cifar_shufflenetv1", 16, width=0.25)
    pruned, report = finely(0.5)(model, context())

    assert report.details["kept_macs"] == pytest.approx(0.5, abs=0.05)
    assert pruned(images()).shape == (4, 10)


def test_a_group_that_only_the_real_removal_shows_to_be_wrong_is_put_back(context, monkeypatch):
    find = channels.find

    def mistaken(net, x):
        found = find(net, x)
        wrong = next(group for group in found.groups if group.name == "layer1.0.conv1")
        read = wrong.axes[Axis("layer1.0.conv2.weight", 1)]
        read[:] = read[::-1].copy()
        return found

    monkeypatch.setattr(channels, "find", mistaken)
    monkeypatch.setattr(channels, "separable", lambda net, x, groups: groups)
    pruned, report = finely(0.5)(create("cifar_resnet8"), context())

    assert report.details["whole"] == ["layer1.0.conv1"]
    assert pruned.net.get_submodule("layer1.0.conv1").out_channels == 16
    assert report.details["kept_macs"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_meets_the_target(importance, context, trained):
    pruned, report = finely(0.5, importance=importance)(trained, context(calibration=64))

    assert report.details["kept_macs"] == pytest.approx(0.5, abs=0.03)
    assert pruned(torch.rand(2, 1, 8, 8)).isfinite().all()


def test_groups_lose_the_same_share_where_that_is_asked_for(context, trained):
    _, report = finely(0.5, scope="layer")(trained, context())
    shares = [width / trained.net.get_submodule(path).out_channels for path, width in report.details["widths"].items()]

    assert len(shares) == report.details["groups"]
    assert max(shares) - min(shares) < 0.1


def test_the_insensitive_lose_most(context, trained):
    """Half of one block's channels are read with next to no weight: their group can lose them unharmed."""
    model = copy.deepcopy(trained)
    with torch.no_grad():
        model.net.get_submodule("layer3.0.conv2").weight[:, ::2] *= 1e-3
    widths = {
        scope: Prune(0.6, scope=scope)(model, context())[1].details["widths"] for scope in ("sensitivity", "layer")
    }
    inner = "layer3.0.conv1"

    assert widths["sensitivity"].get(inner, 64) < widths["layer"][inner]


@pytest.mark.parametrize(("importance", "schedule"), [("l2", "gradual"), ("l2", "dynamic"), ("taylor", "gradual")])
def test_channels_go_while_the_net_learns(importance, schedule, context, trained):
    stage = finely(0.4, importance=importance, schedule=schedule, epochs=2, every=4)
    pruned, report = stage(trained, context(fit=Fit(lr=0.05, trackers=()), calibration=32))
    at_once, _ = finely(0.4, importance=importance)(trained, context(calibration=32))
    kept = shares(trained, pruned)
    val = [evaluate(model, context().data.evaluation("val")).top1 for model in (pruned, at_once)]

    assert kept["macs"] == pytest.approx(0.4, abs=0.03)
    assert report.details["kept_macs"] == pytest.approx(kept["macs"])
    assert len(report.details["curve"]) == 2
    assert val[0] == pytest.approx(report.details["curve"][-1]["top1_val"])  # slicing what is masked changes nothing
    assert val[0] > val[1]
    assert not any(parametrize.is_parametrized(module) for module in pruned.modules())


def test_a_gradual_schedule_goes_on_after_a_kill(context, trained, tmp_path):
    stage = finely(0.4, schedule="dynamic", epochs=3, every=4)
    settings = {"fit": Fit(lr=0.01, trackers=()), "calibration": 32}
    whole, _ = stage(trained, context(folder=tmp_path / "whole", **settings))
    with pytest.MonkeyPatch.context() as patch:
        save = Checkpoints.save

        def killed(self, step, state):
            save(self, step, state)
            if state["epoch"] == 2:
                raise KeyboardInterrupt

        patch.setattr(Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            stage(trained, context(folder=tmp_path / "broken", **settings))
    resumed, _ = stage(trained, context(folder=tmp_path / "broken", **settings))

    assert whole.blueprint == resumed.blueprint
    assert all(torch.equal(one, resumed.state_dict()[name]) for name, one in whole.state_dict().items())


def test_a_share_of_the_time_is_met_by_measuring(context, clock):
    """An image takes as long as the net has parameters."""
    model = create("cifar_resnet8")
    clock(lambda name, net: sum(parameter.numel() for parameter in net.parameters()))
    pruned, report = finely(0.5, by="latency", runtime="torch")(model, context())

    assert shares(model, pruned)["params"] == pytest.approx(0.5, abs=0.03)
    assert report.details["kept_latency"] == pytest.approx(0.5, abs=0.03)


def test_time_is_measured_on_the_runtime_of_the_file_unless_told_otherwise(context, clock):
    seen = clock(lambda name, net: 0.4 if name == "model" else 1.0)
    _, report = Prune(0.5, by="latency")(create("cifar_resnet8"), context())

    assert set(seen) == {OnnxModel}
    assert report.details["kept_latency"] == 0.4
    assert "it came in no larger" in report.notes[0]


def test_standardised_weights_become_plain_and_can_go(context):
    """In a standardised weight every input changes all others."""
    model = create("nf_regnet_b0", 32, width=0.25)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gain" in name:  # those of the last layers of branches begin at zero
                parameter.uniform_(0.5, 1.5)
    pruned, report = Prune(0.5)(model, context())

    assert report.details["kept_macs"] == pytest.approx(0.5, abs=0.03)
    assert any("weight-standardised" in note for note in report.notes)
    assert pruned(images(32)).isfinite().all()


def test_the_same_channels_at_zero_answer_alike_behind_root_mean_squares(context):
    """Less channels have another mean square; the scale makes up for it, and the epsilon."""
    torch.manual_seed(0)
    norm = RmsNorm2d(16, eps=0.1)
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.GELU(), nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(8 * 144, 5))
    found = channels.find(net.eval(), images())
    removal = {group: [0, 2, 3] for group in found.groups}
    small, quiet = channels.sliced(net, removal), channels.silenced(net, removal)

    assert [group.channels for group in found.groups] == [16, 8]
    assert torch.allclose(small(images()), quiet(images()), atol=1e-5)
    assert not torch.allclose(quiet(images()), net(images()), atol=1e-2)


NETS = {
    "cifar_wrn_16_1": (16, 1.0),
    "resnet18": (32, 0.25),
    "mobilenetv2_035": (32, 1.0),
    "cifar_shufflenetv2": (16, 0.5),
}


def test_pruned_nets_reload_exactly_in_another_process(context, tmp_path):
    for name, (size, width) in NETS.items():
        model = create(name, size, width)
        pruned, report = Prune(0.5)(model, context())
        assert report.details["kept_macs"] == pytest.approx(0.5, abs=0.03), name
        students.save(pruned, tmp_path / name)
        save_file({"x": images(size), "logits": pruned(images(size)).detach()}, tmp_path / name / "seen.safetensors")
    script = """
import sys, torch, students
from pathlib import Path
from safetensors.torch import load_file
for folder in sorted(Path(sys.argv[1]).iterdir()):
    seen = load_file(folder / "seen.safetensors")
    with torch.no_grad():
        print(folder.name, torch.equal(students.load(folder)(seen["x"]), seen["logits"]))
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)

    assert run.stdout.splitlines() == [f"{name} True" for name in sorted(NETS)]


def test_a_pruned_net_trains_and_can_be_pruned_again_relative_to_the_reference(context):
    model = create("cifar_resnet20")
    once, _ = Prune(0.7)(model, context())
    once.train()(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in once.parameters())
    twice, report = Prune(0.4)(once, context(reference=model))

    assert shares(model, twice)["macs"] == pytest.approx(0.4, abs=0.03)
    assert report.details["kept_macs"] == pytest.approx(0.4, abs=0.03)


def test_what_is_small_enough_is_left_alone(context):
    model = create("cifar_resnet8")
    pruned, report = Prune(0.5)(create("cifar_resnet8"), context(reference=create("cifar_resnet20")))

    assert report.details["widths"] == {}
    assert pruned.blueprint == model.blueprint
    assert "came in no larger" in report.notes[0]


def test_floors_hold_and_are_named(context):
    pruned, report = Prune(0.05, min_channels=6, round_to=4)(create("cifar_resnet8"), context())

    assert set(report.details["widths"].values()) == {8}
    assert len(report.details["widths"]) == 6
    assert "every group keeps 6 channels or more in multiples of 4" in report.notes[0]
    assert pruned.net.conv1.out_channels == 8


def test_widths_are_multiples_of_eight_unless_told_otherwise(context):
    _, report = Prune(0.5)(create("cifar_resnet20"), context())

    assert report.details["kept_macs"] == pytest.approx(0.5, abs=0.05)
    assert all(width % 8 == 0 for width in report.details["widths"].values())


def test_heads_of_eight_channels_go_one_by_one(context):
    model = create("vit_tiny_patch16_224")
    whole = model.net.blocks[0].attn
    pruned, _ = Prune(0.4, scope="layer")(model, context())
    heads = {block.attn.num_heads for block in pruned.net.blocks}

    assert (whole.num_heads, whole.head_dim % 8) == (3, 0)
    assert heads == {2}
    assert all(block.attn.qkv.out_features % 8 == 0 for block in pruned.net.blocks)


@pytest.mark.parametrize("importance", ["l1", "l2", "bn", "random", "fpgm"])
def test_fresh_nets_with_mute_branches_shrink_evenly(importance, context):
    """timm begins the last norm of a block with zeros, other norms with ones: BatchNorm scales tell nothing apart."""
    torch.manual_seed(0)
    model = students.create("resnet18", num_classes=10, image_size=32, width=0.25)
    _, report = finely(0.5, importance=importance)(model, context())

    assert report.details["kept_macs"] == pytest.approx(0.5, abs=0.03)
    assert len(report.details["widths"]) == report.details["groups"]
    assert min(report.details["widths"].values()) > 4


def test_random_choices_follow_the_seed(context):
    model = create("cifar_resnet8")
    first, again, other = (Prune(importance="random")(model, context(seed=seed))[0](images()) for seed in (0, 0, 1))

    assert torch.equal(first, again)
    assert first.shape == other.shape
    assert not torch.equal(first, other)


def test_timms_protocol_tells_the_new_width(context):
    model = create("resnet18", 32, width=0.25)
    pruned, _ = Prune(0.5)(model, context())

    assert pruned.num_features == pruned.get_classifier().in_features < model.num_features
    assert pruned.blueprint.build().num_features == pruned.num_features


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("target", 0, "must be above 0 and below 1"),
        ("target", 1.0, "must be above 0 and below 1"),
        ("by", "seconds", "must be macs or params or latency"),
        ("importance", "wanda", "must be one of l1, l2, random, lamp"),
        ("reduction", "median", "must be one of sum, mean, max"),
        ("scope", "net", "must be one of global, layer, sensitivity"),
        ("min_channels", 0, "must be 1 or more"),
        ("round_to", 0, "must be 1 or more"),
        ("runtime", "tvm", "must be onnxruntime or torch"),
        ("schedule", "cubic", "must be one of oneshot, gradual, dynamic"),
        ("epochs", 0, "must be 1 or more"),
        ("lr", 0.0, "must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value, allowed):
    with pytest.raises(InputError, match=rf"^prune\.{field}: {value}: {allowed}"):
        Prune(**{field: value})


def test_what_is_measured_is_not_measured_over_and_over():
    with pytest.raises(InputError, match=r"prune\.scope: sensitivity: takes too long"):
        Prune(scope="sensitivity", schedule="gradual")


def test_only_a_classifier_has_channels(context):
    with pytest.raises(InputError, match="stages: prune: must come before export"):
        Prune()(torch.nn.Linear(2, 2), context())
