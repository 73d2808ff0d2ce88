"""The sweep has to be able to say that the pruner is wrong: most of these pruners are."""

import copy
import json

import pytest
import torch
from torch import nn

import students
from experiments import cli, plain_torch_pruning, prune_zoo
from experiments.prune_zoo import OURS, THEIRS, Pruned, SweepConfig, examine, page, sweep
from kd.checkpoint import load_json, save_json

NET, SIZE = "cifar_resnet8", 32
KEPT = [0, 2, 3, 5, 6, 9]
GONE = sorted(set(range(16)) - set(KEPT))
NORM = ("weight", "bias", "running_mean", "running_var")


def halved(model, x, folder, gone=GONE):
    """A right pruner, written out for one block of three."""
    removed = {f"layer1.0.{name}": {0: gone} for name in ("conv1.weight", "bn1.weight", "bn1.bias")}
    removed["layer1.0.conv2.weight"] = {1: gone}
    kept, made = torch.tensor(KEPT), copy.deepcopy(model)
    old = model.net.state_dict()
    weights = {f"layer1.0.bn1.{name}": old[f"layer1.0.bn1.{name}"][kept] for name in NORM}
    weights["layer1.0.conv1.weight"] = old["layer1.0.conv1.weight"][kept]
    weights["layer1.0.conv2.weight"] = old["layer1.0.conv2.weight"][:, kept]
    edits = [
        students.Resize("layer1.0.conv1", {"out_channels": 6}, {"weight": [6, 16, 3, 3]}),
        students.Resize("layer1.0.bn1", {"num_features": 6}, {name: [6] for name in NORM}),
        students.Resize("layer1.0.conv2", {"in_channels": 6}, {"weight": [16, 6, 3, 3]}),
    ]
    students.edit(made, edits, weights)
    return Pruned(made.eval(), "macs", 0.25, model, removed, 3)


@pytest.fixture
def pruner(monkeypatch):
    def use(prune):
        monkeypatch.setitem(prune_zoo.PRUNE, OURS, prune)

    use(halved)
    return use


def row_of(name=NET, **found):
    full = {"way": OURS, "pixels": 32, "by": "macs", "seconds": 2.0, "whole": 1, "error": 2e-7, "failed": {}}
    cost = {"before": {"params": 2e6, "macs": 40e6}, "after": {"params": 1.25e6, "macs": 20e6}}
    return {"name": name} | full | cost | found


def put(out, *rows):
    for row in rows:
        path = out / row["way"] / f"{row['name']}.json"
        save_json(path, row)


def test_a_row_of_the_product():
    told = []
    row = examine(NET, OURS, SIZE, lambda row: told.append(dict(row)))

    assert row["failed"] == {}
    assert row["by"] == "macs"
    assert row["after"]["macs"] / row["before"]["macs"] == pytest.approx(0.5, abs=0.03)
    assert 0 < row["after"]["params"] < row["before"]["params"]
    assert 0 < row["error"] < 1e-5
    assert row["seconds"] > 0
    assert row["other"] == 64
    assert set(row["latency"]) == {"torch", "onnxruntime"}
    assert all(0.05 < ratio < 5 for ratio in row["latency"].values())
    assert [row["doing"] for row in told] == [
        *("build", "prune", "forward", "removal", "another batch size", "another resolution", "sliced = zeroed"),
        *("reload", "export", "latency"),
    ]


def test_a_right_slice_holds(pruner):
    row = examine(NET, OURS, SIZE, deployed=False)

    assert row["failed"] == {}
    assert (row["by"], row["seconds"], row["whole"]) == ("macs", 0.25, 3)
    assert row["error"] < 1e-5


def test_where_other_channels_went_than_was_said_the_answers_differ(pruner):
    pruner(lambda *given: halved(*given, gone=[*GONE[1:], KEPT[0]]))

    failed = examine(NET, OURS, SIZE, deployed=False)["failed"]
    assert list(failed) == ["sliced = zeroed"]
    assert "of the largest logit" in failed["sliced = zeroed"]


def test_what_cannot_be_seen_in_the_answers_proves_nothing(pruner):
    def idle(model, x, folder):
        return halved(model, x, folder)._replace(model=model, removed={})

    pruner(idle)
    failed = examine(NET, OURS, SIZE, deployed=False)["failed"]
    assert failed["sliced = zeroed"] == "zeroed channels do not show in the answers"
    assert failed["removal"] == "0% of the MACs and 0% of the params go"


