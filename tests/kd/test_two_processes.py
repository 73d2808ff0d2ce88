"""Two processes of N samples are one of 2N, for every method: ten steps of SGD in float64, with BatchNorm.

Run as a script, this file is one of the two processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

import kd
import students
from kd.batch import Batch, Clock, Needs
from kd.data import Augment, DataConfig, load
from kd.loss import Objective, Term
from kd.losses import CRD, RKD, Slimming
from kd.methods import METHODS, Method, Setting
from kd.phases import Phase
from kd.regimes import Offline
from kd.testing import gathered
from teachers import Teacher


class Local(RKD):
    """A defect of public ports: it relates the samples of its own process, and says nothing."""

    needs = Needs(embedding=True)


class LocalBank(CRD):
    """Each process keeps a bank of what it saw itself."""

    def after_step(self, batch):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kd.losses.relation.crd.gather", lambda value: value)
            super().after_step(batch)


def method(**losses):
    def phases(setting, epochs):
        objective = Objective({name: Term(loss()) for name, loss in losses.items()})
        yield Phase("student", Offline(setting.student(), setting.teacher, objective), epochs)

    return Method(next(iter(losses.values())), phases)


PLANTED = {"RKD of each process": method(loss=Local), "CRD's bank of each process": method(loss=LocalBank)}
RIGHT = METHODS | {"a penalty beside gathered outputs": method(rkd=RKD, slimming=Slimming)}
NET = {"num_classes": 10, "in_chans": 1, "image_size": 8}
STEPS, SAMPLES = 10, 16


def train(name, data, world=1, rank=0):
    """The state of each phase's regime after ten steps, and the loss of each step."""
    torch.manual_seed(0)
    teacher = frozen(make("cifar_resnet14")())
    setting = Setting(make("cifar_resnet8"), teacher, frozen, (make("cifar_resnet14"),))
    found = {}
    torch.manual_seed(1)
    for phase in (RIGHT | PLANTED)[name].phases(setting, 2):
        found |= {f"{phase.name} {key}": value for key, value in steps(phase.regime, data, world, rank).items()}
        torch.manual_seed(1)
    return found


def make(name):
    return lambda: students.create(name, width=0.25, **NET).double()


def frozen(model):
    return Teacher(model, image_size=8, channels=1, fold=False)


def steps(regime, data, world, rank):
    regime.bind(data.facts)
    gathered(regime.double()).train()
    model = nn.parallel.DistributedDataParallel(regime, broadcast_buffers=False) if world > 1 else regime
    optimizer = torch.optim.SGD(regime.parameters(), lr=0.001, momentum=0.9)
    found = {}
    batches = data.batches(0, batch_size=SAMPLES, demands=regime.demands, rank=rank, world=world)
    for number, views in enumerate(islice(batches, STEPS)):
        batch = Batch(tuple(v._replace(x=v.x.double()) for v in views), Clock(number, 2 * STEPS, 0, 2))
        with torch.no_grad():
            guides = regime.guide(batch)
        step = model(batch, guides)
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
        regime.after_step(batch, step)
        found[f"loss {number}"] = step.loss.detach()
    assert len(found) == STEPS
    return found | {name: value.clone() for name, value in regime.state_dict().items()}


def digits():
    return load(DataConfig(train_size=SAMPLES * (STEPS + 1), augment=Augment(crop=1)))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What both processes ended with."""
    folder = tmp_path_factory.mktemp("two")
    root = Path(kd.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", RIGHT)
def test_two_processes_are_one(two, name):
    check(name, *(found[name] for found in two))


@pytest.mark.parametrize("name", PLANTED)
def test_what_each_process_does_for_itself_is_caught(two, name):
    with pytest.raises(AssertionError):
        check(name, *(found[name] for found in two))


def check(name, first, second):
    one = train(name, digits())
    assert set(first) == set(one)
    for key, value in one.items():
        if " loss " in key:
            mean = (first[key] + second[key]) / 2  # each has the mean of its samples, or the whole
            torch.testing.assert_close(mean, value, rtol=1e-7, atol=1e-9)
        else:
            assert torch.equal(first[key], second[key]), key
            torch.testing.assert_close(
                first[key], value, rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}"
            )


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    data = digits()
    torch.save({name: train(name, data, 2, rank) for name in RIGHT | PLANTED}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
