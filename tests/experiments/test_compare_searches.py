import json
import statistics

import numpy as np
import pytest

from compress import load_artefact
from experiments import cli, compare_searches
from experiments.compare_searches import CompareConfig, share, verdict, within
from kd.data import DataConfig, load
from kd.evaluate import evaluate

SMALL = [
    *("--data.train_size", "128", "--teacher.architecture", "cifar_resnet8", "--teacher.fit.epochs", "1"),
    *("--teacher.fit.warmup_epochs", "0", "--space.name", "cifar_resnet14", "--space.width", "[0.125,0.5]"),
    *("--search.fit.epochs", "2", "--search.fit.batch_size", "16", "--search.epochs", "8", "--search.rungs", "[1]"),
    *("--search.startup", "1", "--search.reduction", "8", "--seeds", "[0,1]"),
]
WAYS = ["search", "search without rungs", "nsga2", "random", "uniform"]


def run(capfd, *arguments):
    status = cli.run("compare_searches", CompareConfig, compare_searches.main, [*SMALL, *map(str, arguments)])
    return status, *capfd.readouterr()


def counted(front, reference, cells=2000):
    """The share of the cells of a grid that a point of the front dominates."""
    accuracy = reference["top1"] + (100 - reference["top1"]) * (np.arange(cells) + 0.5) / cells
    work = reference["macs"] * (np.arange(cells) + 0.5) / cells
    covered = np.zeros((cells, cells), bool)
    for top1, macs in front:
        covered |= (accuracy <= top1)[:, None] & (work >= macs)[None]
    return covered.mean()


