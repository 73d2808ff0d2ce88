from __future__ import annotations

import pytest
import torch

from kd.errors import InputError
from kd.loss import Loss, Objective, Term
from kd.losses import KD, RKD, CrossEntropy, FitNet
from kd.regimes import Supervised
from kd.testing import RegimeContract, tiny_facts, tiny_net


class TestSupervised(RegimeContract):
    def make(self):
        return Supervised(tiny_net())

    def test_the_default_is_plain_cross_entropy(self):
        regime = self.bound()
        batch = self.batch(regime)
        expected = torch.nn.functional.cross_entropy(regime.student(batch.x), batch.y)
        torch.testing.assert_close(self.step(regime, batch).loss, expected)


class TestSupervisedByItself(RegimeContract):
    """Where an objective expects a teacher, it gets the student itself."""

    def make(self):
        terms = {"ce": Term(CrossEntropy(0.1)), "kd": Term(KD()), "rkd": Term(RKD()), "fitnet": Term(FitNet())}
        return Supervised(tiny_net(), Objective(terms))

    def test_it_teaches_itself_nothing(self):
        regime = self.bound()
        parts = self.step(regime, self.batch(regime)).parts
        assert parts["kd"] == parts["rkd"] == 0


def test_no_gradient_reaches_what_stands_for_the_teacher():
    class Leaks(Loss):
        def forward(self, student, teacher, batch):
            return teacher.logits.sum()

    contract = TestSupervised()
    regime = Supervised(tiny_net(), Objective({"leaks": Term(Leaks())}))
    step = contract.step(regime, contract.batch(regime))
    step.loss.backward()
    assert not step.parts["leaks"].requires_grad
    assert not any(parameter.grad.any() for parameter in regime.parameters())


def test_other_classes_than_the_datas_are_refused():
    with pytest.raises(InputError, match="student: 5 classes: the data has 3"):
        Supervised(tiny_net(classes=5)).bind(tiny_facts())
