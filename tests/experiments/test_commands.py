"""The steps alone, one handing on to the next, as a user would chain them."""

import json

import pytest
import torch

import students
from compress import TorchExport, coded_model
from experiments import cli, compare_methods, compress, distill, evaluate, publish, report, search, train_teacher
from experiments.steps import chain
from kd.data import DataConfig, load
from kd.errors import InputError
from search import SearchConfig
from students import Blueprint

SHORT = ["--data.train_size", "256"]
TEACHER = ["--teacher.architecture", "cifar_resnet8", "--teacher.fit.epochs", "2", "--teacher.fit.warmup_epochs", "0"]
FIT = ["--fit.epochs", "2", "--fit.warmup_epochs", "0"]
STAGES = "[{class_path: compress.Prune, init_args: {target: 0.7}}, compress.Export]"


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Runs a command in an empty folder and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def call(name, config, main, *arguments):
        status = cli.run(name, config, main, [*map(str, arguments)])
        output, errors = capfd.readouterr()
        assert status == 0, errors
        return output

    return call


def test_one_step_hands_on_to_the_next(run, tmp_path):
    run("train_teacher", train_teacher.TrainTeacherConfig, train_teacher.main, "--out", "big", *SHORT, *TEACHER)
    given = ["--teacher.source", "big"]
    student = ["--student.name", "cifar_resnet8", "--student.width", "0.5"]
    run("distill", distill.DistillConfig, distill.main, "--out", "small", *SHORT, *given, *student, *FIT)
    arguments = ["--out", "smaller", "--model", "small/student", "--stages", STAGES]
    run("compress", compress.CompressConfig, compress.main, *arguments, *SHORT, *given, *FIT)
    assert [step["name"] for step in chain(tmp_path / "smaller")] == [
        *("teacher", "student", "stages/01-prune", "stages/02-export"),
    ]
    printed = run(
        "report", report.ReportCommandConfig, report.main, "--out", "smaller", "--report.latency_seconds", "0.1"
    )
    rows = {row["name"]: row for row in json.loads((tmp_path / "smaller/report.json").read_text())["rows"]}
    assert all(name in printed for name in rows)
    assert rows["teacher"]["params"] > rows["student"]["params"] > rows["01-prune"]["params"]
    for split, key in (("val", "top1_val"), ("test", "top1_test")):
        for model in ("smaller/stages/02-export", "smaller/stages/02-export/model.onnx"):
            told = run("evaluate", evaluate.EvaluateConfig, evaluate.main, "--model", model, *SHORT, "--split", split)
            assert json.loads(told)["top1"] == rows["02-export"][key]
    card = (tmp_path / "smaller/stages/02-export/README.md").read_text()
    assert f"| 02-export | {rows['02-export']['top1_val']:.2f} |" in card
    assert 'onnxruntime.InferenceSession("model.onnx")' in card
    arguments = ["--model", "smaller/stages/02-export", "--out", "card"]
    run("publish", publish.PublishConfig, publish.main, *arguments)
    assert (tmp_path / "card/README.md").read_text() == card


def test_several_teachers_teach_together(run, tmp_path):
    for out, name in (("first", "cifar_resnet8"), ("second", "cifar_resnet14")):
        architecture = ["--teacher.architecture", name, *TEACHER[2:]]
        run("train_teacher", train_teacher.TrainTeacherConfig, train_teacher.main, "--out", out, *SHORT, *architecture)
    given = ["--teacher.source", "[first, second]", "--teacher.weighting", "confidence"]
    student = ["--student.name", "cifar_resnet8", "--student.width", "0.5", *FIT]
    run("distill", distill.DistillConfig, distill.main, "--out", "small", *SHORT, *given, *student)
    kept = [students.load(tmp_path / "small/teacher" / number).blueprint.name for number in "01"]
    assert kept == ["cifar_resnet8", "cifar_resnet14"]
    assert students.load(tmp_path / "small/student").blueprint.width == 0.5
    options = ["--out", "both", "--methods", "KD", "--seeds", "0"]
    run("compare_methods", compare_methods.CompareConfig, compare_methods.main, *options, *SHORT, *given, *student)
    rows = json.loads((tmp_path / "both/methods.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "scratch", "KD"]
    assert rows[0]["agreement"] == [100]


def test_the_search_alone_leaves_a_blueprint(run, tmp_path):
    ranges = ["--space.name", "cifar_resnet8", "--space.width", "[0.25, 0.5]", "--search.trials", "2"]
    arguments = ["--out", "found", *SHORT, *TEACHER, *ranges, "--search.fit.epochs", "1"]
    run("search", search.SearchCommandConfig, search.main, *arguments)
    chosen = Blueprint.from_json((tmp_path / "found/search/blueprint.json").read_text())
    assert 0.25 <= chosen.width <= 0.5
    assert chosen.image_size == 8
    details = json.loads((tmp_path / "found/search/trials.json").read_text())
    assert [trial["state"] for trial in details["trials"]].count("trained") == 2
    assert SearchConfig().within == 1.0  # the rule of the choice: the smallest within a point of the best
    best = max(trial["top1"] for trial in details["trials"])
    close = [trial for trial in details["trials"] if trial["top1"] >= best - 1.0]
    assert min(trial["macs"] for trial in close) == next(
        trial["macs"] for trial in details["trials"] if trial["width"] == chosen.width
    )


def test_a_teacher_of_another_resolution_and_of_colour_is_measured_as_it_sees_the_data(run, tmp_path):
    """Its images are resized and the grey channel repeated, in training, in the report and by `evaluate`."""
    wide = students.create("cifar_resnet8", num_classes=10, in_chans=3, image_size=16)
    students.save(wide, tmp_path / "wide")
    student = ["--student.name", "cifar_resnet8", "--student.width", "0.25"]
    arguments = ["--out", "run", *SHORT, "--teacher.source", "wide", *student, *FIT]
    run("distill", distill.DistillConfig, distill.main, *arguments)
    run("report", report.ReportCommandConfig, report.main, "--out", "run", "--report.latency_seconds", "0.1")
    row = json.loads((tmp_path / "run/report.json").read_text())["rows"][0]
    told = json.loads(run("evaluate", evaluate.EvaluateConfig, evaluate.main, "--model", "wide", *SHORT))
    assert row["top1_val"] == told["top1"]
    small = students.create("cifar_resnet8", num_classes=10, in_chans=3, image_size=8)
    students.save(small, tmp_path / "small")
    at_8 = json.loads(run("evaluate", evaluate.EvaluateConfig, evaluate.main, "--model", "small", *SHORT))
    assert row["macs"] == told["macs"] == pytest.approx(4 * at_8["macs"], rel=0.01)


def test_stages_start_from_a_coded_file_and_from_no_other(tmp_path):
    model = students.create("cifar_resnet8", num_classes=10, in_chans=1, image_size=8, width=0.25)
    coded_model.write(model, tmp_path / "small.coded")
    found = compress.opened(tmp_path / "small.coded")
    assert all(torch.equal(value, found.net.state_dict()[name]) for name, value in model.net.state_dict().items())
    file = TorchExport().write(model, load(DataConfig(train_size=64)), tmp_path / "small.pt2")
    with pytest.raises(InputError, match=r"small\.pt2: is a file that runs: stages start from"):
        compress.opened(file.path)
