import json
import statistics

import pytest

from compress import load_artefact
from compress.cost import measure
from experiments import cli, compare_pruning
from experiments.compare_pruning import CompareConfig, Way
from kd.data import Data, DataConfig, load
from kd.evaluate import evaluate

SMALL = [
    *("--data.train_size", "256", "--teacher.architecture", "cifar_resnet8", "--teacher.fit.epochs", "2"),
    *("--teacher.fit.warmup_epochs", "0", "--importances", "[l2,random]", "--speedups", "[2.1]", "--epochs", "2"),
]
ROUNDS = (1, 2)
FOLDERS = [f"{name}/2.1x/rounds-{rounds}" for name in ("l2", "random") for rounds in ROUNDS]


def run(*arguments):
    return cli.run("compare_pruning", CompareConfig, compare_pruning.main, [*SMALL, *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder, and the splits that were read before and in its last step."""
    out, read = tmp_path_factory.mktemp("compared") / "run", ([], [])
    evaluation, compare = Data.evaluation, compare_pruning.compare

    with pytest.MonkeyPatch.context() as patch:
        last = []
        patch.setattr(compare_pruning, "compare", lambda *given: last.append(1) or compare(*given))

        def evaluated(data, split, *given, **more):
            read[bool(last)].append(split)
            return evaluation(data, split, *given, **more)

        patch.setattr(Data, "evaluation", evaluated)
        assert run("--out", out, "--seeds", "[0,1]") == 0
    return out, read


def test_every_net_has_the_macs_that_were_asked_for_and_its_own_scores(finished):
    out, _ = finished
    data = load(DataConfig(source="digits", val_fraction=0.2, train_size=256))
    table = json.loads((out / "table.json").read_text())
    whole = measure(load_artefact(out / "teacher"), data.facts.image_shape)

    def scores(folder):
        model = load_artefact(folder)
        return {split: evaluate(model, data.evaluation(split)).top1 for split in ("val", "test")}

    assert table["whole"] == scores(out / "teacher")
    assert [(row["importance"], row["rounds"]) for row in table["rows"]] == [
        (name, rounds) for name in ("l2", "random") for rounds in ROUNDS
    ]
    for row, folder in zip(table["rows"], FOLDERS, strict=True):
        for seed in (0, 1):
            place = out / folder / f"seed-{seed}"
            pruned = place / f"round-{row['rounds']}/01-prune"
            for net in (place, pruned):
                cost = measure(load_artefact(net), data.facts.image_shape)
                assert cost.macs / whole.macs == row["macs"][seed] == pytest.approx(1 / 2.1, abs=0.03)
                assert cost.params / whole.params == row["params"][seed] < 1
            assert row["recovered"][seed] == scores(place)
            assert row["pruned"][seed] == scores(pruned)


def test_rounds_share_the_epochs_and_come_nearer_to_the_target(finished):
    out, _ = finished
    for folder in FOLDERS:
        step = json.loads((out / folder / "seed-1/step.json").read_text())
        kept = [round_["kept"]["macs"] for round_ in step["details"]["rounds"]]
        count = int(folder[-1])
        assert len(step["curve"]) == 2
        assert kept == pytest.approx([2.1 ** (-number / count) for number in range(1, count + 1)], abs=0.03)


def test_the_test_images_are_read_in_the_last_step_alone(finished):
    before, last = finished[1]
    assert set(before) == {"val"}
    assert last.count("test") == 1 + 2 * len(FOLDERS) * 2


def test_the_table_shows_means_and_spreads(finished):
    out, _ = finished
    rows = json.loads((out / "table.json").read_text())["rows"]
    lines = (out / "table.md").read_text().splitlines()
    assert lines[2].startswith("| whole | – | 1.00× | 1.00× | – |")
    for row, line in zip(rows, lines[3:], strict=True):
        assert line.startswith(
            f"| {row['importance']} | {row['rounds']} | {statistics.mean(1 / m for m in row['macs']):.2f}"
        )
        cells = line.split(" | ")
        for cell, split, when in zip(
            cells[4:8], ("val", "val", "test", "test"), 2 * ("pruned", "recovered"), strict=True
        ):
            values = [scores[split] for scores in row[when]]
            assert cell == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def test_a_comparison_goes_on_where_it_was_interrupted(finished, tmp_path, monkeypatch, capfd):
    apply, calls = compare_pruning.apply, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return apply(*given)

    monkeypatch.setattr(compare_pruning, "apply", interrupted)
    out = tmp_path / "run"
    assert run("--out", out) == 130
    monkeypatch.undo()
    capfd.readouterr()
    assert run("--out", out) == 0
    shown, news = capfd.readouterr()
    assert [line for line in news.splitlines() if "done before" in line] == [
        f"{name}: done before" for name in ("teacher", *(f"{folder}/seed-0" for folder in FOLDERS[:2]))
    ]
    assert shown == (out / "table.md").read_text()
    rows, first = (json.loads((place / "table.json").read_text())["rows"] for place in (out, finished[0]))
    for row, other in zip(rows, first, strict=True):
        assert row["recovered"] == other["recovered"][:1]
        assert row["pruned"] == other["pruned"][:1]


def test_a_row_is_a_stage_of_rounds():
    config = CompareConfig(epochs=6, lr=0.02)
    stage = Way("l1", 2.0, 3).stage(config)
    prune, recover = stage.stages
    assert stage.rounds == 3
    assert (prune.target, prune.by, prune.importance) == (0.5, "macs", "l1")
    assert (recover.epochs, recover.lr) == (2, 0.02)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("importances", ("--importances", "[l2,l2]")),
        ("importances", ("--importances", "[magic]")),
        ("speedups", ("--speedups", "[1.0]")),
        ("rounds", ("--rounds", "[3]")),
        ("rounds", ("--rounds", "[0]")),
        ("rounds", ("--epochs", "0")),
        ("seeds", ("--seeds", "[]")),
        ("teacher.source", ("--teacher.source", "[a.safetensors,b.safetensors]")),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(capfd, tmp_path, field, arguments):
    assert run("--out", tmp_path / "run", *arguments) == 2
    errors = capfd.readouterr().err
    assert errors.startswith(f"error: {field}: ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
