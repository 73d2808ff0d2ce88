"""Bad input ends in one line that names the field and what is allowed, status 2, no traceback, nothing written."""

import io
import json

import pytest
import torch
from PIL import Image

from compress import Prune
from experiments import cli, compress, distill, evaluate, pipeline, report, search, train_teacher
from kd.checkpoint import save_tree
from kd.errors import InputError

COMMANDS = {
    "pipeline": (pipeline.PipelineConfig, pipeline.main),
    "train_teacher": (train_teacher.TrainTeacherConfig, train_teacher.main),
    "distill": (distill.DistillConfig, distill.main),
    "search": (search.SearchCommandConfig, search.main),
    "compress": (compress.CompressConfig, compress.main),
    "evaluate": (evaluate.EvaluateConfig, evaluate.main),
    "report": (report.ReportCommandConfig, report.main),
}


def refused(capfd, name, *arguments):
    """The one line with which a command refuses."""
    status = cli.run(name, *COMMANDS[name], argv=list(map(str, arguments)))
    lines = capfd.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert status == 2, lines
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0]
    return errors[0].removeprefix("error: ")


def picture(path, side=8, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), 128).save(path)


def image_folder(root, classes=("a", "b"), count=10):
    for split in ("train", "test"):
        for label in classes:
            for number in range(count):
                picture(root / split / label / f"{number}.png")
    return root


