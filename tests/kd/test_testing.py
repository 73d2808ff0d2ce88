"""The contracts must be able to fail: each planted defect is caught by the test that is meant for it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd.batch import Needs, Step
from kd.loss import Loss, Objective, Term
from kd.losses import KD, CrossEntropy
from kd.regimes import DML, PSKD, Offline, Supervised
from kd.testing import LossContract, RegimeContract, naive_log_softmax, tiny_net


def failures(contract):
    """Names of the tests of a contract class that fail, without their prefix."""
    failed = set()
    for name in dir(contract):
        if name.startswith("test_"):
            case = contract()
            if hasattr(case, "setup_method"):
                case.setup_method()
            try:
                getattr(case, name)()
            except pytest.skip.Exception:
                continue
            except Exception:  # an error of the loss fails a test as an assertion does
                failed.add(name.removeprefix("test_"))
    return failed


class Divergence(Loss):
    """KL at T = 4 with places to break it."""

    temperature = 4.0

    def target(self, teacher):
        return teacher.logits.detach()

    def reduce(self, kl):
        return self.temperature**2 * kl.sum(1).mean()

    def forward(self, student, teacher, batch):
        ours = (student.logits / self.temperature).log_softmax(1)
        theirs = (self.target(teacher) / self.temperature).log_softmax(1)
        return self.reduce(F.kl_div(ours, theirs, reduction="none", log_target=True))


class Summed(Divergence):
    def reduce(self, kl):
        return self.temperature**2 * kl.sum()


class Untempered(Divergence):
    def reduce(self, kl):
        return kl.sum(1).mean()


class MovesTheTeacher(Divergence):
    def target(self, teacher):
        return teacher.logits


class Unstable(Divergence):
    """The logarithm of a softmax, where both should be one function."""

    temperature = 1.0

    def forward(self, student, teacher, batch):
        ours, theirs = student.logits.softmax(1), teacher.logits.detach().softmax(1)
        return self.reduce(theirs * (theirs.log() - ours.log()))


class Cut(Divergence):
    """The right value, and half of its gradient."""

    def forward(self, student, teacher, batch):
        value = super().forward(student, teacher, batch)
        return value / 2 + value.detach() / 2


class HardOnly(Divergence):
    """Dies of soft labels without saying beforehand that it needs hard ones."""

    def forward(self, student, teacher, batch):
        return super().forward(student, teacher, batch) + 0 * F.one_hot(batch.y, student.logits.shape[1]).sum()


class Ordered(Divergence):
    def reduce(self, kl):
        return super().reduce(kl) + 1e-3 * kl[0].sum()


class Idle(Divergence):
    def bind(self, student, teacher, data):
        self.unused = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (Divergence, None),
        (Summed, "value_is_the_references"),
        (Untempered, "value_is_the_references"),
        (MovesTheTeacher, "teacher_gets_no_gradient"),
        (Unstable, "extreme_logits"),
        (Cut, "gradient_is_the_references"),
        (HardOnly, "soft_labels_work_or_are_refused"),
        (Ordered, "order_of_samples"),
        (Idle, "all_that_trains_is_registered_and_none_is_idle"),
    ],
)
def test_a_broken_divergence_is_caught(broken, caught):
    class Contract(LossContract):
        perfect = 0.0

        def make(self):
            return broken()

        def reference(self, loss, student, teacher, batch):
            total = 0.0
            for rows in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True):
                ours, theirs = (naive_log_softmax(row, 4.0) for row in rows)
                total += sum(math.exp(p) * (p - q) for q, p in zip(ours, theirs, strict=True))
            return 16 * total / len(student.logits)

    assert caught in failures(Contract) if caught else not failures(Contract)


class Projected(Loss):
    needs = Needs(embedding=True)

    def bind(self, student, teacher, data):
        self.project = nn.Linear(student.embedding, teacher.embedding)

    def forward(self, student, teacher, batch):
        return F.mse_loss(self.project(student.embedding), teacher.embedding.detach())


class HiddenInADict(Projected):
    def bind(self, student, teacher, data):
        self.layers = {"project": nn.Linear(student.embedding, teacher.embedding)}

    def project(self, x):
        layer = self.layers["project"]
        return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


class ForgottenState(Projected):
    """Draws a scale that is in no checkpoint."""

    def bind(self, student, teacher, data):
        super().bind(student, teacher, data)
        self.scale = torch.rand(()).item()

    def forward(self, student, teacher, batch):
        return self.scale * super().forward(student, teacher, batch)


@pytest.mark.parametrize(
    ("broken", "caught"),
    [
        (Projected, set()),
        (HiddenInADict, {"all_that_trains_is_registered_and_none_is_idle", "state_dict_restores_the_value"}),
        (ForgottenState, {"state_dict_restores_the_value"}),
    ],
)
def test_a_broken_projection_is_caught(broken, caught):
    class Contract(LossContract):
        def make(self):
            return broken()

        def reference(self, loss, student, teacher, batch):
            layer = loss.layers["project"] if isinstance(loss, HiddenInADict) else loss.project
            weight, bias, total = layer.weight.tolist(), layer.bias.tolist(), 0.0
            for x, target in zip(student.embedding.tolist(), teacher.embedding.tolist(), strict=True):
                for row, shift, goal in zip(weight, bias, target, strict=True):
                    total += (sum(w * value for w, value in zip(row, x, strict=True)) + shift - goal) ** 2
            return getattr(loss, "scale", 1.0) * total / teacher.embedding.numel()

    assert failures(Contract) == caught


class ForgetsItsBank(PSKD):
    def bind(self, data):
        super().bind(data)
        self.register_buffer("past", self.past, persistent=False)


class CountsItself(PSKD):
    steps = 0

    def forward(self, batch, guides):
        self.steps += 1
        clock = batch.clock._replace(epoch=self.steps, epochs=100)
        return super().forward(batch._replace(clock=clock), guides)


class HasASpare(Supervised):
    def __init__(self, student):
        super().__init__(student)
        self.spare = nn.Linear(2, 2)


class HidesAPeer(DML):
    def __init__(self, students):
        super().__init__(students[:2])
        self.hidden = students[2:]

    def forward(self, batch, guides):
        loss, parts, logits = super().forward(batch, guides)
        return Step(loss + self.hidden[0](batch.x).square().mean(), parts, logits)


class Climbs(Supervised):
    def forward(self, batch, guides):
        loss, parts, logits = super().forward(batch, guides)
        return Step(2 * loss.detach() - loss, parts, logits)


class ShipsAnother(Supervised):
    def deploy(self, name=None):
        return tiny_net()


class HalfPrecise(Supervised):
    def forward(self, batch, guides):
        logits = self.student(batch.x)
        loss = -logits.log_softmax(1).to(logits.dtype)[torch.arange(len(logits)), batch.y].mean()
        return Step(loss, {"ce": loss.detach()}, logits.detach())


def objective():
    return Objective({"ce": Term(CrossEntropy()), "kd": Term(KD())})


class OwnsTheTeacher(Offline):
    """Keeps the teacher's module below itself: trained, checkpointed, put into training mode."""

    def __init__(self, student, teacher):
        super().__init__(student, teacher, objective())
        self.model = teacher.model


