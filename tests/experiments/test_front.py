import json
import os
import re
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

import optuna
import pytest
import yaml

from compress import OnnxModel, measure
from experiments import cli, front, front_report, search
from experiments.front import FrontConfig, spread
from experiments.front_report import Found, Volume
from experiments.search import SearchCommandConfig
from experiments.steps import chain
from kd.data import DataConfig, load
from kd.evaluate import evaluate
from search import hypervolume
from search.storage import read_study

SEARCH = [
    *("--data.train_size", "128", "--teacher.architecture", "cifar_resnet8", "--teacher.fit.epochs", "1"),
    *("--teacher.fit.warmup_epochs", "0", "--space.name", "cifar_resnet8", "--space.width", "[0.25, 1.0]"),
    *("--search.trials", "2", "--search.fit.epochs", "1"),
]
FULL = ["--fit.epochs", "1", "--fit.warmup_epochs", "0", "--report.latency_seconds", "0.1", "--seeds", "[0, 1]"]


def searched(out, *arguments):
    asked = ["--out", str(out), *SEARCH, *arguments]
    assert cli.run("search", SearchCommandConfig, search.main, asked) == 0
    return out


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A search of two candidates; by parameters and accuracy, one is not better than the other in both."""
    return searched(tmp_path_factory.mktemp("found") / "search")


@pytest.fixture
def retrain(tmp_path, capfd):
    """Runs the command and returns its status, what it shows and its news."""

    def call(found, *arguments):
        asked = ["--out", tmp_path / "front", "--found", found, *FULL, *arguments]
        status = cli.run("front", FrontConfig, front.main, [*map(str, asked)])
        return status, *capfd.readouterr()

    return call


def told(tmp_path):
    return json.loads((tmp_path / "front/front.json").read_text())


def edited(found, to, change):
    """A copy of the search whose trials.json was changed."""
    shutil.copytree(found, to)
    trials = to / "search/trials.json"
    details = json.loads(trials.read_text())
    change(details)
    trials.write_text(json.dumps(details))
    return to


def both(details):
    """Whatever was trained is the front."""
    details["front"] = sorted(details["trials"], key=lambda trial: trial["macs"])


def test_every_candidate_is_retrained_exported_and_measured_over_seeds(found, retrain, tmp_path):
    place = edited(found, tmp_path / "found", both)
    status, shown, _ = retrain(place)
    assert status == 0
    report, data = told(tmp_path), load(DataConfig("digits", train_size=128))
    assert len(report["rows"]) == 2
    for row in report["rows"]:
        files = [tmp_path / "front" / row["name"] / f"seed-{seed}/export/model.onnx" for seed in (0, 1)]
        for split in ("val", "test"):
            scores = [evaluate(OnnxModel(file), data.evaluation(split)).top1 for file in files]
            assert row[f"top1_{split}"] == scores
            assert f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}" in front_text(tmp_path)
        assert files[0].read_bytes() != files[1].read_bytes()
        assert row["file_bytes"] == files[0].stat().st_size
        assert (row["params"], row["macs"]) == (row["found"]["params"], row["found"]["macs"])
        assert row["name"] in shown
    seconds = [epochs_of(tmp_path / "front" / row["name"] / "seed-0/student") for row in report["rows"]]
    assert seconds == [1, 1]
    assert report["teacher"]["macs"] > max(row["macs"] for row in report["rows"]) / 2
    assert report["teacher"]["file_bytes"] == (tmp_path / "front/front/teacher-0.onnx").stat().st_size
    for name in ("front.png", "hypervolume.png"):
        assert (tmp_path / "front" / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in front_text(tmp_path)


def front_text(tmp_path):
    return (tmp_path / "front/front.md").read_text()


def epochs_of(folder):
    return len((folder / "metrics.jsonl").read_text().splitlines())


def test_what_is_done_is_skipped_and_what_was_removed_runs_anew(found, retrain, tmp_path):
    _, shown, _ = retrain(found)
    status, again, news = retrain(found)
    assert status == 0
    assert again == shown
    assert "starts" not in news
    first = chain(tmp_path / "front")[0]["name"]
    before = (tmp_path / "front" / first / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "front" / first)
    _, _, news = retrain(found)
    assert f"{first}: starts" in news
    assert (tmp_path / "front" / first / "model.safetensors").read_bytes() == before


def test_the_teacher_and_its_stored_answers_are_those_of_the_search(found, retrain, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in found.rglob("*") if path.is_file()}
    assert retrain(found)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in found.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "front/teacher").exists()


def test_few_trials_tell_no_importances_and_the_report_says_so(found, retrain, tmp_path):
    retrain(found)
    assert told(tmp_path)["importances"] == {}
    assert "Importances and contour are left out" in front_text(tmp_path)
    assert not (tmp_path / "front/contour.png").exists()


def test_more_trials_tell_importances_and_a_contour(retrain, tmp_path):
    place = searched(tmp_path / "found", "--search.trials", "5", "--search.budget.params", "60000")
    assert retrain(place, "--most", "2")[0] == 0
    report = told(tmp_path)
    assert sum(report["importances"].values()) == pytest.approx(1)
    assert set(report["importances"]) == {"width", "depth"}
    for name in ("importances.png", "contour.png"):
        assert (tmp_path / "front" / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in front_text(tmp_path)
    infeasible = [trial for trial in report["trials"] if trial["state"] == "infeasible"]
    assert infeasible, "the test wants one, for its infinite cost"
    assert len(report["hypervolume"]["by_trial"]) == 5


def test_the_stages_of_a_candidate_are_applied_and_only_torch_is_exported(retrain, tmp_path):
    stages = "[{class_path: compress.Prune, init_args: {target: 0.7}}, compress.Export, compress.Quantize]"
    place = searched(tmp_path / "found", "--space.stages", stages, "--search.trials", "1")
    assert retrain(place, "--seeds", "[3]")[0] == 0
    (row,) = told(tmp_path)["rows"]
    steps = [step["name"].removeprefix(f"{row['name']}/seed-3/") for step in chain(tmp_path / "front")]
    assert steps == ["student", "stages/01-prune", "stages/02-export", "stages/03-quantize", "front"]
    file = OnnxModel(tmp_path / "front" / row["name"] / "seed-3/stages/03-quantize/model.onnx")
    assert row["file_bytes"] == file.path.stat().st_size
    assert row["macs"] == measure(file, (1, 8, 8)).macs


def test_the_losses_of_a_candidate_are_its_own(retrain, tmp_path, monkeypatch):
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
    monkeypatch.setattr(front.distill, "distill", lambda *given: seen.append(given[3]) or pytest.skip.Exception)
    with pytest.raises(AttributeError):
        retrain(place)
    drawn = Found.read(place).front[0]["suggested"]
    assert seen[0].weights == {"kd": drawn["weight"], "labels": 1 - drawn["weight"]}


def test_candidates_that_are_left_out_are_told(found, retrain, tmp_path):
    def many(details):
        (trial, *_) = details["trials"]
        details["front"] = [trial | {"number": number, "macs": 1000 + number} for number in range(4)]

    place = edited(found, tmp_path / "found", many)
    assert retrain(place, "--most", "2", "--seeds", "[0]")[0] == 0
    assert [row["name"] for row in told(tmp_path)["rows"]] == ["trial-00", "trial-03"]
    assert "The front has 4 candidates; 2, spread over it, were retrained." in front_text(tmp_path)


@pytest.mark.parametrize(("most", "kept"), [(2, [0, 9]), (4, [0, 3, 6, 9]), (10, [*range(10)]), (99, [*range(10)])])
def test_what_is_retrained_is_spread_over_the_front(most, kept):
    assert [point["number"] for point in spread([{"number": number} for number in range(10)], most)] == kept


def test_what_diverges_is_told_and_left_out(found, retrain, tmp_path):
    assert retrain(found, "--fit.lr", "1e9")[0] == 0
    report = told(tmp_path)
    assert report["rows"] == []
    assert "diverged under seed 0, 1" in front_text(tmp_path)
    shutil.rmtree(tmp_path / "front")
    assert retrain(found)[0] == 0
    (name, *_) = [row["name"] for row in told(tmp_path)["rows"]]
    other = tmp_path / "front" / name / "seed-0/student"
    for file in ("blueprint.json", "model.safetensors"):
        (other / file).unlink()
    shutil.rmtree(tmp_path / "front/front")
    retrain(found)
    assert told(tmp_path)["rows"][0]["seeds"] == [1]
    assert f"{name} diverged under seed 0," in front_text(tmp_path)


def test_a_pipelines_run_folder_is_one_too(found, tmp_path):
    place = shutil.copytree(found, tmp_path / "pipeline")
    config = yaml.safe_load((place / "config.yaml").read_text())
    (place / "config.yaml").write_text(yaml.safe_dump(config | {"fit": {"epochs": 3}, "stages": ["compress.Prune"]}))
    assert Found.read(place).config == Found.read(found).config


def test_another_front_wants_another_folder(found, retrain, tmp_path):
    retrain(found)
    place = edited(found, tmp_path / "found", lambda details: details["front"][0].update(key="other"))
    status, _, errors = retrain(place)
    assert status == 2
    assert "Traceback" not in errors


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
def test_bad_input_is_one_line_and_nothing_is_written(found, retrain, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unfinished").mkdir()
    shutil.copy(found / "config.yaml", tmp_path / "unfinished")
    status, _, errors = retrain(found, *arguments)
    assert status == 2
    line = errors.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert all(word in line for word in words), line
    assert not (tmp_path / "front").exists()


def test_a_teacher_that_is_gone_is_one_line(found, retrain, tmp_path):
    place = shutil.copytree(found, tmp_path / "found")
    shutil.rmtree(place / "teacher")
    status, _, errors = retrain(place)
    assert status == 2
    assert errors.strip().splitlines()[-1].startswith("error: ")


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


def asked(port, path):
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return json.loads(answer.read())


def test_optuna_dashboard_opens_a_search_with_what_was_infeasible(tmp_path):
    """As a user types it; the infinite costs of candidates that were not trained are no error there."""
    place = searched(tmp_path / "found", "--search.budget.params", "20000")
    study = read_study(place / "search")
    assert any(float("inf") in trial.values for trial in study.trials)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "optuna-dashboard"
    command = [program, place / "search/journal.log", "--port", str(port)]
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
        assert shown == {
            trial.number: ["inf" if value == float("inf") else value for value in trial.values]
            for trial in study.trials
        }
        states = {trial["number"]: trial["state"] for trial in detail["trials"]}
        assert set(states.values()) == {"Complete"}
        assert asked(port, f"/api/studies/{only['study_id']}/param_importances")["param_importances"]
        assert " 500 " not in (tmp_path / "log").read_text()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)
