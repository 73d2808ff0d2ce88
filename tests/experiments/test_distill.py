"""The distill command as a user runs it: a loss of their own, two processes, a kill, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml

import students

RECIPES = Path(__file__).parents[2] / "experiments" / "recipes"
SMALL = [
    *("--data.train_size", "256", "--teacher.architecture", "cifar_resnet8", "--teacher.width", "0.5"),
    *("--teacher.fit.epochs", "2", "--teacher.fit.warmup_epochs", "0"),
    *("--student.name", "cifar_resnet8", "--student.width", "0.25"),
    *("--fit.epochs", "3", "--fit.warmup_epochs", "0", "--fit.lr", "0.05"),
]
COSINE = """
from torch import nn
from torch.nn.functional import cosine_similarity

from kd.batch import Needs
from kd.loss import Loss


class Cosine(Loss):
    needs = Needs(embedding=True)

    def __init__(self, power: float = 1.0):
        super().__init__()
        self.power = power

    def bind(self, student, teacher, data):
        self.project = nn.Linear(student.embedding, teacher.embedding)

    def forward(self, student, teacher, batch):
        gap = 1 - cosine_similarity(self.project(student.embedding), teacher.embedding)
        return (gap**self.power).mean()
"""


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_loss_in_a_file_of_the_users_own_trains_through_its_import_path(command, tmp_path):
    (tmp_path / "my_losses.py").write_text(COSINE)
    recipe = {"loss": {"class_path": "my_losses.Cosine", "init_args": {"power": 2.0}}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(recipe))
    command("distill", "--config", "my.yaml", "--out", "run", *SMALL, check=True)
    losses = [epoch["loss"] for epoch in metrics(tmp_path / "run" / "student")]
    assert losses[-1] < losses[0]
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["loss"] == recipe["loss"]


def test_a_student_of_simkd_ships_with_the_classifier_of_its_teacher(command, tmp_path):
    command("distill", "--out", "run", "--loss", "kd.losses.SimKD", *SMALL, check=True)
    student, teacher = (students.load(tmp_path / "run" / name) for name in ("student", "teacher"))
    assert torch.equal(student.net.classifier.weight, teacher.get_classifier().weight)


def test_help_and_configuration_are_printed_and_write_nothing(command, tmp_path):
    names = ("pipeline", "train_teacher", "search", "distill", "compress", "evaluate", "report", "front")
    with ThreadPoolExecutor(2) as pool:
        shown = list(pool.map(lambda name: command(name, "--help", check=True).stdout, names))
    assert all("Example:" in each for each in shown)
    for name in ("search", "distill", "compress", "compare_methods", "compare_searches"):  # one recipe serves them all
        given = ("--model", "some/folder") if name == "compress" else ()
        recipe = RECIPES / "cifar10.yaml"
        printed = yaml.safe_load(command(name, "--config", recipe, *given, "--print_config", check=True).stdout)
        assert printed["data"]["source"] == "uoft-cs/cifar10"
    for out in (("--out", "mine", "--config", recipe), ("--config", recipe, "--out", "mine")):
        printed = yaml.safe_load(command("distill", *out, "--print_config", check=True).stdout)
        assert printed["out"] == "mine"  # wherever it stands
    printed = yaml.safe_load(command("pipeline", "--print_config", check=True).stdout)
    assert [stage["class_path"].rpartition(".")[2] for stage in printed["stages"]] == [
        *("Prune", "Recover", "LowRank", "Recover", "Export", "Quantize"),
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(command, tmp_path, number):
    command("distill", "--out", "whole", *SMALL, check=True)
    start = [sys.executable, "-m", "experiments.distill", "--out", "broken", *SMALL]
    root = str(Path(__file__).parents[2])
    env = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    for sign in ("teacher/checkpoints", "student/checkpoints"):  # once in the teacher, once in the student
        process = subprocess.Popen(start, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
        deadline = time.time() + 120
        while not list((tmp_path / "broken").glob(f"{sign}/step-*")):
            assert process.poll() is None, process.stderr.read()
            assert time.time() < deadline
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        if number == signal.SIGINT and process.returncode != 0:
            assert process.returncode == 130
            assert "goes on from here" in errors
            assert "Traceback" not in errors
    command("distill", "--out", "broken", *SMALL, check=True)
    for step in ("teacher", "student"):
        weights = [(tmp_path / run / step / "model.safetensors").read_bytes() for run in ("whole", "broken")]
        assert weights[0] == weights[1]


def test_two_processes_give_the_losses_of_one_with_twice_the_batch(command, tmp_path):
    """On nets without batch norm: a ViT. Only the first process writes."""
    net = ["--student.name", "vit_tiny_patch16_224", "--student.width", "0.1", "--student.depth", "0.1"]
    teacher = ["--teacher.architecture", "vit_tiny_patch16_224", "--teacher.width", "0.1", "--teacher.depth", "0.1"]
    shared = [*SMALL, *net, *teacher, "--teacher.fit.epochs", "1", "--fit.optimizer", "momentum"]
    for out, extra, launcher in (
        ("one", ["--fit.batch_size", "64", "--teacher.fit.batch_size", "64"], ()),
        ("two", ["--fit.batch_size", "32", "--teacher.fit.batch_size", "32"], LAUNCH),
    ):
        command("distill", "--out", out, *shared, *extra, launcher=launcher, check=True)
    one, two = (metrics(tmp_path / out / "student") for out in ("one", "two"))
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["top1_val"] == pytest.approx(a["top1_val"], abs=0.5)


LAUNCH = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "-m")