ROUNDS = "[{class_path: compress.Repeat, init_args: {rounds: %d, stages: [%s]}}]"
NULL = "[{class_path: compress.LowRank, init_args: {%s}}]"
WORDS = [
    ("pipeline", ["--data.source", "no/such-data"], ["data.source", "no/such-data"]),
    ("pipeline", ["--data.sauce", "digits"], ["data.sauce"]),
    ("pipeline", ["--data.val_fraction", "1.0"], ["data.val_fraction", "1.0"]),
    ("pipeline", ["--data.val_fraction", "0"], ["data.val_fraction"]),
    ("pipeline", ["--data.train_size", "0"], ["data.train_size", "0"]),
    ("pipeline", ["--data.train_size", "-5"], ["data.train_size", "-5"]),
    ("pipeline", ["--data.image_size", "-1"], ["data.image_size", "-1"]),
    ("pipeline", ["--data.augment.mixup", "-1"], ["data.augment.mixup", "-1"]),
    ("pipeline", ["--data.augment.crop", "9"], ["data.augment.crop", "9"]),
    ("pipeline", ["--teacher.source", "[a, b]"], ["teacher.source", "a", "b", "one teacher", "distill"]),
    ("distill", ["--teacher.source", "[]"], ["teacher.source", "[]", "at least one"]),
    ("distill", ["--teacher.weighting", "confidence"], ["teacher.weighting", "confidence", "list of sources"]),
    ("pipeline", ["--teacher.architecture", "cifar_resnet2"], ["cifar_resnet2", "did you mean", "cifar_resnet20"]),
    ("pipeline", ["--teacher.source", "no_such_net"], ["teacher.source", "no_such_net"]),
    ("pipeline", ["--teacher.fit.epochs", "0"], ["fit.epochs", "0", "above 0"]),
    ("pipeline", ["--teacher.image_size", "16"], ["teacher.image_size", "16"]),
    ("pipeline", ["--teacher.source", "/", "--teacher.image_size", "16"], ["teacher.image_size", "16", "folder"]),
    ("pipeline", ["--teacher.fit.epochs", "many"], ["teacher.fit.epochs", "many"]),
    ("pipeline", ["--fit.lr", "0"], ["fit.lr", "above 0"]),
    ("pipeline", ["--fit.batch_size", "-4"], ["fit.batch_size", "-4"]),
    ("pipeline", ["--fit.precision", "fp8"], ["fit.precision", "fp8"]),
    ("pipeline", ["--search.trials", "0"], ["search.trials", "0"]),
    ("pipeline", ["--space.width", "[0.9, 0.1]"], ["space.width"]),
    ("pipeline", ["--space.name", "resnet18000"], ["resnet18000"]),
    ("pipeline", ["--loss", "kd.losses.Nothing"], ["loss", "kd.losses.Nothing"]),
    ("pipeline", ["--loss", "nowhere.Loss"], ["loss", "nowhere.Loss"]),
    ("pipeline", ["--loss.temperature", "-1"], ["temperature", "-1"]),
    ("pipeline", ["--objective.weight", "-0.5"], ["objective.weight", "-0.5"]),
    ("pipeline", ["--stages", "[{class_path: compress.Prune, init_args: {target: 1.0}}]"], ["prune.target", "1.0"]),
    ("pipeline", ["--stages", "[{class_path: compress.LowRank, init_args: {target: 0}}]"], ["lowrank.target", "0"]),
    ("pipeline", ["--stages", "[{class_path: compress.Quantize, init_args: {mode: int3}}]"], ["mode", "int3"]),
    ("pipeline", ["--stages", ROUNDS % (0, "compress.Prune")], ["repeat.rounds", "0"]),
    ("pipeline", ["--stages", ROUNDS % (2, "compress.Export")], ["repeat.stages", "export"]),
    ("pipeline", ["--stages", "[{class_path: compress.Melt}]"], ["stages", "compress.Melt"]),
    ("pipeline", ["--report.threads", "0"], ["report.threads", "0"]),
    ("pipeline", ["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ("distill", ["--student.name", "restnet18"], ["student.name", "restnet18", "resnet18"]),
    ("distill", ["--student.width", "0"], ["width", "0"]),
    ("distill", ["--fit.trackers", "[aim]"], ["fit.trackers", "aim", "pip install aim"]),
    ("distill", ["--fit.trackers", "[diary]"], ["fit.trackers", "diary", "tensorboard"]),
    ("distill", ["--out", "/proc/run"], ["/proc/run"]),
    ("distill", ["--student.name", "tv_squeezenet1_1"], ["image_size", "8"]),
    ("distill", ["--student.name", "tv_resnet18", "--student.width", "0.5"], ["width", "0.5"]),
    ("compress", ["--model", "nowhere"], ["model", "nowhere"]),
    ("compress", ["--model", "x", "--stages", NULL % "target: null"], ["lowrank.target", "null"]),
    ("compress", ["--model", "x", "--stages", NULL % "method: null"], ["lowrank.method", "null"]),
    ("evaluate", ["--model", "nowhere"], ["nowhere"]),
    ("evaluate", ["--model", "nowhere.onnx"], ["nowhere.onnx"]),
    ("report", ["--out", "nowhere"], ["out", "nowhere"]),
]


@pytest.mark.parametrize(("name", "arguments", "words"), WORDS, ids=lambda value: None)
def test_a_value_that_cannot_be_is_refused_in_one_line(capfd, tmp_path, monkeypatch, name, arguments, words):
    monkeypatch.chdir(tmp_path)
    out = [] if name in ("evaluate", "report") else ["--out", tmp_path / "run"]
    line = refused(capfd, name, *out, *arguments)
    assert all(word in line for word in words), line
    assert not list(tmp_path.iterdir()), "nothing may be written"


@pytest.mark.parametrize("content", ["fit: {epochs: 3", "3", "", "fti: {epochs: 3}", "fit: {epochs: many}"])
def test_a_recipe_that_is_none_is_refused(capfd, tmp_path, content):
    (tmp_path / "my.yaml").write_text(content)
    line = refused(capfd, "distill", "--out", tmp_path / "run", "--config", tmp_path / "my.yaml")
    assert any(word in line for word in ("my.yaml", "fti", "many"))
    assert not (tmp_path / "run").exists()


def test_broken_data_is_refused(capfd, tmp_path):
    one = image_folder(tmp_path / "one", classes=("a",))
    assert (
        "two classes" in (line := refused(capfd, "distill", "--out", tmp_path / "run", "--data.source", one))
        or "class" in line
    )
    broken = image_folder(tmp_path / "broken")
    (broken / "train" / "b" / "7.png").write_bytes(b"no picture")
    assert "7.png" in refused(capfd, "distill", "--out", tmp_path / "run", "--data.source", broken)
    sizes = image_folder(tmp_path / "sizes")
    picture(sizes / "train" / "a" / "3.png", side=9)
    assert "data.image_size" in refused(capfd, "distill", "--out", tmp_path / "run", "--data.source", sizes)
    (tmp_path / "empty").mkdir()
    assert "data.source" in refused(capfd, "distill", "--out", tmp_path / "run", "--data.source", tmp_path / "empty")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "train.parquet").write_bytes(b"PAR1")
    assert "train.parquet" in refused(capfd, "distill", "--out", tmp_path / "run", "--data.source", tmp_path / "torn")
    assert not (tmp_path / "run").exists()


def test_a_label_outside_the_classes_is_named(capfd, tmp_path):
    import pyarrow
    import pyarrow.parquet
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "png")
    rows = {"img": [{"bytes": buffer.getvalue(), "path": None}] * 40, "label": [0, 1] * 20}
    made = Dataset.from_dict(rows, features=Features(img=ImageFeature(), label=ClassLabel(names=["a", "b"])))
    made.to_parquet(tmp_path / "train.parquet")
    made.to_parquet(tmp_path / "test.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "train.parquet")
    labels = pyarrow.array([0, 1] * 19 + [0, 7])
    table = table.set_column(table.schema.get_field_index("label"), table.schema.field("label"), labels)
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    line = refused(capfd, "distill", "--out", tmp_path / "run", "--data.source", tmp_path)
    assert "label" in line
    assert "7" in line


def teacher_arguments(path, architecture="cifar_resnet8"):
    return ["--teacher.source", path, "--teacher.architecture", architecture, "--teacher.normalize", "[[0.5], [0.5]]"]


def test_a_checkpoint_that_is_not_the_teachers_is_refused(capfd, tmp_path):
    import students

    model = students.create("cifar_resnet8", num_classes=10, in_chans=1, image_size=8)
    students.save(model, tmp_path / "good")
    weights = tmp_path / "good" / "model.safetensors"
    run = ["--out", tmp_path / "run"]
    assert (
        "another" in (line := refused(capfd, "distill", *run, *teacher_arguments(weights, "cifar_resnet20")))
        or "layer" in line
    )
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(weights.read_bytes()[:-100])
    assert "torn.safetensors" in refused(capfd, "distill", *run, *teacher_arguments(torn))
    pickled = tmp_path / "pickled.pt"
    torch.save(model, pickled)
    assert "pickled.pt" in refused(capfd, "distill", *run, *teacher_arguments(pickled))
    assert "teacher.architecture" in refused(
        capfd, "distill", *run, "--teacher.source", weights, "--teacher.architecture", "null"
    )
    three = students.create("cifar_resnet8", num_classes=3, in_chans=1, image_size=8)
    students.save(three, tmp_path / "three")
    line = refused(capfd, "distill", *run, "--teacher.source", tmp_path / "three")
    assert "3" in line
    assert "10" in line
    line = refused(capfd, "compress", *run, "--model", tmp_path / "three", "--stages", "[compress.Prune]")
    assert "10" in line
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_this_run_is_refused(capfd, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    assert "holds no run" in refused(capfd, "distill", "--out", out)
    (tmp_path / "file").write_text("")
    assert "file" in refused(capfd, "distill", "--out", tmp_path / "file")
    assert "file" in refused(capfd, "distill", "--out", tmp_path / "file" / "below")
    assert (out / "thesis.tex").read_text() == "years of work"


def test_a_full_disk_is_told_in_one_line(capfd, tmp_path, monkeypatch):
    import os

    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "run"))

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in refused(capfd, "distill", "--out", tmp_path / "run")


def test_a_torn_checkpoint_of_another_program_is_no_checkpoint(tmp_path):
    from kd.checkpoint import load_tree

    save_tree(tmp_path / "x", {"a": 1})
    (tmp_path / "x").write_bytes(json.dumps({}).encode())
    with pytest.raises(InputError, match="torn"):
        load_tree(tmp_path / "x")


def test_stages_refuse_by_their_own_field():
    with pytest.raises(InputError, match=r"prune\.target: 1: "):
        Prune(target=1)
