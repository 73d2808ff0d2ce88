import json

import pytest

import students
from compress import CodedModel, OnnxModel, load_artefact, measure
from experiments import cli, compare_techniques
from experiments.compare_techniques import NAMES, CompareConfig, Rung, climb, ladders
from kd.data import Data, DataConfig, load
from kd.evaluate import evaluate

SMALL = [
    *("--data.train_size", "256", "--teacher.architecture", "cifar_resnet8", "--teacher.width", "1"),
    *("--teacher.fit.epochs", "3", "--epochs", "1", "--student_epochs", "1", "--lr", "0.02", "--latency_seconds", "1"),
    *("--widths", "[0.5]", "--kept", "[0.8,0.5]", "--zeros", "[0.5,0.9]", "--bits", "[4]"),
]
CHOSEN = ["spatial factors", "narrower student", "Deep Compression", "8-bit integers, static"]
OWN = "my own"
WAYS = {OWN: [{"class_path": "compress.Sparsify", "init_args": {"sparsity": 0.25}}]}
COMMAND = ["--techniques", json.dumps(CHOSEN), "--ways", json.dumps(WAYS), "--within", 50]


def run(*arguments):
    return cli.run("compare_techniques", CompareConfig, compare_techniques.main, [*SMALL, *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder, and the splits that were read before and in its last step."""
    out, read = tmp_path_factory.mktemp("techniques") / "run", ([], [])
    evaluation, compare = Data.evaluation, compare_techniques.compare
    with pytest.MonkeyPatch.context() as patch:
        last = []
        patch.setattr(compare_techniques, "compare", lambda *given: last.append(1) or compare(*given))

        def evaluated(data, split, *given, **more):
            read[bool(last)].append(split)
            return evaluation(data, split, *given, **more)

        patch.setattr(Data, "evaluation", evaluated)
        assert run("--out", out, *COMMAND) == 0
    return out, read


def told(out):
    return json.loads((out / "table.json").read_text())


def test_each_row_is_of_the_net_that_its_technique_left(finished):
    out, _ = finished
    data = load(DataConfig(source="digits", val_fraction=0.2, train_size=256))
    rows = told(out)["rows"]
    assert [row["technique"] for row in rows] == ["whole", *CHOSEN, OWN]
    for row in rows:
        artefact = load_artefact(out / row["folder"])
        for split in ("val", "test"):
            assert row[split] == evaluate(artefact, data.evaluation(split)).top1
        cost = measure(artefact, data.facts.image_shape)
        assert (row["params"], row["macs"], row["nonzero"]) == (cost.params, cost.macs, cost.nonzero)
    whole, spatial, narrow, coded, integer, own = rows
    assert spatial["macs"] / whole["macs"] == pytest.approx(0.5, abs=0.03)  # which 50 points allow
    assert narrow["params"] < 0.4 * whole["params"]
    assert coded["nonzero"] < 0.6 * whole["nonzero"]
    assert own["nonzero"] / whole["nonzero"] == pytest.approx(0.75, abs=0.01)
    assert isinstance(load_artefact(out / coded["folder"]), CodedModel)
    assert isinstance(load_artefact(out / integer["folder"]), OnnxModel)
    assert coded["bytes"] < integer["bytes"] < whole["bytes"] / 2


def test_every_form_is_timed_where_it_runs(finished):
    rows = told(finished[0])["rows"]
    for row in rows:
        runtimes = ["onnxruntime"] if row["technique"].startswith("8-bit") else ["torch", "onnxruntime"]
        assert list(row["ms"]) == runtimes
        assert all(found[f"batch{batch}"] > 0 for found in row["ms"].values() for batch in (1, 32))


def test_the_test_images_are_read_in_the_last_step_alone(finished):
    before, last = finished[1]
    assert set(before) == {"val"}
    assert last.count("test") == len(told(finished[0])["rows"])


def test_the_table_says_how_many_times_smaller(finished):
    out, _ = finished
    rows, lines = told(out)["rows"], (out / "table.md").read_text().splitlines()
    for row, line in zip(rows, lines[2:], strict=False):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        held = "" if row["held"] else " (too much)"
        assert cells[:4] == [row["technique"] + held, row["setting"], f"{row['val']:.2f}", f"{row['test']:.2f}"]
        assert cells[7] == f"{rows[0]['bytes'] / row['bytes']:.2f}×"


def test_the_same_command_again_does_nothing_twice(finished, capfd):
    out, _ = finished
    assert run("--out", out, *COMMAND) == 0
    news = capfd.readouterr().err
    assert "starts" not in news
    assert "comparison: done before" in news


@pytest.mark.parametrize(("limit", "expected"), [(101.0, 1), (0.0, 2)])
def test_a_ladder_is_left_at_the_first_rung_that_does_not_hold(finished, monkeypatch, limit, expected):
    out, _ = finished
    monkeypatch.setattr(compare_techniques, "compress", lambda stages, start, *given, **more: start)

    class Here:
        data, out = load(DataConfig(source="digits", val_fraction=0.2, train_size=256)), finished[0]

    rows = climb("weights pruned", [Rung("a", ()), Rung("b", ())], out / "teacher", Here, Here, limit)
    assert [row["setting"] for row in rows] == ["a", "b"][:expected]


def test_of_a_technique_that_holds_nowhere_the_mildest_is_shown_and_marked(finished, tmp_path):
    out, _ = finished
    data = load(DataConfig(source="digits", val_fraction=0.2, train_size=256))
    climbed = {"weights pruned": [{"technique": "weights pruned", "setting": "a", "val": 12.0, "folder": "teacher"}]}
    students.save(students.load(out / "teacher"), tmp_path / "teacher")
    compare_techniques.compare(climbed, 101.0, CompareConfig(latency_seconds=0.1), data, tmp_path)
    assert [row["held"] for row in told(tmp_path)["rows"]] == [False, False]
    assert "| weights pruned (too much) | a |" in (tmp_path / "table.md").read_text()


def test_every_technique_has_settings_by_default():
    found = ladders(CompareConfig())
    assert tuple(found) == NAMES
    assert all(found.values())


@pytest.mark.parametrize(
    "words",
    [
        ("--techniques", "[magic]"),
        ("--techniques", "[]"),
        ("--within", "-1"),
        ("--kept", "[1.5]"),
        ("--zeros", "[1]"),
        ("--bits", "[9]"),
        ("--widths", "[2]"),
        ("--teacher.source", "[a,b]"),
        ("--ways", '{"whole": [{"class_path": "compress.Export"}]}'),
        ("--ways", '{"mine": []}'),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, capfd, words):
    assert run("--out", tmp_path / "run", *words) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
