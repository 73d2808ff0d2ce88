import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml

from compress import OnnxModel, measure
from experiments import cli, front, front_report, search
from experiments.front import FrontConfig, spread
from experiments.front_report import Found, Volume
from experiments.search import SearchCommandConfig
from experiments.steps import chain
from kd.checkpoint import load_json, save_json
from kd.data import DataConfig, load
from kd.evaluate import evaluate
from search import hypervolume
from search.storage import read_study

SEARCH = [
    *("--data.train_size", "128", "--teacher.architecture", "cifar_resnet8", "--teacher.fit.epochs", "1"),
    *("--teacher.fit.warmup_epochs", "0", "--space.name", "cifar_resnet8", "--space.width", "[0.25, 1.0]"),
    *("--search.trials", "2", "--search.fit.epochs", "1", "--data.augment", "{views: 1}"),
]
FULL = ["--fit.epochs", "1", "--fit.warmup_epochs", "0", "--report.latency_seconds", "0.1", "--seeds", "[0, 1]"]


def searched(out, *arguments):
    asked = ["--out", str(out), *SEARCH, *arguments]
    assert cli.run("search", SearchCommandConfig, search.main, asked) == 0
    return out


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A search of two candidates, both of which are said to be the front."""
    place = searched(tmp_path_factory.mktemp("found") / "search")
    edit(place, lambda details: details.update(front=sorted(details["trials"], key=lambda trial: trial["macs"])))
    return place


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """A search with a limit, of which what is beyond has an infinite cost: it is not known how large its file is."""
    limits = ["--search.goals", "[top1, file_bytes]", "--search.budget.params", "30000", "--search.trials", "4"]
    return searched(tmp_path_factory.mktemp("limited") / "search", *limits)


def edit(place, change):
    trials = place / "search/trials.json"
    details = load_json(trials)
    change(details)
    save_json(trials, details)


def files(place):
    return {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}


def retrained(out, found, *arguments):
    asked = ["--out", out, "--found", found, *FULL, *arguments]
    return cli.run("front", FrontConfig, front.main, [*map(str, asked)])


@pytest.fixture(scope="module")
def whole(found, tmp_path_factory):
    """A run that nothing disturbed, which left the search as it was; tests that change it copy it first."""
    before, out = files(found), tmp_path_factory.mktemp("whole") / "front"
    assert retrained(out, found) == 0
    assert files(found) == before
    assert list((out / "answers").iterdir())
    return out


def told(out):
    return json.loads((out / "front.json").read_text()), (out / "front.md").read_text()


def test_every_candidate_is_retrained_exported_and_measured_over_seeds(whole):
    report, text = told(whole)
    data = load(DataConfig("digits", val_fraction=0.2, train_size=128))
    assert len(report["rows"]) == 2
    for row in report["rows"]:
        paths = [whole / row["name"] / f"seed-{seed}/export/model.onnx" for seed in (0, 1)]
        for split in ("val", "test"):
            scores = [evaluate(OnnxModel(path), data.evaluation(split)).top1 for path in paths]
            assert row[f"top1_{split}"] == scores
            assert f"| {statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f} |" in text
        assert paths[0].read_bytes() != paths[1].read_bytes()
        assert row["file_bytes"] == paths[0].stat().st_size
        assert (row["params"], row["macs"]) == (row["found"]["params"], row["found"]["macs"])
        assert row["latency_ms"]["batch32"] > row["latency_ms"]["batch1"] > 0
    teacher = report["teacher"]
    assert teacher["file_bytes"] == (whole / "front/teacher-0.onnx").stat().st_size
    assert report["reference"] == {"top1": 10, "macs": teacher["macs"]}
    for name in ("front.png", "hypervolume.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in text


def test_few_trials_tell_no_importances_and_the_report_says_so(whole):
    report, text = told(whole)
    assert report["importances"] == {}
    assert "Importances and contour are left out" in text
    assert not (whole / "contour.png").exists()


def test_what_is_done_is_skipped_and_what_was_removed_runs_anew(found, whole, tmp_path, capfd):
    out = shutil.copytree(whole, tmp_path / "front")
    assert retrained(out, found) == 0
    first = capfd.readouterr()
    assert "starts" not in first.err
    last = [step["name"] for step in chain(out)][-3]
    assert last.endswith("seed-1/student")
    before = (out / last / "model.safetensors").read_bytes()
    shutil.rmtree(out / last)
    assert retrained(out, found) == 0
    assert capfd.readouterr().err.count("starts") == 3
    assert (out / last / "model.safetensors").read_bytes() == before


def test_a_search_with_limits_tells_importances_and_a_contour(limited, tmp_path):
    assert retrained(tmp_path / "front", limited, "--seeds", "[0]", "--most", "2") == 0
    report, text = told(tmp_path / "front")
    assert sum(report["importances"].values()) == pytest.approx(1)
    assert set(report["importances"]) == {"width", "depth"}
    for name in ("importances.png", "contour.png"):
        assert (tmp_path / "front" / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in text
    assert report["reference"] == {"top1": 10, "file_bytes": report["teacher"]["file_bytes"]}
    grown = [share for _, share in report["hypervolume"]["by_trial"]]
    assert len(grown) == 4, "of the trained ones"
    assert grown == sorted(grown)
    assert len(report["trials"]) > 4


def test_the_stages_of_a_candidate_are_applied_and_only_torch_is_exported(tmp_path):
    stages = "[{class_path: compress.Prune, init_args: {target: 0.7}}, compress.Export, compress.Quantize]"
    place = searched(tmp_path / "found", "--space.stages", stages, "--search.trials", "1")
    assert retrained(tmp_path / "front", place, "--seeds", "[3]") == 0
    (row,) = told(tmp_path / "front")[0]["rows"]
    steps = [step["name"].removeprefix(f"{row['name']}/seed-3/") for step in chain(tmp_path / "front")]
    assert steps == ["student", "stages/01-prune", "stages/02-export", "stages/03-quantize", "front"]
    file = OnnxModel(tmp_path / "front" / row["name"] / "seed-3/stages/03-quantize/model.onnx")
    assert row["file_bytes"] == file.path.stat().st_size
    assert row["macs"] == measure(file, (1, 8, 8)).macs


def test_the_losses_of_a_candidate_are_its_own(tmp_path, monkeypatch):
    (tmp_path / "my_space.py").write_text(
        "from kd.losses import KD\n"
        "import search\n\n\n"
        "def space(base):\n"
        "    losses = {'kd': lambda trial: KD(trial.suggest_float('temperature', 2, 8))}\n"
        "    return search.distilled(search.uniform(base), losses)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    place = searched(tmp_path / "found", "--space.kind", "my_space.space", "--search.trials", "1")
    seen = []

    def distil(plan, teacher, data, objective, *others):
        seen.append((objective.weights, objective.losses["kd"].temperature))
        raise KeyboardInterrupt

    monkeypatch.setattr(front.distill, "distill", distil)
    assert retrained(tmp_path / "front", place) == 130
    drawn = Found.read(place).front[0]["suggested"]
    assert seen == [({"kd": (drawn["weight"], 0), "labels": (1 - drawn["weight"], 0)}, drawn["temperature"])]


def test_candidates_that_are_left_out_are_told(found, tmp_path):
    place = shutil.copytree(found, tmp_path / "found")
    many = [Found.read(found).front[0] | {"number": number, "macs": 1000 + number} for number in range(4)]
    edit(place, lambda details: details.update(front=many))
    assert retrained(tmp_path / "front", place, "--most", "2", "--seeds", "[0]") == 0
    report, text = told(tmp_path / "front")
    assert [row["name"] for row in report["rows"]] == ["trial-00", "trial-03"]
    assert "The front has 4 candidates; 2, spread over it, were retrained." in text


@pytest.mark.parametrize(("most", "kept"), [(2, [0, 9]), (4, [0, 3, 6, 9]), (10, [*range(10)]), (99, [*range(10)])])
def test_what_is_retrained_is_spread_over_the_front(most, kept):
    assert [point["number"] for point in spread([{"number": number} for number in range(10)], most)] == kept


def test_what_diverges_under_all_seeds_is_told_and_left_out(found, tmp_path):
    assert retrained(tmp_path / "front", found, "--fit.lr", "1e9") == 0
    report, text = told(tmp_path / "front")
    assert report["rows"] == []
    assert "diverged under seed 0, 1" in text


def test_what_diverges_under_one_seed_counts_without_it(found, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "front")
    name = told(whole)[0]["rows"][0]["name"]
    (out / name / "seed-0/student/blueprint.json").unlink()  # what a training that diverged does not leave
    shutil.rmtree(out / "front")
    assert retrained(out, found) == 0
    report, text = told(out)
    assert [row["seeds"] for row in report["rows"]] == [[1], [0, 1]]
    assert f"{name} diverged under seed 0," in text
    assert len(report["hypervolume"]["val"]) == 2


def test_a_pipelines_run_folder_is_one_too(found, tmp_path):
    place = shutil.copytree(found, tmp_path / "pipeline")
    config = yaml.safe_load((place / "config.yaml").read_text())
    (place / "config.yaml").write_text(yaml.safe_dump(config | {"fit": {"epochs": 3}, "stages": ["compress.Prune"]}))
    ours, theirs = Found.read(place), Found.read(found)
    assert (ours.sections, ours.config.search) == (theirs.sections, theirs.config.search)


def test_another_front_wants_another_folder(found, whole, tmp_path, capfd):
    place = shutil.copytree(found, tmp_path / "found")
    edit(place, lambda details: details["front"][0].update(key="other"))
    out = shutil.copytree(whole, tmp_path / "front")
    config = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(config.replace(str(found), str(place)))
    assert retrained(out, place) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: front: ")
    assert "other" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--found", "nowhere"], ["found", "nowhere", "no run folder"]),
        (["--found", "unfinished"], ["found", "unfinished", "no finished search"]),
        (["--seeds", "[]"], ["seeds", "[]", "at least one"]),
        (["--seeds", "[1, 1]"], ["seeds", "[1, 1]", "once"]),
        (["--seeds", "[one]"], ["seeds", "one"]),
        (["--most", "1"], ["most", "1", "2 or more"]),
        (["--fit.epochs", "0"], ["fit.epochs", "0"]),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(found, tmp_path, monkeypatch, capfd, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unfinished").mkdir()
    shutil.copy(found / "config.yaml", tmp_path / "unfinished")
    assert retrained(tmp_path / "front", found, *arguments) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert not (tmp_path / "front").exists()


def test_a_teacher_that_is_gone_is_one_line(found, tmp_path, capfd):
    place = shutil.copytree(found, tmp_path / "found")
    shutil.rmtree(place / "teacher")
    assert retrained(tmp_path / "front", place) == 2
    assert capfd.readouterr().err.strip().splitlines()[-1].startswith("error: ")


def test_volume_is_a_share_of_the_box_between_chance_and_all_right():
    volume = Volume(("top1", "macs"), {"top1": 10.0, "macs": 1000})
    assert volume.of([]) == 0
    assert volume.of([{"top1": 100.0, "macs": 0}]) == 100
    points = [{"top1": 55.0, "macs": 500}, {"top1": 82.0, "macs": 750}]
    assert volume.of(points) == pytest.approx(100 * (0.5 * 0.5 + 0.25 * (0.8 - 0.5)))
    assert volume.of(points) == pytest.approx(100 * hypervolume(points, volume.reference) / (90 * 1000))


def test_volume_by_seed_takes_what_each_seed_reached():
    cost = {"params": 0, "file_bytes": 0, "latency_ms": {"batch1": 0.0}}
    rows = [
        {"seeds": [4, 5], "top1_val": [55.0, 100.0], "macs": 500} | cost,
        {"seeds": [5], "top1_val": [10.0], "macs": 1} | cost,
    ]
    assert Volume(("top1", "macs"), {"top1": 10.0, "macs": 1000}).by_seed(rows, "val") == [25, 50]


def test_rank_correlation_is_of_short_with_full_training():
    rows = [{"found": {"top1": top1}, "top1_val": full} for top1, full in ((1, [9, 1]), (2, [6, 6]), (3, [7, 0]))]
    assert front_report._rank_correlation(rows, "val") == pytest.approx(-0.5)  # 5, 6, 3.5: ranks 2, 3, 1
    assert front_report._rank_correlation(rows[:2], "val") is None
    assert front_report._rank_correlation([rows[0]] * 3, "val") is None


def test_importances_are_told_from_what_was_trained(limited):
    study = read_study(limited / "search")
    lone = front_report._of_accuracy(study)
    trained = [trial for trial in Found.read(limited).trials if trial["state"] == "trained"]
    assert [trial.value for trial in lone.trials] == [trial["top1"] for trial in trained]
    assert len(lone.trials) < len(study.trials)


def asked(port, path):
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return json.loads(answer.read())


def test_optuna_dashboard_opens_a_search_with_what_was_infeasible(limited, tmp_path):
    """As a user types it; candidates that were not trained are no error there."""
    study = read_study(limited / "search")
    assert any(max(trial.constraints.values()) > 0 for trial in study.trials)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "optuna-dashboard"
    command = [program, limited / "search/journal.log", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*map(str, command)], stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(300):
            try:
                studies = asked(port, "/api/studies")["study_summaries"]
                break
            except URLError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.1)
        (only,) = studies
        detail = asked(port, f"/api/studies/{only['study_id']}")
        shown = {trial["number"]: trial["values"] for trial in detail["trials"]}
        assert shown == {trial.number: trial.values for trial in study.trials}
        states = {trial["number"]: trial["state"] for trial in detail["trials"]}
        assert set(states.values()) == {"Complete"}
        assert asked(port, f"/api/studies/{only['study_id']}/param_importances")["param_importances"]
        assert " 500 " not in (tmp_path / "log").read_text()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)
