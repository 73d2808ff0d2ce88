from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

import students
from kd.checkpoint import Checkpoints
from kd.data import Augment, DataConfig, load
from kd.fit import Fit
from kd.methods import METHODS, Setting
from kd.phases import Phase, train
from kd.regimes import Supervised
from teachers import Teacher

NET = {"num_classes": 10, "in_chans": 1, "image_size": 8}
FIT = Fit(epochs=2, batch_size=16, lr=0.001, checkpoint_steps=1, trackers=())


@pytest.fixture(scope="module")
def data():
    return load(DataConfig(train_size=48, augment=Augment(crop=1)))


def small_net():
    return students.create("cifar_resnet8", width=0.25, **NET)


class Killed(BaseException):
    """Ends a run like a kill would: nothing catches it."""


def run(name, data, folder):
    """One method, all of its objects made anew: the phases' last states and what they told."""
    torch.manual_seed(0)
    guide = Teacher(students.create("cifar_resnet14", width=0.25, **NET), image_size=8, channels=1)
    setting = Setting(small_net, guide, Teacher, (partial(students.create, "cifar_resnet14", width=0.25, **NET),))
    trained = train(METHODS[name].phases(setting, FIT.epochs), data, FIT, folder)
    states = [regime.state_dict() for regime, _ in trained]
    return states, [[{**epoch, "seconds": 0} for epoch in history.epochs] for _, history in trained]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_is_killed_ends_bit_for_bit_like_one_that_is_not(data, tmp_path, monkeypatch, name):
    states, told = run(name, data, tmp_path / "whole")
    save, life = Checkpoints.save, 4
    saves = 0

    def save_and_die(self, *arguments):
        nonlocal saves
        save(self, *arguments)
        saves += 1
        if saves % life == 0:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    lives = 0
    while True:
        lives += 1
        try:
            resumed, again = run(name, data, tmp_path / "killed")
            break
        except Killed:
            torch.manual_seed(lives)  # the next life has random numbers of its own
    assert lives > 1
    assert again == told
    for state, other in zip(states, resumed, strict=True):
        assert state.keys() == other.keys()
        for key, value in state.items():
            assert torch.equal(value, other[key]), key


def test_a_phase_is_asked_for_when_those_before_it_have_trained(data):
    seen = []

    def phases():
        net = small_net()
        before = net.state_dict()["net.conv1.weight"].clone()
        yield Phase("first", Supervised(net), 1)
        seen.append(not torch.equal(net.state_dict()["net.conv1.weight"], before))
        yield Phase("second", Supervised(net), 1)

    trained = train(phases(), data, replace(FIT, epochs=1))
    assert seen == [True]
    assert trained[0][0].student is trained[1][0].student


def test_weights_drawn_for_a_phase_are_those_of_the_seed(data):
    drawn = []

    def phases():
        for name in ("first", "second"):
            net = small_net()
            drawn.append(net.state_dict()["net.conv1.weight"].clone())
            yield Phase(name, Supervised(net), 1)

    train(phases(), data, replace(FIT, epochs=1, seed=3))
    torch.manual_seed(3)
    assert torch.equal(drawn[0], small_net().state_dict()["net.conv1.weight"])
    assert torch.equal(drawn[0], drawn[1])


def test_a_shorter_phase_has_its_share_of_warm_up_and_milestones(data, monkeypatch):
    asked = []
    monkeypatch.setattr("kd.phases.fit", lambda regime, data, config, *_, **__: asked.append(config))
    config = Fit(epochs=240, warmup_epochs=8, scheduler="multistep", milestones=(120, 180))
    train([Phase("short", Supervised(small_net()), 30), Phase("long", Supervised(small_net()), 240)], data, config)
    assert [(fit.epochs, fit.warmup_epochs, fit.milestones) for fit in asked] == [
        (30, 1, (15, 22)),
        (240, 8, (120, 180)),
    ]
    train([Phase("shortest", Supervised(small_net()), 1)], data, replace(config, epochs=2, warmup_epochs=1))
    assert asked[-1].warmup_epochs == 0
