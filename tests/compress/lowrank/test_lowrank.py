from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import students
from compress import Export, OnnxModel, Quantize, Recover, cost
from compress.lowrank import LowRank, forms
from compress.lowrank.cp import Degenerate
from compress.lowrank.forms import FORMS, factorise
from compress.lowrank.layers import look
from compress.prune import Prune
from compress.target import cost_of
from kd.data import DataConfig, load
from kd.errors import InputError

SHAPE = (1, 8, 8)


def create(name: str) -> students.Classifier:
    """A net for digits whose norms have seen something."""
    torch.manual_seed(0)
    model = students.create(name, num_classes=10, in_chans=1, image_size=8, normalize=((0.3,), (0.4,)))
    model(torch.rand(64, *SHAPE))
    return model.eval()


def wrap(net: nn.Module) -> students.Classifier:
    """Any net as a classifier; what its blueprint tells of it is not true."""
    return students.Classifier(net, students.Blueprint("cifar_resnet8", 10, 1, 8)).eval()


def varied() -> students.Classifier:
    torch.manual_seed(0)
    layers = {
        "dilated": nn.Conv2d(1, 16, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        "same": nn.Conv2d(16, 20, (3, 2), padding="same", bias=False),
        "tall": nn.Conv2d(20, 12, (1, 3), padding=(0, 1)),
        "shortcut": nn.Conv2d(12, 24, 1, stride=2),
        "narrow": nn.Conv2d(24, 12, 1, stride=(1, 2), bias=False),
        "flat": nn.Flatten(),
        "wide": nn.Linear(48, 64),
        "act": nn.ReLU(),
        "head": nn.Linear(64, 10, bias=False),
    }
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return wrap(net)


def images(count: int = 4) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def answers(model: nn.Module, x: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(images() if x is None else x)


def shares(model: nn.Module, made: nn.Module) -> dict[str, float]:
    before, after = (cost.measure(each, SHAPE) for each in (model, made))
    return {"macs": after.macs / before.macs, "params": after.params / before.params}


def check_ranks(made: students.Classifier, report) -> None:
    """The net is made of the factors that the report tells of."""
    for path, told in report.details["layers"].items():
        row = made.net.get_submodule(path)
        assert len(row) == (2 if told["method"] in ("svd", "spatial") else 3)
        if told["method"] == "tucker":
            assert [len(row[1].weight), len(row[0].weight)] == told["rank"]
        else:
            assert {len(layer.weight) for layer in row[:-1]} == set(told["rank"])
            assert [layer.groups for layer in row[1:-1]] == told["rank"][: len(row) - 2]


@pytest.mark.parametrize(("by", "whiten"), [("macs", True), ("params", True), ("macs", False)])
def test_the_target_is_met_and_reported(by, whiten, context):
    model = create("cifar_resnet20")
    made, report = LowRank(0.5, by=by, whiten=whiten)(model, context())
    kept = shares(model, made)

    assert kept[by] == pytest.approx(0.5, abs=0.03)
    assert kept[by] <= 0.5
    assert {name: report.details[f"kept_{name}"] for name in kept} == pytest.approx(kept)
    assert report.name == "lowrank"
    assert {layer["method"] for layer in report.details["layers"].values()} <= {"tucker", "cp", "spatial"}
    check_ranks(made, report)
    (note,) = report.notes
    assert note.startswith(f"{len(report.details['layers'])} layers are factorised")
    assert ("outputs" if whiten else "weights") in note
    worst = max(report.details["layers"], key=lambda path: report.details["layers"][path]["lost"])
    assert worst in note


def small_vit() -> students.Classifier:
    torch.manual_seed(0)
    plan = students.Blueprint("vit_tiny_patch16_224", 10, 1, 8, width=0.34, depth=0.25, normalize=((0.3,), (0.4,)))
    return plan.build().eval()


def test_a_transformer_meets_its_target_with_fused_qkv_projections_and_mlps(context):
    model = small_vit()
    made, report = LowRank(0.5, by="params")(model, context(calibration=32))
    told = report.details["layers"]

    assert shares(model, made)["params"] == pytest.approx(0.5, abs=0.03)
    assert report.details["kept_params"] == pytest.approx(shares(model, made)["params"])
    for block in range(3):
        for path in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            assert told[f"blocks.{block}.{path}"]["method"] == "svd"
    qkv = made.net.get_submodule("blocks.0.attn.qkv")
    assert qkv[1].out_features == 3 * qkv[0].in_features, "queries, keys and values share what is read"
    check_ranks(made, report)
    assert torch.isfinite(answers(made)).all()
    made.train()(images()).square().sum().backward()
    assert all(layer.weight.grad.abs().sum() > 0 for path in told for layer in made.net.get_submodule(path))


@pytest.mark.parametrize("name", ["cifar_resnet8", "varied"])
def test_where_nothing_is_cheaper_the_model_is_unchanged_and_the_note_says_so(name, context):
    model = varied() if name == "varied" else create(name)
    made, report = LowRank(0.5, min_rank=10_000)(model, context())

    assert report.details == {"kept_macs": 1.0, "kept_params": 1.0, "layers": {}, "degenerate": [], "left": []}
    assert len(report.notes) == 1
    assert "the model is unchanged" in report.notes[0]
    assert made.blueprint == model.blueprint
    assert made.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(answers(made), answers(model))


@pytest.mark.parametrize("method", ["tucker", "auto"])
def test_a_convolution_of_low_rank_is_found_and_not_missed(method, context):
    model = create("cifar_resnet20")
    weight = model.net.get_submodule("layer2.1.conv1").weight
    with torch.no_grad():
        weight.copy_(
            torch.einsum("or,rskl,is->oikl", torch.randn(32, 3), torch.randn(3, 2, 3, 3), torch.randn(32, 2)) / 20
        )
    for whiten in (True, False):
        made, report = LowRank(0.96, method=method, whiten=whiten)(model, context())
        told = report.details["layers"]

        assert set(told) == {"layer2.1.conv1"}
        assert told["layer2.1.conv1"]["lost"] < 1e-6
        assert report.details["kept_macs"] <= 0.96
        assert torch.allclose(answers(made), answers(model), atol=1e-4)


@pytest.mark.parametrize("path", ["wide", "head", "shortcut", "narrow"])
def test_a_matrix_of_low_rank_is_found_and_not_missed(path, context):
    model = varied()
    weight = model.net.get_submodule(path).weight
    with torch.no_grad():
        weight.copy_((torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1])).reshape(weight.shape) / 5)
    saved = weight.numel() - 3 * sum(weight.shape[:2])
    share = 1 - saved / sum(parameter.numel() for parameter in model.parameters())
    made, report = LowRank(share, by="params", method="svd")(model, context())

    assert set(report.details["layers"]) == {path}
    assert report.details["layers"][path]["lost"] < 1e-6
    assert torch.allclose(answers(made), answers(model), atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 10), (10, 64), (64, 64)])