def test_what_the_blueprint_does_not_tell_is_lost_when_it_is_saved(pruner, monkeypatch):
    def forgetful(model, x, folder):
        found = halved(model, x, folder)
        found.model.net.layer1[0].conv2 = nn.Sequential(found.model.net.layer1[0].conv2)
        return found

    pruner(forgetful)
    monkeypatch.setattr(prune_zoo.Export, "write", lambda *given: None)
    monkeypatch.setattr(prune_zoo, "_latency", lambda *given: {})
    assert list(examine(NET, OURS, SIZE)["failed"]) == ["reload"]


def test_a_net_that_takes_two_images_only_is_found_out(pruner):
    class Fixed(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).view(min(len(x), 2), -1)

    def fixed(model, x, folder):
        found = halved(model, x, folder)
        found.model.net = Fixed(found.model.net)
        return found

    pruner(fixed)
    failed = examine(NET, OURS, SIZE, deployed=False)["failed"]
    assert list(failed) == ["another batch size", "another resolution"]
    assert failed["another batch size"] == "answers have the shape (2, 150)"


def test_an_exception_of_the_pruner_is_what_the_row_says(pruner):
    def broken(model, x, folder):
        raise KeyError("blocks.0\nattn")

    pruner(broken)
    row = examine(NET, OURS, SIZE)
    assert row["failed"] == {"prune": "KeyError: 'blocks.0\\nattn'"}
    assert "after" not in row


def test_the_parameters_are_aimed_at_where_few_macs_can_go(monkeypatch):
    asked = []

    class Prune:
        def __init__(self, target, by, round_to):
            self.by = by
            asked.append((target, by))

        def __call__(self, model, context):
            return model, prune_zoo.compress.Report(
                "prune", (), {"kept_macs": 0.86, "removed": {}, "whole": ["a", "b"]}
            )

    monkeypatch.setattr(prune_zoo.compress, "Prune", Prune)
    row = examine(NET, OURS, SIZE, deployed=False)
    assert asked == [(0.5, "macs"), (0.5, "params")]
    assert (row["by"], row["whole"]) == ("params", 2)


def test_no_branch_is_mute_and_no_value_of_a_vector_is_there_twice():
    model = students.create("convnext_atto", num_classes=100, image_size=32)
    prune_zoo.enliven(model, prune_zoo.images(2, 32))

    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert parameter.unique().numel() == parameter.numel(), name
            assert "bias" in name or parameter.min() >= 0.5, name
        if parameter.dim() > 1:
            assert parameter.std() > 0.4 * parameter[0].numel() ** -0.5, name


def test_only_what_is_not_finished_is_done_again(tmp_path, monkeypatch, capfd):
    done = []

    def alone(name, way, out, limit):
        done.append((name, way, limit))
        put(tmp_path, row := row_of(name, way=way))
        return row

    monkeypatch.setattr(prune_zoo, "alone", alone)
    put(tmp_path, row_of("resnet18"), row_of("vgg11", doing="export"))
    config = SweepConfig(str(tmp_path), models=("resnet18", "vgg11", "densenet121"), ways=(OURS,), limit=7)
    sweep(config)
    assert done == [("vgg11", OURS, 7), ("densenet121", OURS, 7)]
    assert "2/2 retort densenet121: holds" in capfd.readouterr().err
    sweep(config)
    assert len(done) == 2


@pytest.mark.parametrize(("limit", "why"), [(0.2, "more than 0.2 s"), (60, "the process ended with 2: error: student")])
def test_a_model_that_takes_too_long_or_crashes_is_a_row(tmp_path, limit, why):
    name = "no_such_net" if limit == 60 else NET
    row = prune_zoo.alone(name, OURS, str(tmp_path), limit)

    assert list(row["failed"]) == ["start"]
    assert row["failed"]["start"].startswith(why)
    assert load_json(tmp_path / OURS / f"{name}.json") == row
    assert "doing" not in row


def test_what_was_found_before_the_time_was_up_stays(tmp_path, monkeypatch):
    written = row_of(doing="export", latency={})
    monkeypatch.setattr(prune_zoo.Path, "unlink", lambda path, missing_ok: put(tmp_path, written))
    row = prune_zoo.alone(NET, OURS, str(tmp_path), 0.2)
    assert row == row_of(latency={}) | {"failed": {"export": "more than 0.2 s"}}


