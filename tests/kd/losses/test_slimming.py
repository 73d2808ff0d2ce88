from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kd.batch import Needs
from kd.errors import InputError
from kd.loss import Objective, Term
from kd.losses import KD, CrossEntropy, Slimming
from kd.regimes import Offline, Supervised
from kd.testing import LossContract, RegimeContract, tiny_batch, tiny_facts, tiny_net

FACTS, WEIGHT = tiny_facts(), 0.3


class TestSlimming(LossContract):
    def make(self):
        return Slimming()

    def reference(self, loss, student, teacher, batch):
        return sum(abs(scale) for scale in student.extra["scales"].tolist())


def objective(**more):
    return Objective({"ce": Term(CrossEntropy()), "kd": Term(KD())} | more)


class TestOfflineWithSlimming(RegimeContract):
    """Nothing idles, copies shrink their own scales, and the state holds them once."""

    def make(self):
        return Offline(tiny_net(), self.teacher, objective(slimming=Term(Slimming(), WEIGHT)))

    def test_the_state_is_that_of_the_student(self):
        regime = self.bound()
        assert regime.state_dict().keys() == {f"student.{name}" for name in regime.student.state_dict()}

    def test_the_gradient_is_the_sign_of_the_scale_beside_the_rest(self):
        regime = self.bound()
        with torch.no_grad():
            regime.student[1].weight[:3] = torch.tensor([-0.5, 0.0, 2.0])
        plain = Offline(copy.deepcopy(regime.student), self.teacher, objective())
        plain.bind(self.facts)
        for each in (regime, plain.train()):
            self.step(each, self.batch(each)).loss.backward()
        theirs = dict(plain.named_parameters())
        for name, parameter in regime.named_parameters():
            expected = theirs[name].grad.clone()
            if name in ("student.1.weight", "student.4.weight"):
                for channel, scale in enumerate(parameter.tolist()):
                    expected[channel] += WEIGHT * ((scale > 0) - (scale < 0))
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-7, msg=name)


def trained(weight):
    """Sizes of the scales of a net that had to learn which images are dark."""
    torch.manual_seed(0)
    regime = Supervised(tiny_net(), Objective({"ce": Term(CrossEntropy()), "slim": Term(Slimming(), weight)}))
    regime.bind(FACTS)
    optimizer = torch.optim.SGD(regime.parameters(), lr=0.05)
    batch = tiny_batch(FACTS, 12)
    batch.x[batch.y == 1] /= 4
    for _ in range(200):
        step = regime(batch, ())
        optimizer.zero_grad()
        step.loss.backward()
        optimizer.step()
    return torch.cat([regime.student[1].weight, regime.student[4].weight]).detach().abs()


def test_scales_go_to_zero_where_they_are_penalised_and_nowhere_else():
    free, slim = trained(0.0), trained(0.3)
    assert (free > 0.5).all()
    assert (slim < 0.05).sum() >= 8
    assert slim.max() > 0.5, "what it needs it keeps"


def test_all_norms_have_scales_and_slopes_are_none():
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU(4), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, affine=False)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 3))
    nn.utils.parametrize.register_parametrization(model[3], "weight", Masked())
    regime = Supervised(model, Objective({"slim": Term(Slimming())}))
    regime.bind(FACTS)
    step = regime(tiny_batch(FACTS, 4), ())
    assert step.loss.item() == pytest.approx(4 + 2 + 4)
    step.loss.backward()
    original = model[3].parametrizations.weight.original
    assert original.grad.tolist() == [1.0, 1.0, 0.0, 0.0], "what is masked is not shrunk"


class Masked(nn.Module):
    def forward(self, weight):
        return weight * torch.tensor([1.0, 1.0, 0.0, 0.0])


def test_the_teacher_is_not_asked():
    assert Slimming().asks == Needs()


def test_a_student_without_scales_is_refused():
    bare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(InputError, match=r"^Slimming\.student: has no norm with a scale"):
        Supervised(bare, Objective({"slim": Term(Slimming())})).bind(FACTS)
