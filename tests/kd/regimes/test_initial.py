from __future__ import annotations

import copy

import torch
from torch import nn

from kd.batch import Facts
from kd.data import DataConfig, load
from kd.fit import Fit, fit
from kd.loss import Objective, Term
from kd.losses import AB, Paraphrase
from kd.regimes import Initial
from kd.testing import RegimeContract, TinyTeacher, tiny_net


class TestInitial(RegimeContract):
    def make(self):
        return Initial(tiny_net(), self.teacher, Objective({"AB": Term(AB())}))

    def test_the_classifier_is_left_as_it_was_drawn(self):
        regime = self.bound()
        before = copy.deepcopy(regime.student[-1].state_dict())
        self.train(regime, 2)
        for name, value in regime.student[-1].state_dict().items():
            assert torch.equal(value, before[name])

    def test_it_ships_nothing(self):
        assert self.bound().candidates() == {}


class TestInitialWithoutAStudent(RegimeContract):
    def make(self):
        return Initial(None, self.teacher, Objective({"Paraphrase": Term(Paraphrase())}))

    def test_only_the_losses_train(self):
        regime = self.bound()
        assert all(name.startswith("objective.") for name, _ in regime.named_parameters())


def test_fit_keeps_the_last_weights():
    data = load(DataConfig(train_size=48, image_size=8))
    facts: Facts = data.facts

    class Grey(TinyTeacher):
        def __init__(self):
            super().__init__(facts.classes)
            self.model[0] = nn.Conv2d(1, 6, 3, padding=1, bias=False)

    net = tiny_net(classes=facts.classes)
    net[0] = nn.Conv2d(1, 4, 3, padding=1, bias=False)
    regime = Initial(net, Grey(), Objective({"AB": Term(AB())}))
    history = fit(regime, data, Fit(epochs=3, batch_size=16, lr=0.001, trackers=()))
    assert history.best_epoch == 2
    assert not any("top1_val" in epoch for epoch in history.epochs)
    assert history.epochs[2]["AB"] < history.epochs[0]["AB"]