def test_the_page_counts_what_holds_and_names_what_does_not(tmp_path):
    put(
        tmp_path,
        row_of("resnet18", latency={"torch": 0.614, "onnxruntime": 0.5}),
        row_of("vgg11", seconds=4.0, failed={"export": "InputError: no `einsum`"}),
        row_of("resnet18", way=THEIRS, seconds=4.0, failed={"sliced = zeroed": "differ"}, error=0.3),
        row_of("vgg11", way=THEIRS, seconds=4.0),
        {"name": "densenet121", "way": THEIRS, "failed": {"start": "more than 3 s"}},
    )
    text = page(str(tmp_path), ["resnet18", "vgg11", "densenet121"])

    assert "**1 of 3 families hold**, 1 have still to be examined." in text
    assert "Of torch-pruning 2 run, all were examined, and 1 of them answer as zeroed." in text
    assert "Seconds of retort: median 3.00, slowest 4.0 (`vgg11`)." in text
    assert "Median of the ratio, where both end: 0.75." in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[2] == (
        "| resnet | resnet18 | 32 | macs | 2.00 → 1.25 | 40 → 20 | 2.0e-07 | 2.00 | 0.61 | 0.50 | 1 | yes "
        "| 40 → 20 | 3.0e-01 | 4.00 | yes |"
    )
    assert "| no: export |" in lines[3]
    assert lines[4].startswith("| densenet | densenet121 | – |")
    assert lines[4].endswith("| no: start |")
    assert "- `python -m experiments.prune_zoo --model vgg11`: export: InputError: no 'einsum'\n" in text
    assert (
        "- `python -m experiments.prune_zoo --model densenet121 --ways '[torch-pruning]'`: start: more than 3 s" in text
    )


def test_one_model_is_examined_anew_and_printed(tmp_path, capfd, pruner, monkeypatch):
    monkeypatch.setattr(prune_zoo, "examine", lambda *given: row_of(name=given[0], pixels=given[2]))
    put(tmp_path, row_of("levit_128s", failed={"prune": "no"}))
    arguments = ["--model", "levit_128s", "--out", str(tmp_path)]
    assert cli.run("prune_zoo", SweepConfig, prune_zoo.main, arguments) == 0

    expected = row_of("levit_128s", pixels=224)
    assert json.loads(capfd.readouterr().out) == expected
    assert load_json(tmp_path / OURS / "levit_128s.json") == expected


def test_the_page_is_written_where_it_is_wanted(tmp_path, capfd):
    put(tmp_path, row_of("resnet18"))
    arguments = ["--out", str(tmp_path), "--models", "[resnet18]", "--ways", f"[{OURS}]"]
    assert cli.run("prune_zoo", SweepConfig, prune_zoo.main, arguments) == 0
    shown = capfd.readouterr().out
    assert shown.startswith("# Pruning the zoo")
    assert cli.run("prune_zoo", SweepConfig, prune_zoo.main, [*arguments, "--write", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == shown


@pytest.mark.parametrize("arguments", [("--model", "resnet19"), ("--limit", "0"), ("--ways", "[magic]")])
def test_what_makes_no_sweep_is_told_in_one_line(tmp_path, capfd, arguments):
    assert cli.run("prune_zoo", SweepConfig, prune_zoo.main, ["--out", str(tmp_path / "x"), *arguments]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_slices_are_told_from_their_values():
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.Linear(7, 7))
    nn.init.uniform_(before[1].weight)
    nn.init.uniform_(before[1].bias)
    after = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(7, 7))
    rows, columns = torch.tensor([0, 3, 4, 6, 7]), torch.tensor([1, 2, 5])
    with torch.no_grad():
        after[0].weight.copy_(before[0].weight[rows][:, columns])
        for name in ("weight", "bias"):
            getattr(after[1], name).copy_(getattr(before[1], name)[rows])
        after[0].bias.copy_(before[0].bias[rows])
    gone = {0: [1, 2, 5]}

    after[2] = before[2]
    assert plain_torch_pruning.removed(before, after) == {
        "0.weight": gone | {1: [0, 3, 4]},
        "0.bias": gone,
        "1.weight": gone,
        "1.bias": gone,
    }
    after[2] = nn.Linear(7, 7)
    with pytest.raises(ValueError, match=r"2\.weight holds other values"):
        plain_torch_pruning.removed(before, after)


def test_torch_pruning_halves_a_resnet_rightly():
    row = examine("resnet18", THEIRS, 32)

    assert row["failed"] == {}
    assert row["by"] == "channels"
    assert row["after"]["params"] / row["before"]["params"] == pytest.approx(0.25, abs=0.03)
    assert row["error"] < 1e-5


def test_torch_pruning_is_given_the_heads_of_attention():
    row = examine("deit_tiny_patch16_224", THEIRS, 32)

    assert list(row["failed"]) == ["sliced = zeroed"]  # LayerNorm sees fewer channels
    assert row["after"]["macs"] < 0.4 * row["before"]["macs"]