def test_what_is_told_as_lost_is_what_the_outputs_of_the_layer_lose(shape, context):
    torch.manual_seed(0)
    ins, outs = shape
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, ins), nn.ReLU(), nn.Linear(ins, outs))
    net[1].requires_grad_(False)
    model, seen = wrap(net), context()
    x = net[:3](seen.images())
    (layer,) = [each for each in look(model, seen.images(), True) if each.path == "3"]
    rank = min(shape) // 3
    made = copy.deepcopy(model)
    factorise(made, layer, "svd", [rank])
    outputs = (net[3](x) - net[3].bias).detach()
    missed = (made.net[3](x) - net[3](x)).detach()
    best = torch.linalg.svdvals(outputs.double())[rank:].square().sum()

    assert missed.square().sum() == pytest.approx(float(best), rel=2e-2, abs=1e-5 * float(outputs.square().sum()))
    for choice_rank, lost in _lost_by_rank(model, seen).items():
        made = copy.deepcopy(model)
        factorise(made, layer, "svd", [choice_rank])
        share = (made.net[3](x) - net[3](x)).square().sum() / outputs.square().sum()
        assert lost == pytest.approx(share.item(), rel=5e-2, abs=1e-5)


def test_a_strided_shortcut_is_told_by_the_pixels_that_it_reads(context):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 20, 1, stride=(2, 4)), nn.Flatten())
    model, x = wrap(net), context().images()
    layer = look(model, x, True)[1]
    seen = net[0](x)[:, :, ::2, ::4].movedim(1, -1).flatten(0, -2).detach().double()

    assert layer.path == "1"
    assert (layer.inputs, layer.outputs) == (64, 8)
    assert torch.allclose(layer.moment, seen.T @ seen, rtol=1e-4, atol=1e-2)