def volumes(out, place):
    """What each way found with the seed in that place."""
    rows = json.loads((out / "table.json").read_text())["rows"]
    return {name: (found[place]["val"], found[place]["test"]) for name, found in rows.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder."""
    out = tmp_path_factory.mktemp("compared") / "run"
    assert cli.run("compare_searches", CompareConfig, compare_searches.main, [*SMALL, "--out", str(out)]) == 0
    return out


def test_the_volumes_of_the_table_are_those_that_are_counted(finished):
    table = json.loads((finished / "table.json").read_text())
    assert list(table["rows"]) == WAYS
    assert table["reference"]["top1"] == 10
    found = [row for rows in table["rows"].values() for row in rows]
    assert all(any(row[split] for row in found) for split in ("val", "test"))
    for row in found:
        for split, name in (("val", "top1"), ("test", "top1_test")):
            front = [(point[name], point["macs"]) for point in row["front"]]
            assert row[split] == pytest.approx(counted(front, table["reference"]), abs=2e-3)


def test_the_table_shows_means_and_spreads_and_differences_by_seed(finished):
    rows = json.loads((finished / "table.json").read_text())["rows"]
    written = (finished / "table.md").read_text()
    for name, found in rows.items():
        line = next(line for line in written.splitlines() if line.startswith(f"| {name} |"))
        for split in ("val", "test"):
            values = [row[split] for row in found]
            assert f"| {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} |" in line
            less = [row[split] - other[split] for row, other in zip(found, rows["uniform"], strict=True)]
            if name != "uniform":
                assert f"| {statistics.mean(less):.4f} ± {statistics.stdev(less):.4f} |" in line
    assert written.count("On val ") == written.count("On test ") == 4


def test_every_way_spends_the_epochs_and_only_the_search_stops_early(finished):
    rows = json.loads((finished / "table.json").read_text())["rows"]
    for name in WAYS[1:]:
        assert [(row["epochs"], row["networks"]) for row in rows[name]] == [(8, 4)] * 2
    assert all(7 <= row["epochs"] <= 8 for row in rows["search"])
    assert max(row["networks"] for row in rows["search"]) > 4


def test_uniform_scaling_goes_evenly_from_the_largest_to_the_least_width(finished):
    trials = json.loads((finished / "uniform/seed-1/trials.json").read_text())["trials"]
    scales = sorted((trial["width"], trial["depth"]) for trial in trials)
    assert np.allclose(scales, [(0.125, 0.25), (0.25, 0.5), (0.375, 0.75), (0.5, 1.0)])


def test_the_members_of_a_front_are_scored_on_the_test_images(finished):
    data = load(DataConfig(source="digits", val_fraction=0.2, train_size=128))
    front = json.loads((finished / "table.json").read_text())["rows"]["random"][0]["front"]
    for point in front:
        model = load_artefact(finished / "random/seed-0/trials" / point["key"])
        assert evaluate(model, data.evaluation("test")).top1 == point["top1_test"]
        assert evaluate(model, data.evaluation("val")).top1 == point["top1"]


def test_a_comparison_goes_on_where_it_was_interrupted(finished, capfd, tmp_path, monkeypatch):
    find, calls = compare_searches.find, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return find(*arguments)

    monkeypatch.setattr(compare_searches, "find", interrupted)
    arguments = ("--out", tmp_path / "run", "--seeds", "[1]")
    assert run(capfd, *arguments)[0] == 130
    monkeypatch.undo()
    status, shown, news = run(capfd, *arguments)
    assert status == 0
    assert [line for line in news.splitlines() if "done before" in line] == [
        f"{name}: done before" for name in ("teacher", "search/seed-1", "search-without-rungs/seed-1", "nsga2/seed-1")
    ]
    assert shown == (tmp_path / "run/table.md").read_text()
    assert volumes(tmp_path / "run", 0) == volumes(finished, 1)
    _, again, news = run(capfd, *arguments)
    assert again == shown
    assert "starts" not in news


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("seeds", ("--seeds", "[0,0]")),
        ("seeds", ("--seeds", "[]")),
        ("space", ("--space.name", "[cifar_resnet8,cifar_resnet14]")),
        ("space", ("--space.kind", "compound")),
        ("space", ("--space.image_sizes", "[8,16]")),
        ("search", ("--search.goals", "[top1,params]")),
        ("search", ("--search.budget.params", "1000")),
        ("search.epochs", ("--search.epochs", "3")),
        ("search.rungs", ("--search.rungs", "[2]")),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(capfd, tmp_path, field, arguments):
    status, _, errors = run(capfd, "--out", tmp_path / "run", *arguments)
    assert status == 2
    assert errors.startswith(f"error: {field}: ")
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_no_seed_is_told_in_one_line(capfd, tmp_path):
    status, _, errors = run(capfd, "--out", tmp_path / "run", "--seeds", "[0,one]")
    assert status == 2
    assert errors.count("\n") == 1
    assert "seeds" in errors


def test_a_candidate_that_ends_beyond_the_epochs_does_not_count():
    trials = [{"epochs": 3}, {"epochs": None}, {"epochs": 1}, {"epochs": 3}]
    assert within(trials, 7) == [{"epochs": 3}, {"epochs": 1}, {"epochs": 3}]
    assert within(trials, 6) == within(trials, 4) == [{"epochs": 3}, {"epochs": 1}]


def test_a_share_is_that_of_the_box():
    reference = {"top1": 10.0, "macs": 200}
    assert share([{"top1": 100.0, "macs": 0}], reference) == 1
    assert share([{"top1": 55.0, "macs": 100}], reference) == 0.25
    assert share([{"top1": 90.0, "macs": 200}, {"top1": 10.0, "macs": 1}], reference) == 0


@pytest.mark.parametrize(
    ("above", "said"),
    [
        (
            [0.1, 0.2, 0.3],
            "On test search covers more than random: +0.2000 ± 0.0577, mean and standard error of 3 seeds.",
        ),
        ([-0.1, -0.2, -0.3], "On test search covers less than random: -0.2000 ± 0.0577"),
        ([-0.1, 0.2, 0.3], "On test no difference between search and random is shown: +0.1333 ± 0.1202"),
        ([0.0, 0.0], "On test no difference between search and random is shown: +0.0000 ± 0.0000"),
        ([0.1], "On test search less random is +0.1000: one seed shows nothing."),
    ],
)
def test_nothing_is_claimed_within_two_standard_errors(above, said):
    assert verdict("test", "random", above).startswith(said)
