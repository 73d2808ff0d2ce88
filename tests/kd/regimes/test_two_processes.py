"""Two processes with N samples each are one with 2N: relations between samples, and banks of predictions.

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
from kd.batch import Batch
from kd.loss import Objective, Term
from kd.losses import RKD, CrossEntropy
from kd.regimes import PSKD, Offline
from kd.testing import TinyTeacher, tiny_batch, tiny_facts

FACTS, SAMPLES = tiny_facts(), 8


def net():
    """Without BatchNorm, whose statistics are those of a process."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def train(world, rank):
    """A step of each regime on this rank's slice of a batch: losses, gradients and bank."""
    torch.manual_seed(0)
    terms = {"ce": Term(CrossEntropy()), "rkd": Term(RKD())}
    regimes = {"offline": Offline(net(), TinyTeacher(), Objective(terms)), "ps_kd": PSKD(net())}
    whole = tiny_batch(FACTS, SAMPLES)
    share = SAMPLES // world
    ours = slice(rank * share, (rank + 1) * share)
    views = tuple(v._replace(x=v.x[ours], y=v.y[ours], index=v.index[ours]) for v in whole.views)
    batch = Batch(views, whole.clock)
    found = {}
    for name, regime in regimes.items():
        regime.bind(FACTS)
        model = regime if world == 1 else nn.parallel.DistributedDataParallel(regime, broadcast_buffers=False)
        with torch.no_grad():
            guides = regime.guide(batch)
        step = model(batch, guides)
        step.loss.backward()
        regime.after_step(batch, step)
        found |= {f"{name}.{part}": value for part, value in step.parts.items()}
        found |= {f"{name}.{parameter}": p.grad for parameter, p in regime.named_parameters()}
        found |= {f"{name}.{buffer}": value for buffer, value in regime.named_buffers()}
    return found


def test_two_processes_are_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(kd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    one = train(1, 0)
    assert torch.equal(first["ps_kd.past"], second["ps_kd.past"])
    for key in ("offline.ce", "ps_kd.ps_kd"):  # means over the samples of a rank; the rest is of the whole batch
        first[key] = (first[key] + second[key]) / 2
    assert set(first) == set(one)
    for name, value in one.items():
        torch.testing.assert_close(
            first[name], value, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    torch.save(train(2, rank), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