def _lost_by_rank(model: students.Classifier, seen) -> dict[int, float]:
    told = {}
    for target in (0.3, 0.6, 0.9):
        layers = LowRank(target, method="svd", by="params")(model, seen)[1].details["layers"]
        if "3" in layers:
            told[layers["3"]["rank"][0]] = layers["3"]["lost"]
    assert told
    return told


def test_whitened_cuts_keep_the_answers_closer(trained, context, digits):
    x = torch.cat([view.x for view in digits.evaluation("val")])
    expected = answers(trained, x)
    missed = {}
    for whiten in (True, False):
        made, report = LowRank(0.6, whiten=whiten)(trained, context())
        assert report.details["kept_macs"] == pytest.approx(0.6, abs=0.03)
        missed[whiten] = float((answers(made, x) - expected).square().mean())

    assert missed[True] < 0.8 * missed[False]


@pytest.mark.parametrize(
    ("method", "can"),
    [
        ("svd", {"shortcut", "narrow", "wide", "head"}),
        ("tucker", {"dilated", "same", "tall"}),
        ("cp", {"dilated", "same", "tall"}),
        ("spatial", {"dilated", "same", "tall"}),
        (("cp", "svd"), {"dilated", "same", "tall", "shortcut", "narrow", "wide", "head"}),
        ("auto", {"dilated", "same", "tall", "shortcut", "narrow", "wide", "head"}),
    ],
)
def test_only_layers_of_the_method_are_touched(method, can, context):
    model = varied()
    made, report = LowRank(0.01, method=method)(model, context())
    touched = {path for path, module in made.net.named_children() if isinstance(module, nn.Sequential)}

    assert touched == set(report.details["layers"])
    assert can - {"dilated"} <= touched <= can
    for path in touched:
        told = report.details["layers"][path]
        assert told["rank"] in ([1], [1, 1])
        assert (told["method"] == "svd") == (path in {"shortcut", "narrow", "wide", "head"})
        assert method == "auto" or told["method"] in method
    for path, module in model.net.named_children():
        if path not in touched:
            assert repr(made.net.get_submodule(path)) == repr(module)


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("method", ["tucker", "cp", "spatial"])
def test_full_ranks_repeat_every_layer_with_its_stride_padding_and_dilation(method, whiten, context):
    model = varied()
    made = copy.deepcopy(model)
    layers = look(model, context().images(), whiten)
    assert [layer.path for layer in layers] == ["dilated", "same", "tall", "shortcut", "narrow", "wide", "head"]
    for layer in layers:
        name = "svd" if layer.is_matrix else method
        factorise(made, layer, name, FORMS[name].full(layer))

    assert torch.allclose(answers(made), answers(model), atol=1e-4)
    settings = [
        (core.kernel_size, core.stride, core.padding, core.dilation) for core in made.net.get_submodule("dilated")
    ]
    if method == "spatial":
        assert settings[0] == ((3, 1), (2, 1), (1, 0), (1, 1))
        assert settings[1] == ((1, 3), (1, 1), (0, 2), (1, 2))
    else:
        assert settings[1] == ((3, 3), (2, 1), (1, 2), (1, 2))
    assert made.net.get_submodule("same.1").padding == "same"
    assert [layer.stride for layer in made.net.get_submodule("shortcut")] == [(2, 2), (1, 1)]
    for path, module in model.net.named_children():
        if path in {layer.path for layer in layers}:
            row = made.net.get_submodule(path)
            assert [layer.bias is not None for layer in row] == [False] * (len(row) - 1) + [module.bias is not None]