class CopiesTheTeacher(Offline):
    def __init__(self, student, teacher):
        super().__init__(student, teacher, objective())
        self.plain = teacher


class MovesItsTeacher(Offline):
    def __init__(self, student, teacher):
        super().__init__(student, teacher, objective())

    def after_step(self, batch, step):
        with torch.no_grad():
            self.teacher.guide.model[0].weight.mul_(0.9)


def single(kind):
    return lambda contract: kind(tiny_net())


def guided(kind):
    return lambda contract: kind(tiny_net(), contract.teacher)


@pytest.mark.parametrize(
    ("make", "caught"),
    [
        (single(ForgetsItsBank), "state_dict_restores_everything"),
        (single(CountsItself), "time_is_read_from_the_batch_alone"),
        (single(HasASpare), "all_that_trains_is_registered_and_none_is_idle"),
        (lambda contract: HidesAPeer([tiny_net() for _ in range(3)]), "all_that_trains_is_registered_and_none_is_idle"),
        (single(Climbs), "a_step_lowers_the_loss"),
        (single(ShipsAnother), "deploys_its_candidates"),
        (single(HalfPrecise), "half_precision_ends_where_losses_begin"),
        (guided(OwnsTheTeacher), "teacher_is_left_alone"),
        (guided(CopiesTheTeacher), "deep_copy_leaves_the_teacher_out"),
        (guided(MovesItsTeacher), "teacher_is_left_alone"),
    ],
)
def test_a_broken_regime_is_caught(make, caught):
    class Contract(RegimeContract):
        pass

    Contract.make = make
    assert caught in failures(Contract)


def test_a_copy_of_a_whole_regime_is_caught_where_it_shares_tensors():
    class Shares(Supervised):
        def __deepcopy__(self, memo):
            return copy.copy(self)

    class Contract(RegimeContract):
        def make(self):
            return Shares(tiny_net())

    assert failures(Contract) == {"deep_copy_leaves_the_teacher_out"}
