"""A fit of two processes: they end alike, what they scored is what is kept, and only the first writes.

Run as a script, this file is one of the two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import kd
from kd.checkpoint import load_tree, save_tree
from kd.data import Augment, DataConfig, load
from kd.evaluate import evaluate
from kd.fit import Fit, fit
from kd.regimes import Supervised


def train(folder, rank):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=1.0), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10))
    data = load(DataConfig(train_size=200, augment=Augment()))
    history = fit(Supervised(model), data, Fit(epochs=2, batch_size=10, lr=0.1), folder / f"written by {rank}")
    whole = evaluate(model, data.evaluation("val"))  # by both, so that each sample counts twice: the same share
    found = {"model": model.state_dict(), "whole": whole.top1, "best": history.best_top1}
    save_tree(folder / f"{rank}.safetensors", found)


def test_processes_end_alike_and_only_the_first_writes(tmp_path):
    shared = {**os.environ, "PYTHONPATH": str(Path(kd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    ranks = [
        {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"}
        for rank in "01"
    ]
    started = [subprocess.Popen(command, env=shared | rank) for rank in ranks]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    first, second = (load_tree(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, value in first["model"].items():
        assert torch.equal(second["model"][name], value), name
    assert first["whole"] == first["best"] == second["best"]
    written = {path.name for path in (tmp_path / "written by 0").iterdir()}
    assert written == {"checkpoints", "metrics.jsonl", "events"}
    assert not list(tmp_path.rglob("written by 1/**/*"))


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    train(folder, rank)
    torch.distributed.destroy_process_group()