def test_grouped_depthwise_and_odd_layers_are_left_alone(context):
    class Mine(nn.Linear):
        pass

    class Peeks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.inner.weight.T

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.Conv2d(32, 32, 3, padding=1, groups=4),
        nn.Conv2d(32, 32, 1, groups=2),
        nn.Conv2d(32, 32, 1, padding=1),
        nn.Conv2d(32, 64, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Mine(64, 64),
        Peeks(),
        nn.Linear(64, 10),
    )
    made, report = LowRank(0.01, by="params")(wrap(net), context())

    assert set(report.details["layers"]) == {"5", "10"}
    for place in (0, 1, 2, 3, 4, 8, 9):
        assert repr(made.net[place]) == repr(net[place])
        assert all(map(torch.equal, made.net[place].parameters(), net[place].parameters()))
    assert "are kept instead of 1%" in report.notes[-1]


def test_depthwise_convolutions_of_a_mobile_net_stay(context):
    model = create("mobilenetv2_035")
    made, report = LowRank(0.6, by="params")(model, context(calibration=32))
    grouped = [path for path, module in model.net.named_modules() if getattr(module, "groups", 1) > 1]

    assert grouped
    assert all(isinstance(made.net.get_submodule(path), nn.Conv2d) for path in grouped)
    assert report.details["kept_params"] == pytest.approx(0.6, abs=0.03)
    assert not set(grouped) & set(report.details["layers"])


@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_stays_as_it_was(training, context):
    model = create("cifar_resnet8").train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan, modules = model.blueprint, repr(model)
    made, report = LowRank(0.5)(model, context())
    assert report.details["layers"]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()

    assert model.blueprint is plan
    assert repr(model) == modules
    assert not made.training
    assert all(module.training == training for module in model.modules())
    assert not any(module._forward_hooks for each in (model, made) for module in each.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


def test_what_is_factorised_reloads_exactly_and_learns_in_every_factor(context, tmp_path):
    model = create("cifar_resnet20")
    made, report = LowRank(0.5)(model, context())
    students.save(made, tmp_path / "made")
    loaded = students.load(tmp_path / "made")

    assert loaded.blueprint == made.blueprint
    assert torch.equal(answers(loaded), answers(made))
    assert all(value.is_contiguous() for value in made.state_dict().values())
    made.train()(images()).square().sum().backward()
    for path in report.details["layers"]:
        for layer in made.net.get_submodule(path):
            assert layer.weight.grad.abs().sum() > 0


def test_pruned_and_factorised_nets_factorise_again(context, tmp_path):
    model = create("cifar_resnet20")
    pruned, _ = Prune(0.7)(model, context())
    assert any(isinstance(edit, students.Resize) for edit in pruned.blueprint.edits)
    once, first = LowRank(0.7)(pruned, context())
    twice, second = LowRank(0.7)(once, context())
    students.save(twice, tmp_path / "twice")

    assert shares(pruned, once)["macs"] == pytest.approx(0.7, abs=0.03)
    assert shares(once, twice)["macs"] == pytest.approx(0.7, abs=0.03)
    assert first.details["layers"]
    assert any(path.rpartition(".")[0] in first.details["layers"] for path in second.details["layers"])
    assert torch.equal(answers(students.load(tmp_path / "twice")), answers(twice))


@pytest.mark.parametrize("make", [lambda: create("cifar_resnet8"), small_vit])
def test_factors_of_a_pruned_net_recover_export_quantise_and_load_elsewhere(make, context, tmp_path):
    model, settings = make(), context(calibration=64, folder=tmp_path / "stages")
    small, _ = Prune(0.8, round_to=1)(model, settings)
    thin, report = LowRank(0.7)(small, settings)
    assert report.details["layers"]
    recovered, _ = Recover(epochs=1)(thin, settings)
    students.save(recovered, tmp_path / "net")
    x = images()
    torch.save(x, tmp_path / "x.pt")
    code = "import sys, torch, students; torch.save(students.load(sys.argv[1])(torch.load(sys.argv[2])), sys.argv[3])"
    paths = [tmp_path / name for name in ("net", "x.pt", "y.pt")]
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, *map(str, paths)], check=True)
    assert torch.equal(torch.load(tmp_path / "y.pt"), answers(recovered, x))

    exported, _ = Export()(recovered, settings)
    assert torch.allclose(exported(x), answers(recovered, x), atol=1e-4 * float(answers(recovered, x).abs().max()))
    quantised, _ = Quantize(mode="static")(exported, settings)
    assert quantised(x).shape == (4, 10)
    assert torch.isfinite(quantised(x)).all()


