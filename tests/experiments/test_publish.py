"""The card that a run's artefact gets, and the command that publishes it."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

import students
from compress import TorchExport, load_artefact
from experiments import cli, evaluate, publish
from kd.checkpoint import save_json
from kd.data import DataConfig, load


def row(name, kind, top1, **more):
    times = {"p50": 0.5, "p95": 0.75}
    return {
        "name": name,
        "kind": kind,
        "top1_val": top1 + 1,
        "top1_test": top1,
        "agreement": 90.0,
        "params": 1000,
        "nonzero": 1000,
        "macs": 5000,
        "file_bytes": 4000,
        "latency_ms": {"runtime": "onnxruntime", "threads": 3, "batch1": times, "batch32": times},
        "seconds": 1.0,
        "notes": [],
    } | more


REPORT = {
    "title": "digits",
    "command": "python -m experiments.pipeline --out run",
    "seed": 7,
    "data": {
        "source": "digits",
        "train": 100,
        "val": 20,
        "test": 30,
        "classes": 10,
        "channels": 1,
        "image_size": [8, 8],
        "notes": [],
    },
    "rows": [
        row("teacher", "teacher", 98.0),
        row("01-prune", "prune", 91.25, notes=["5 points lower."]),
        row("02-recover", "recover", 95.5),
    ],
    "front": [],
    "trials": [],
    "curves": {},
    "notes": [],
    "environment": {"processor": "Tiny CPU"},
    "config": {},
}


@pytest.fixture
def run(tmp_path):
    """A run folder with a report on it."""
    folder = tmp_path / "run"
    model = students.create("cifar_resnet8", num_classes=10, in_chans=1, image_size=8, width=0.25)
    for step in ("teacher", "stages/01-prune", "stages/02-recover"):
        students.save(model, folder / step)
    save_json(folder / "report.json", REPORT)
    return folder


def command(capfd, *arguments, name="publish", config=publish.PublishConfig, main=publish.main):
    status = cli.run(name, config, main, list(map(str, arguments)))
    return status, *capfd.readouterr()


def test_the_card_of_a_step_tells_what_led_to_it(run, tmp_path, capfd):
    status, _, errors = command(
        capfd, "--model", run / "stages/01-prune", "--out", tmp_path / "card", "--license", "mit"
    )
    assert status == 0, errors
    assert [path.name for path in (tmp_path / "card").iterdir()] == ["README.md"]
    text = (tmp_path / "card/README.md").read_text()
    assert "| 01-prune | 92.25 | 91.25 | 90.00 |" in text
    assert "| teacher |" in text
    assert "02-recover" not in text, "it came later"
    for words in ("5 points lower.", "teacher → 01-prune", "Tiny CPU, threads: 3", REPORT["command"], "Seed 7"):
        assert words in text, words
    data = ModelCard(text).data
    assert data.license == "mit"
    accuracy = {result.dataset_split: result.metric_value for result in data.eval_results}
    assert accuracy == pytest.approx({"validation": 0.9225, "test": 0.9125})
    assert {result.dataset_name for result in data.eval_results} == {"digits"}


def test_a_folder_of_no_run_has_a_card_without_figures(run, tmp_path, capfd):
    (run / "report.json").unlink()
    status, _, errors = command(capfd, "--model", run / "teacher", "--out", tmp_path)
    assert status == 0
    assert "no figures" in errors
    assert "No accuracy was measured" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "error: to: null: name a place on the hub"),
        (["--to", "ada/small"], "error: to: ada/small: there is no token"),
        (["--model", "nowhere", "--to", "ada/small"], "error: model: nowhere: holds neither"),
    ],
)
def test_what_cannot_be_published_is_told_in_one_line(run, monkeypatch, capfd, arguments, words):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    given = [] if "--model" in arguments else ["--model", run / "teacher"]
    status, output, errors = command(capfd, *given, *arguments)
    assert (status, output) == (2, "")
    assert errors.strip().splitlines()[-1].startswith(words)
    assert not list(run.rglob("README.md"))


def test_evaluate_scores_a_torch_file_and_refuses_other_images_and_classes(run, tmp_path, capfd):
    model = load_artefact(run / "teacher")
    file = TorchExport().write(model, load(DataConfig(train_size=64)), tmp_path / "small.pt2")
    given = {"name": "evaluate", "config": evaluate.EvaluateConfig, "main": evaluate.main}
    told = [
        json.loads(command(capfd, "--model", path, "--data.train_size", "64", **given)[1])
        for path in (file.path, run / "teacher")
    ]
    assert told[0]["top1"] == told[1]["top1"]
    assert told[0]["file_bytes"] == file.path.stat().st_size
    wrong = students.create("cifar_resnet8", num_classes=3, in_chans=1, image_size=8)
    students.save(wrong, tmp_path / "wrong")
    errors = command(capfd, "--model", tmp_path / "wrong", **given)[2]
    assert "knows 3 classes, the data has 10" in errors
    errors = command(capfd, "--model", file.path, "--data.image_size", "16", **given)[2]
    assert errors.strip().splitlines()[-1] == "error: images: (1, 16, 16): small.pt2 takes (1, 8, 8)"
    file.path.write_bytes(file.path.read_bytes()[:-9])
    assert "small.pt2: was truncated or altered" in command(capfd, "--model", file.path, **given)[2]


def test_figures_that_were_altered_reach_no_card(run, tmp_path, capfd):
    path = run / "report.json"
    for content in (path.read_text().replace("95.5", "99.5"), path.read_text()[:-20], "[]", '"'):
        path.write_text(content)
        status, _, errors = command(capfd, "--model", run / "stages/02-recover", "--out", tmp_path / "card")
        assert (status, errors.count("\n")) == (2, 1)
        assert f"error: file: {path}: " in errors
    assert not (tmp_path / "card").exists()


def test_only_a_card_is_replaced_by_a_card(run, tmp_path, capfd):
    given = ("--model", run / "stages/02-recover", "--out", tmp_path)
    assert command(capfd, *given)[0] == command(capfd, *given)[0] == 0
    (tmp_path / "README.md").write_text("---\ntitle: mine\n---\n\n- retort\n")
    status, _, errors = command(capfd, *given)
    assert (status, errors) == (
        2,
        f"error: out: {tmp_path}/README.md: is there already and no card of Retort's: name another folder\n",
    )
    assert "title: mine" in (tmp_path / "README.md").read_text()
    assert command(capfd, "--model", run / "stages/02-recover", "--out", "")[0] == 2


def test_the_card_of_a_file_has_the_figures_of_its_folder(run, tmp_path, capfd):
    file = TorchExport().write(
        load_artefact(run / "teacher"), load(DataConfig(train_size=64)), run / "stages/02-recover/model.pt2"
    )
    assert command(capfd, "--model", file.path, "--out", tmp_path)[0] == 0
    assert "| 02-recover | 96.50 | 95.50 |" in (tmp_path / "README.md").read_text()


def test_evaluate_refuses_what_answers_nan(run, tmp_path, capfd):
    broken = students.load(run / "teacher")
    with torch.no_grad():
        broken.net.linear.bias[3] = float("nan")
    students.save(broken, tmp_path / "broken")
    status, output, errors = command(
        capfd, "--model", tmp_path / "broken", name="evaluate", config=evaluate.EvaluateConfig, main=evaluate.main
    )
    assert (status, output) == (2, "")
    assert errors == f"error: model: {tmp_path}/broken: gives NaN or infinite logits\n"
