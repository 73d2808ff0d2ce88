"""Rounds of pruning as a user runs them: the recipe of the README, in every command that takes stages, and a kill."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import students
from compress import Prune, Recover, Repeat
from experiments import cli, compress, distill, pipeline, search
from experiments.steps import chain
from kd.losses import Slimming

ROOT = Path(__file__).parents[2]
RECIPE = re.search(r"```yaml\n# slim.yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
STAGE = Repeat(3, (Prune(0.3, importance="bn"), Recover(4, source="reference")))


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "slim.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.mark.parametrize(
    ("command", "config", "given"),
    [
        ("compress", compress.CompressConfig, ["--model", "somewhere"]),
        ("distill", distill.DistillConfig, []),
        ("pipeline", pipeline.PipelineConfig, []),
    ],
)
def test_the_recipe_is_understood(command, config, given, recipe):
    parser = cli.parser(command, config)
    made = parser.instantiate(parser.parse_args(["--config", recipe, *given]))
    term = made.objective.terms["slimming"]
    assert isinstance(term.loss, Slimming)
    assert term.weight == 1e-4
    assert set(made.objective.build(made.loss)().losses) == {"KD", "CrossEntropy", "slimming"}
    if command != "distill":
        assert made.stages == [STAGE]


def test_candidates_of_a_search_may_be_pruned_in_rounds():
    stages = yaml.safe_dump(yaml.safe_load(RECIPE)["stages"], default_flow_style=True)
    parser = cli.parser("search", search.SearchCommandConfig)
    made = parser.instantiate(parser.parse_args(["--space.stages", stages]))
    assert made.space.stages == [STAGE]


def test_a_killed_run_goes_on_with_the_round_bit_for_bit(command, recipe, tmp_path):
    torch.manual_seed(0)
    model = students.create("cifar_resnet8", num_classes=10, in_chans=1, image_size=8, width=0.5)
    students.save(model, tmp_path / "small")
    given = ["--config", recipe, "--model", "small", "--teacher.source", "small", "--data.train_size", "256"]
    command("compress", "--out", "whole", *given, check=True)

    start = [sys.executable, "-m", "experiments.compress", "--out", "broken", *given]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(start, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    second = tmp_path / "broken/stages/01-repeat/round-2/02-recover"
    deadline = time.time() + 120
    while not list(second.glob("checkpoints/step-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.time() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    errors = command("compress", "--out", "broken", *given, check=True).stderr

    assert errors.count("recover: resumes at epoch") == 1
    assert "recover: epoch 1/4" in errors, "the third round is new"
    for round_ in (1, 2):
        assert (second.parents[1] / f"round-{round_}" / "02-recover" / "model.safetensors").exists()
    whole, broken = (chain(tmp_path / out)[-1] for out in ("whole", "broken"))
    assert broken["notes"] == whole["notes"]
    assert len(whole["curve"]) == 3 * 4
    assert [epoch["loss"] for epoch in broken["curve"]] == [epoch["loss"] for epoch in whole["curve"]]
    weights = [tmp_path / out / "stages/01-repeat/model.safetensors" for out in ("whole", "broken")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