@pytest.mark.parametrize("method", ["cp", "spatial", "tucker"])
def test_a_net_of_one_method_meets_its_target_and_reloads(method, context, tmp_path):
    model = create("cifar_resnet8")
    made, report = LowRank(0.6, method=method)(model, context())
    students.save(made, tmp_path / "made")

    assert {layer["method"] for layer in report.details["layers"].values()} == {method}
    check_ranks(made, report)
    assert shares(model, made)["macs"] == pytest.approx(0.6, abs=0.03)
    assert torch.equal(answers(students.load(tmp_path / "made")), answers(made))


def test_costs_that_ranks_are_chosen_by_are_those_of_what_is_made(context):
    """Strides, dilations and one-sided kernels included."""
    model = varied()
    for layer in look(model, context().images(), False):
        for name, form in FORMS.items():
            if not form.suits(layer):
                continue
            ranks = tuple(1 for _ in form.full(layer))
            made = copy.deepcopy(model)
            factorise(made, layer, name, ranks)
            parts = form.row(layer, ranks)
            for by, saved in (
                ("macs", layer.module.weight.numel() * layer.outputs - sum(p.weights * p.positions for p in parts)),
                ("params", layer.module.weight.numel() - sum(part.weights for part in parts)),
            ):
                assert cost_of(model, SHAPE, by) - cost_of(made, SHAPE, by) == saved, (layer.path, name, by)


def test_auto_loses_less_than_any_method_alone(trained, context):
    lost = {}
    for method in ("auto", "cp", "tucker", "spatial"):
        _, report = LowRank(0.6, method=method)(trained, context())
        lost[method] = sum(layer["lost"] for layer in report.details["layers"].values())

    assert lost["auto"] <= 1.02 * min(lost.values())
    assert lost["tucker"] > 1.2 * lost["auto"]


@pytest.mark.parametrize("method", ["cp", ("cp", "tucker")])
def test_a_layer_whose_cp_is_degenerate_stays_or_falls_to_another_method(method, context, monkeypatch):
    model = create("cifar_resnet8")
    _, before = LowRank(0.6, method=method)(model, context())
    first = next(path for path, layer in before.details["layers"].items() if layer["method"] == "cp")
    weight = model.net.get_submodule(first).weight.shape
    honest = forms.cp

    def cp(found, rank, moment=None):
        if found.shape == weight:
            raise Degenerate("grows")
        return honest(found, rank, moment)

    monkeypatch.setattr(forms, "cp", cp)
    made, report = LowRank(0.6, method=method)(model, context())

    assert first in report.details["degenerate"]
    assert first in report.notes[0]
    assert "degenerate" in report.notes[0]
    assert report.details["layers"].get(first, {"method": "tucker"})["method"] == "tucker"
    assert (first in report.details["layers"]) <= (method != "cp")
    if method != "cp":
        assert report.details["kept_macs"] == pytest.approx(0.6, abs=0.03), "the others make up for it"
    assert torch.isfinite(answers(made)).all()


def test_a_share_of_the_time_is_met_by_measuring(context, clock):
    clock(lambda name, net: 1e3 + cost.measure(net, SHAPE).params)
    model = create("cifar_resnet8")
    whole = cost.measure(model, SHAPE).params
    small, report = LowRank(0.6, "latency", "tucker", runtime="torch")(model, context())
    told = report.details["kept_latency"]
    assert told == (1e3 + cost.measure(small, SHAPE).params) / (1e3 + whole)
    assert told == pytest.approx(0.6, abs=0.03)
    assert not any("instead" in note for note in report.notes)


def test_a_time_that_nothing_changes_is_told(context, clock):
    clock(lambda name, net: 1.0)
    _, report = LowRank(0.6, "latency", "tucker", runtime="torch")(create("cifar_resnet8"), context())
    assert report.details["kept_latency"] == 1.0
    assert report.notes == ("None of 7 nets that were tried comes nearer to 60% of the time: the model is unchanged.",)
    assert report.details["layers"] == {}


