from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import kd.data
from kd.data import Augment, DataConfig
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import KD
from search import Result, SearchConfig, run, uniform
from students import Blueprint
from teachers import Cached, Teacher


def tiny_search(folder: Path) -> Result:
    base = Blueprint("cifar_resnet8", num_classes=10, in_chans=1, image_size=8)
    data = kd.data.load(DataConfig(train_size=64, augment=Augment(crop=1, views=2)))
    torch.manual_seed(0)
    teacher = Cached(Teacher(replace(base, width=0.5).build()), folder / "answers", data)
    config = SearchConfig(trials=2, fit=Fit(epochs=6, batch_size=32, trackers=()))
    space = uniform(base, width=(0.25, 0.5))
    return run(space, data, teacher, config, folder / "search", lambda: Objective({"kd": Term(KD())}))


def still(trials: list[Any]) -> list[dict[str, Any]]:
    return [{name: value for name, value in trial.items() if name != "seconds"} for trial in trials]


def test_a_search_killed_in_mid_trial_ends_as_one_that_was_not(tmp_path: Path) -> None:
    expected = tiny_search(tmp_path / "whole")
    code = "import pathlib, runpy, sys; runpy.run_path(sys.argv[1])['tiny_search'](pathlib.Path(sys.argv[2]))"
    victim = subprocess.Popen([sys.executable, "-c", code, __file__, str(tmp_path / "cut")], stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "cut" / "search" / "trials"
    while victim.poll() is None and not list(checkpoints.glob("*/checkpoints/step-*")):
        time.sleep(0.002)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    found = tiny_search(tmp_path / "cut")
    assert still(found.trials) == still(expected.trials)
    assert still(found.front) == still(expected.front)
    assert still([found.chosen]) == still([expected.chosen])
