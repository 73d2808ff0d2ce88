"""Every method trains a real student from a real teacher, and what it ships is a model that saves and loads."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import students
from kd.data import Augment, DataConfig, load
from kd.fit import Fit, fit
from kd.methods import METHODS
from teachers import Teacher

PAIRS = [("cifar_resnet8", "cifar_resnet14"), ("cifar_mobilenetv2_x0_5", "cifar_wrn_16_1")]
NET = {"num_classes": 10, "in_chans": 1, "image_size": 8}


@pytest.fixture(scope="module")
def data():
    return load(DataConfig(train_size=48, augment=Augment(crop=1)))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "nets", [("cifar_resnet8", "cifar_resnet14"), ("cifar_mobilenetv2_x0_5", "cifar_wrn_16_1")], ids="-".join
)
def test_a_method_trains_and_ships(data, tmp_path, name, nets):
    train_and_ship(regime_of(name, nets), data, tmp_path)


def regime_of(name, nets):
    torch.manual_seed(0)
    teacher = Teacher(students.create(nets[1], width=0.5, **NET), image_size=8, channels=1)
    return METHODS[name].regime(partial(students.create, nets[0], width=0.5, **NET), teacher, 2)


def train_and_ship(regime, data, tmp_path):
    history = fit(regime, data, Fit(epochs=2, batch_size=16, lr=0.001, trackers=()), tmp_path / "fit")
    assert len(history.epochs) == 2
    shipped = regime.deploy(history.best_name).eval()
    students.save(shipped, tmp_path / "shipped")
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(students.load(tmp_path / "shipped").eval()(x), shipped(x))