def test_a_net_that_factors_make_slower_stays_whole(context, clock):
    model = create("cifar_resnet8")
    whole = cost.measure(model, SHAPE).params
    clock(lambda name, net: 1.0 + (cost.measure(net, SHAPE).params < whole))
    made, report = LowRank(0.95, "latency", runtime="torch")(model, context())
    assert report.details["kept_latency"] == report.details["kept_macs"] == 1.0
    assert torch.equal(answers(made), answers(model))


def test_of_what_was_tried_the_nearest_is_kept(context, clock):
    """Whose time jumps past the target, so that the last that is tried is not it."""
    model, tried = create("cifar_resnet8"), []

    def time(name, net):
        if name == "reference":
            return 1.0
        tried.append(cost.measure(net, SHAPE).macs)
        return 0.65 if len(tried) == 2 else 0.9

    clock(time)
    made, report = LowRank(0.6, "latency", "tucker", runtime="torch")(model, context())
    assert len(tried) == 7
    assert cost.measure(made, SHAPE).macs == tried[1] != tried[-1]
    assert report.details["kept_latency"] == 0.65


def test_time_is_measured_on_the_runtime_of_the_file_unless_told_otherwise(context, clock):
    seen = clock(lambda name, net: 0.7 if name == "model" else 1.0)
    _, report = LowRank(0.7, "latency", "tucker")(create("cifar_resnet8"), context())
    assert seen == [OnnxModel, OnnxModel]
    assert report.details["kept_latency"] == 0.7


def test_each_layer_keeps_the_energy_that_is_asked_for_and_no_rank_more(trained, context):
    for energy in (0.7, 0.95):
        _, report = LowRank(0.01, method="spatial", ranks="energy", energy=energy)(trained, context())
        told = report.details["layers"]
        assert told
        assert all(layer["lost"] <= 1 - energy for layer in told.values())
        for layer in look(trained, context().images(), True):
            if layer.path in told:
                kept = FORMS["spatial"].energy(layer)[: told[layer.path]["rank"][0] - 1].sum()
                assert kept < energy * FORMS["spatial"].energy(layer).sum()
        assert not any("instead of" in note for note in report.notes)


def test_evbmf_finds_planted_ranks_and_is_guarded_where_it_finds_none(context):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10))
    with torch.no_grad():
        net[1].weight.copy_((torch.randn(128, 7) @ torch.randn(7, 64) + 0.5 * torch.randn(128, 64)) / 10)
    (told, less) = (
        LowRank(by="params", ranks="evbmf", energy=energy, whiten=False)(wrap(net), context())[1].details["layers"]
        for energy in (0.5, 0.01)
    )

    assert told["1"]["rank"] == less["1"]["rank"] == [7]
    assert 5 < told["3"]["rank"][0] < 96, "of noise it finds nothing, so that the energy decides"
    assert told["3"]["lost"] == pytest.approx(0.5, abs=0.02)
    assert less["3"]["rank"] == [1]


@pytest.mark.parametrize("method", ["tucker", "cp", "spatial"])
def test_evbmf_takes_no_less_of_a_convolution_than_was_planted(method, context):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 40, 3), nn.Conv2d(40, 48, 3), nn.Flatten(), nn.Linear(48 * 16, 10))
    sides = torch.randn(48, 5), torch.randn(5, 4, 3, 3), torch.randn(4, 40)
    with torch.no_grad():
        planted = torch.einsum("or,rskl,si->oikl", *sides)
        net[1].weight.copy_(planted / 30 + 0.05 * torch.randn(48, 40, 3, 3))
    _, report = LowRank(method=method, ranks="evbmf", energy=0.01, whiten=False)(wrap(net), context())
    rank = report.details["layers"]["1"]["rank"]

    if method == "tucker":
        assert rank in ([5, 4], [5, 5], [6, 4], [6, 5])
    else:
        assert (5 if method == "cp" else 4) <= rank[0] <= 5 * 9


def test_sensitivity_meets_the_target_too(trained, context):
    model, made = trained, LowRank(0.7, method="spatial", ranks="sensitivity")(trained, context())
    assert shares(model, made[0])["macs"] == pytest.approx(0.7, abs=0.03)
    assert made[1].details["layers"]


