from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Clock, Outputs
from kd.errors import InputError
from kd.losses import KD
from kd.losses.response.ctkd import CTKD
from kd.testing import LossContract, naive_log_softmax, tiny_batch, tiny_facts


def naive_kd(student, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        log_q, log_p = naive_log_softmax(ours, temperature), naive_log_softmax(theirs, temperature)
        total += sum(math.exp(p) * (p - q) for q, p in zip(log_q, log_p, strict=True))
    return temperature**2 * total / len(student)


class TestCTKD(LossContract):
    perfect = 0.0
    gradcheck = False

    def make(self):
        return CTKD()

    def reference(self, loss, student, teacher, batch):
        temperature = 1 + 20 / (1 + math.exp(-loss.theta.item()))
        return naive_kd(student.logits.tolist(), teacher.logits.tolist(), temperature)


def case(epoch):
    student, teacher = 10 * torch.randn(2, 5, 4, dtype=torch.float64)  # far apart, so that T matters
    batch = tiny_batch(tiny_facts(4), 5)._replace(clock=Clock(0, 100, epoch, 20))
    return Outputs(student), Outputs(teacher), batch


def test_the_temperature_starts_where_the_authors_does():
    expected = 1 + 20 / (1 + math.exp(-1))
    assert CTKD().temperature(Clock(0, 100, 0, 20)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("epoch", [0, 4, 9, 19])
def test_theta_climbs_with_the_strength_of_the_epoch(epoch):
    """The gradient, through both sides' temperatures and T², is -λ times the slope."""
    loss, inputs = CTKD(reversal=2.0).double(), case(epoch)
    gradient = torch.autograd.grad(loss(*inputs), loss.theta)[0].item()

    def value(theta):
        temperature = 1 + 20 / (1 + math.exp(-theta))
        return naive_kd(inputs[0].logits.tolist(), inputs[1].logits.tolist(), temperature)

    slope = (value(1 + 1e-4) - value(1 - 1e-4)) / 2e-4
    strength = 2.0 * (1 - math.cos(math.pi * min(epoch + 1, 10) / 10)) / 2
    assert gradient == pytest.approx(-strength * slope, rel=1e-5)


def test_a_step_of_the_optimizer_makes_it_harder():
    loss, inputs = CTKD().double(), case(9)
    before = loss(*inputs)
    before.backward()
    torch.optim.SGD(loss.parameters(), lr=0.01).step()
    assert loss(*inputs) > before


def test_no_ramp_is_full_strength_from_the_start():
    student, teacher, batch = case(0)
    ramped, full = CTKD(), CTKD(ramp=0)
    for loss in (ramped, full):
        loss(student, teacher, batch).backward()
    first = (1 - math.cos(math.pi / 10)) / 2
    torch.testing.assert_close(ramped.theta.grad, first * full.theta.grad)


def test_the_student_learns_as_from_kd_at_that_temperature():
    student, teacher, batch = case(9)
    student.logits.requires_grad_()
    loss = CTKD(lowest=4.0, span=0.0)
    ours = torch.autograd.grad(loss(student, teacher, batch), student.logits)
    theirs = torch.autograd.grad(KD(4.0)(student, teacher, batch), student.logits)
    torch.testing.assert_close(ours, theirs)


def test_theta_belongs_to_the_state():
    loss, other = CTKD(), CTKD()
    torch.nn.init.constant_(loss.theta, 0.3)
    other.load_state_dict(loss.state_dict())
    assert other.theta.item() == loss.theta.item()


@pytest.mark.parametrize("wrong", [{"lowest": 0.0}, {"span": -1.0}, {"reversal": -1.0}, {"ramp": -1}])
def test_hyper_parameters_outside_their_range_are_refused(wrong):
    with pytest.raises(InputError, match=rf"CTKD\.{next(iter(wrong))}"):
        CTKD(**wrong)
