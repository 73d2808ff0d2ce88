from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import nn

from kd.batch import Outputs
from kd.errors import InputError
from kd.loss import Loss
from kd.losses import KD, RKD, FitNet
from kd.losses.response.ctkd import CTKD
from kd.losses.response.dist import DIST
from kd.losses.response.dkd import DKD
from kd.losses.response.nkd import NKD
from kd.losses.response.ofa import OFA, ofa
from kd.losses.response.standardize import Standardized, standardize
from kd.testing import LossContract, naive_log_softmax, tiny_batch, tiny_facts


def naive_standardize(row):
    return [(z - statistics.mean(row)) / (1e-7 + statistics.stdev(row)) for z in row]


class TestStandardized(LossContract):
    perfect = 0.0

    def make(self):
        return Standardized(KD(2.0))

    def reference(self, loss, student, teacher, batch):
        total = 0.0
        for rows in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True):
            log_q, log_p = (naive_log_softmax(naive_standardize(row), 2.0) for row in rows)
            total += sum(math.exp(p) * (p - q) for q, p in zip(log_q, log_p, strict=True))
        return 2.0**2 * total / len(student.logits)


def case():
    contract = TestStandardized()
    shapes = [[(p.classes,), (p.embedding,), *p.stages] for p in (contract.student, contract.teacher)]
    sides = [[torch.randn(5, *shape) for shape in side] for side in shapes]
    return [Outputs(logits, embedding, tuple(maps)) for logits, embedding, *maps in sides]


def bound(loss):
    loss.bind(TestStandardized.student, TestStandardized.teacher, tiny_facts(4))
    return loss


def test_value():
    logits = 5 + 3 * torch.randn(6, 4, dtype=torch.float64)
    expected = torch.tensor([naive_standardize(row) for row in logits.tolist()], dtype=torch.float64)
    torch.testing.assert_close(standardize(logits), expected)


def test_the_floor_of_the_deviation():
    logits = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(standardize(logits, eps=1.0), logits / (1 + math.sqrt(2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    logits = torch.randn(5, 4).to(dtype)
    value = standardize(logits)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(value.double(), standardize(logits.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logits", [torch.zeros(3, 4), torch.full((3, 4), 60.0), 60 * torch.randn(3, 4).sign()])
def test_extreme_logits(logits):
    value = standardize(logits.requires_grad_())
    value.square().sum().backward()
    assert value.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(4,), (5, 1), (5, 4, 2)])
def test_wrong_shapes_are_told(shape):
    with pytest.raises(ValueError) as error:
        standardize(torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("loss", [KD(), DKD(), DIST(), NKD(), CTKD(), OFA()])
def test_level_and_spread_of_logits_change_no_loss(loss):
    loss, (student, teacher) = bound(Standardized(loss)), case()
    batch = tiny_batch(tiny_facts(4), 5)
    moved = [outputs._replace(logits=3 * outputs.logits + 7) for outputs in (student, teacher)]
    torch.testing.assert_close(loss(*moved, batch), loss(student, teacher, batch), rtol=1e-4, atol=1e-5)


def test_the_logits_of_exits_are_standardised_too():
    plain = bound(OFA())
    loss, (student, teacher) = bound(Standardized(OFA())), case()
    loss.loss.load_state_dict(plain.state_dict())
    batch = tiny_batch(tiny_facts(4), 5)
    logits = [student.logits, *(head(student.stages[i]) for head, i in zip(plain.exits, plain.stages, strict=True))]
    expected = sum(ofa(standardize(x), standardize(teacher.logits), batch.y) for x in logits)
    torch.testing.assert_close(loss(student, teacher, batch), expected)


def test_further_views_are_standardised_too():
    class LooksElsewhere(Loss):
        def forward(self, student, teacher, batch):
            return KD()(student.others[0], teacher.others[0], batch)

    sides = [Outputs(torch.randn(5, 4), others=(Outputs(torch.randn(5, 4)),)) for _ in range(2)]
    expected = Standardized(KD())(*(side.others[0] for side in sides), None)
    assert torch.equal(Standardized(LooksElsewhere())(*sides, None), expected)


def test_what_else_the_loss_is_remains():
    class Remembers(KD):
        seen = None

        def after_step(self, batch):
            self.seen = batch

        def deployed(self, student):
            return nn.Sequential(student)

    loss, batch = Standardized(Remembers()), tiny_batch(tiny_facts(4), 5)
    loss.after_step(batch)
    assert loss.loss.seen is batch
    assert isinstance(loss.deployed(nn.Identity()), nn.Sequential)
    assert Standardized(DIST()).needs == DIST().needs
    assert [name for name, _ in Standardized(CTKD()).named_parameters()] == ["loss.theta"]


@pytest.mark.parametrize("loss", [FitNet(), RKD()])
def test_losses_on_other_than_logits_are_refused(loss):
    with pytest.raises(InputError, match=rf"Standardized.loss: {type(loss).__name__}"):
        bound(Standardized(loss))