@pytest.mark.parametrize(("method", "ranks"), [("svd", [0]), ("svd", [11]), ("svd", [-1]), ("svd", [2, 2])])
def test_ranks_of_zero_or_above_full_are_refused(method, ranks, context):
    model = varied()
    head = look(model, context().images(), False)[-1]
    with pytest.raises(InputError, match=r"of head must be from 1 to \(10,\)") as refused:
        factorise(model, head, method, ranks)
    assert refused.value.field == "lowrank.rank"
    assert model.blueprint.edits == ()


@pytest.mark.parametrize(("method", "full"), [("tucker", (20, 16)), ("cp", (96,)), ("spatial", (40,))])
def test_full_ranks_are_where_nothing_is_left_to_lose(method, full, context):
    layer = look(varied(), context().images(), False)[1]
    assert FORMS[method].full(layer) == full
    with pytest.raises(InputError, match="must be from 1 to"):
        factorise(varied(), layer, method, [full[0] + 1, *full[1:]])
    energy = FORMS[method].energy(layer)
    assert energy.shape == full
    assert energy.sum() == pytest.approx(float(layer.weight.square().sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "name", "why"),
    [
        (LowRank(0.05, min_rank=12), "cifar_resnet8", "every factor is at rank 12"),
        (LowRank(0.5, method="svd", min_rank=2), "cifar_resnet8", "every factor is at rank 2"),
    ],
)
def test_a_target_out_of_reach_is_told(stage, name, why, context):
    made, report = stage(create(name), context())
    kept = shares(create(name), made)["macs"]

    assert kept > stage.target + 0.03
    assert report.details["layers"]
    assert f"{kept:.0%} of the macs are kept instead of {stage.target:.0%}: {why}" in report.notes[-1]
    assert all(rank >= stage.min_rank for told in report.details["layers"].values() for rank in told["rank"])


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("target", 0, "must be above 0 and below 1"),
        ("target", 1, "must be above 0 and below 1"),
        ("target", float("nan"), "must be above 0 and below 1"),
        ("by", "seconds", "must be macs or params or latency"),
        ("runtime", "tensorrt", "must be onnxruntime or torch"),
        ("method", "parafac", "must be among auto, svd, tucker, cp, spatial"),
        ("method", ("svd", "parafac"), "must be among auto, svd, tucker, cp, spatial"),
        ("method", (), "must be among auto, svd, tucker, cp, spatial"),
        ("ranks", "guess", "must be one of budget, sensitivity, energy, evbmf"),
        ("energy", 0, "must be above 0, and 1 or below"),
        ("energy", 1.1, "must be above 0, and 1 or below"),
        ("energy", float("nan"), "must be above 0, and 1 or below"),
        ("min_rank", 0, "must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value, allowed):
    with pytest.raises(InputError, match=allowed) as refused:
        LowRank(**{field: value})
    assert refused.value.field == f"lowrank.{field}"


@pytest.mark.parametrize("ranks", ["energy", "evbmf"])
def test_ranks_that_meet_no_target_meet_no_time(ranks):
    with pytest.raises(InputError, match="needs ranks that meet a target"):
        LowRank(by="latency", ranks=ranks)


def test_a_file_has_no_layers(exported, context):
    with pytest.raises(InputError, match="must come before export") as refused:
        LowRank()(exported, context())
    assert refused.value.field == "stages"


def test_images_that_the_model_does_not_take_are_refused(context):
    model = students.create("cifar_resnet8", num_classes=10, in_chans=3, image_size=8)
    with pytest.raises(InputError, match=r"model: cifar_resnet8: cannot take images of \(1, 8, 8\)"):
        LowRank()(model, context())


def test_a_model_whose_answers_are_not_numbers_is_refused(context):
    model = create("cifar_resnet8")
    with torch.no_grad():
        model.net.get_submodule("layer1.0.conv1").weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite logits") as refused:
        LowRank()(model, context())
    assert refused.value.field == "model"
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_its_net_looks_into_is_left_alone(context):
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.to(self.inner.weight.dtype))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), Looks(), nn.Linear(64, 10))
    made, report = LowRank(0.3, by="params")(wrap(net), context())

    assert set(report.details["layers"]) == {"1", "3"}
    assert report.details["left"] == ["2.inner"]
    assert any("1 layers, as 2.inner" in note for note in report.notes)
    assert torch.isfinite(answers(made)).all()


class Asks(nn.Module):
    """Treats its layer otherwise where it is no linear one."""

    def __init__(self, refuse: Exception | None) -> None:
        super().__init__()
        self.inner, self.refuse = nn.Linear(64, 64), refuse

    def forward(self, x: Tensor) -> Tensor:
        if type(self.inner) is not nn.Linear and self.refuse:
            raise self.refuse
        return self.inner(x) * (2 if type(self.inner) is nn.Linear else 1)


@pytest.mark.parametrize("refuse", [None, ValueError("no linear layer"), AssertionError()])
def test_a_net_that_asks_what_its_layer_is_keeps_it(refuse, context):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), Asks(refuse), nn.Linear(64, 10))
    _, report = LowRank(0.3, by="params")(wrap(net), context())
    assert set(report.details["layers"]) == {"1", "3"}
    assert report.details["left"] == ["2.inner"]


class Odd(nn.Module):
    """Calls layers in ways of its own, and one in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.named, self.flat, self.body, self.head = (nn.Linear(64, 64) for _ in range(4))
        self.twin, self.table = self.body, nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twin(self.body(self.named(input=x.flatten(1))))
        bias = self.flat(self.table(torch.eye(64)).mean(0))  # of no image
        return self.head(x + bias)[:, :10]


def test_layers_that_are_called_in_ways_of_their_own(context):
    torch.manual_seed(0)
    model = wrap(Odd())
    seen = {layer.path: layer for layer in look(model, context().images(), True)}
    assert set(seen) == {"table", "head"}
    assert (seen["table"].outputs, seen["head"].outputs) == (64, 1), "of one image, however many are shown"
    made, report = LowRank(0.6, by="params")(model, context())
    assert report.details["kept_params"] < 1
    assert report.details["left"] == ["flat", "named"], "a layer in two places is none"
    assert torch.isfinite(answers(made)).all()


def test_more_than_logits_is_refused(context):
    class Two(Odd):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x), x

    with pytest.raises(InputError, match="gives more than logits"):
        LowRank()(wrap(Two()), context())


def test_few_images_do_not_make_the_rest_of_the_space_free(context):
    """Where 4 images are all that a layer of 64 inputs was shown, rank 4 is not taken for all of it."""
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    few, many = (LowRank(ranks="energy", energy=0.99)(model, context(calibration=count)) for count in (4, 256))
    ranks = [report.details["layers"].get("1", {"rank": [10]})["rank"][0] for _, report in (few, many)]
    assert ranks[0] > 4
    shown = look(model, context(calibration=4).images(), True)[0]
    assert shown.seen == 4
    assert torch.linalg.matrix_rank(shown.moment) == len(shown.moment)
    enough = look(model, context(calibration=64).images(), True)[0]
    outputs = answers(model, context(calibration=64).images()).double() - model.net[1].bias.detach()
    torch.testing.assert_close(enough.moment, outputs.T @ outputs, rtol=1e-4, atol=1e-4)


def test_what_a_net_of_branches_costs_when_it_is_exported_is_told(context):
    torch.manual_seed(0)
    model = students.create("mobileone_s0", num_classes=10, in_chans=1, image_size=32, width=0.25).eval()
    seen = context(data=load(DataConfig(image_size=32)), calibration=8)
    made, report = LowRank(0.5, method="svd", whiten=False)(model, seen)
    before, after = (Export().write(each, seen.data, seen.folder / "x.onnx").count().macs for each in (model, made))
    assert report.details["deployed"] == pytest.approx(after / before, abs=0.02)
    assert report.details["deployed"] > 1 > report.details["kept_macs"]
    assert "Exported, " in report.notes[-1]


def test_positions_are_counted_for_an_image_however_a_net_cuts_it_up(context):
    """Swin folds its windows into the batch, and nets may call a layer more than once."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(4, 4), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            windows = self.mix(self.mix(x.reshape(-1, 4)))
            return self.head(windows.reshape(len(x), -1))

    mix, head = look(wrap(Windows()), context().images(), True)

    assert (mix.inputs, mix.outputs) == (32, 32)
    assert (head.inputs, head.outputs) == (1, 1)
