from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kd.batch import Needs, Ports
from kd.errors import InputError
from kd.loss import Objective, Term
from kd.losses.response.ofa import OFA, ofa
from kd.losses.response.standardize import Standardized
from kd.regimes import Offline
from kd.testing import (
    LossContract,
    TinyTeacher,
    naive_log_softmax,
    naive_net,
    naive_targets,
    tiny_batch,
    tiny_facts,
    tiny_net,
)


def naive_ofa(student, teacher, targets, eps, temperature):
    total = 0.0
    for ours, theirs, target in zip(student, teacher, targets, strict=True):
        log_s, log_t = naive_log_softmax(ours, temperature), naive_log_softmax(theirs, temperature)
        for label, weight in enumerate(target):
            for i in range(len(ours)):
                total -= weight * ((math.exp(log_t[i]) + (i == label)) ** eps - (i == label)) * log_s[i]
    return total / len(student)


def naive_exit(head, images):
    *layers, _, _, linear = head
    images = naive_net(layers, images)
    rows = [[sum(map(sum, plane)) / len(plane) / len(plane[0]) for plane in image] for image in images]
    weights = list(zip(linear.weight.tolist(), linear.bias.tolist(), strict=True))
    return [[sum(map(float.__mul__, w, row)) + b for w, b in weights] for row in rows]


class TestOFA(LossContract):
    eps, temperature = 1.0, 1.0

    def make(self):
        return OFA(eps=self.eps, temperature=self.temperature)

    def reference(self, loss, student, teacher, batch):
        targets = naive_targets(batch.y, 4)
        maps = [naive_exit(head, student.stages[i].tolist()) for head, i in zip(loss.exits, loss.stages, strict=True)]
        rest = teacher.logits.tolist(), targets, self.eps, self.temperature
        return sum(naive_ofa(logits, *rest) for logits in (student.logits.tolist(), *maps))


class TestOFAWithEps(TestOFA):
    eps, temperature = 1.5, 2.0


class TestOFAOfTokens(TestOFA):
    """All maps of one size, as a transformer's."""

    student = Ports(4, 3, ((3, 3, 3),) * 3)
    teacher = Ports(4, 2, ((2, 4, 4), (3, 1, 1)))


def bound(stages, student, teacher_width=1):
    loss = OFA(stages)
    loss.bind(student, Ports(4, teacher_width, ((1, 1, 1),)), tiny_facts(4))
    return loss


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [-1]), (3, [-1, -2, -3]), (5, [-1, -2, -3, -4]), (12, [-1, -4, -7, -10]), (24, [-1, -7, -13, -19])],
)
def test_exits_are_four_at_equal_distances(count, expected):
    assert list(bound(None, Ports(4, 6, ((6, 2, 2),) * count)).stages) == expected


def layers_of(head, kind):
    return [layer for layer in head if isinstance(layer, kind)]


def test_exits_come_down_to_the_last_stage_as_stages_do():
    sizes = ((4, 16, 16), (8, 8, 8), (16, 4, 4), (32, 2, 2))
    loss = bound((0, 1, 2, 3), Ports(4, 32, sizes), teacher_width=64)
    widths = [[8, 16, 64], [16, 64], [64], []]  # doubled, and in the end that of the wider embedding
    for head, size, expected in zip(loss.exits, sizes, widths, strict=True):
        assert [norm.num_features for norm in layers_of(head, nn.BatchNorm2d)][1::2] == expected
        features = head[: 8 * len(expected)](torch.randn(2, *size))
        assert features.shape[1:] == (expected[-1] if expected else size[0], 2, 2)
        assert head(torch.randn(2, *size)).shape == (2, 4)


@pytest.mark.parametrize(("height", "halvings"), [(1, 1), (3, 1), (5, 1), (6, 1), (7, 2), (12, 2)])
def test_exits_before_the_last_halve_once_at_least_and_no_map_stays_larger(height, halvings):
    loss = bound((0,), Ports(4, 5, ((3, height, 3), (5, 3, 3))))
    assert len(layers_of(loss.exits[0], nn.BatchNorm2d)) == 2 * halvings


@pytest.mark.parametrize("size", [(7, 7), (5, 9), (1, 1), (2, 8)])
def test_exits_suit_any_resolution(size):
    loss = bound((0, 1), Ports(4, 5, ((3, *size), (5, 3, 3))))
    assert all(head(torch.randn(2, c, *size)).shape == (2, 4) for head, c in zip(loss.exits, (3, 5), strict=True))


def test_stages_that_the_student_does_not_have_are_refused():
    with pytest.raises(InputError, match=r"OFA\.stages: -3: the student has 2 stages"):
        bound((-1, -3), TestOFA.student)


def case():
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    return student, teacher, torch.arange(5) % 4


@pytest.mark.parametrize("eps", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value(eps, temperature):
    student, teacher, target = case()
    expected = naive_ofa(student.tolist(), teacher.tolist(), naive_targets(target, 4), eps, temperature)
    assert ofa(student, teacher, target, eps, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_eps_is_1_by_default_and_then_labels_cancel_out():
    student, teacher, target = case()
    expected = torch.nn.functional.cross_entropy(student, teacher.softmax(1))
    torch.testing.assert_close(ofa(student, teacher, target), expected)


def test_soft_labels_never_have_a_negative_weight():
    teacher = torch.tensor([[60.0, -60.0, -60.0]], dtype=torch.float64)
    target = torch.tensor([[0.2, 0.4, 0.4]], dtype=torch.float64)
    for least in range(3):
        student = torch.zeros(1, 3, dtype=torch.float64)
        student[0, least] = -60  # so that its weight decides
        assert ofa(student, teacher, target, eps=1.5) > 0


def test_mixed_labels_mix_the_loss():
    student, teacher, target = case()
    soft = 0.3 * torch.nn.functional.one_hot(target, 4) + 0.7 * torch.nn.functional.one_hot(target.flip(0), 4)
    expected = 0.3 * ofa(student, teacher, target, 1.5) + 0.7 * ofa(student, teacher, target.flip(0), 1.5)
    torch.testing.assert_close(ofa(student, teacher, soft, 1.5), expected)


def test_a_larger_batch_of_the_same_rows_changes_nothing():
    student, teacher, target = case()
    larger = ofa(student.repeat(4, 1), teacher.repeat(4, 1), target.repeat(4), 1.5)
    torch.testing.assert_close(larger, ofa(student, teacher, target, 1.5))


def test_no_gradient_flows_into_the_teacher():
    student, teacher, target = case()
    ofa(student.requires_grad_(), teacher.requires_grad_(), target, 1.5).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher", "target"), [((5, 4), (5, 3), (5,)), ((5, 4), (5, 4), (4,)), ((5, 4), (5, 4), (5, 3))]
)
def test_wrong_shapes_are_told(student, teacher, target):
    with pytest.raises(ValueError) as error:
        ofa(torch.zeros(student), torch.zeros(teacher), torch.zeros(target).long())
    assert all(str(shape) in str(error.value) for shape in (student, teacher, target))


@pytest.mark.parametrize("wrong", [{"stages": ()}, {"eps": 0.0}, {"temperature": 0.0}])
def test_hyper_parameters_outside_their_range_are_refused(wrong):
    with pytest.raises(InputError, match=rf"OFA\.{next(iter(wrong))}"):
        OFA(**wrong)


def test_the_teacher_is_asked_for_logits_alone():
    for loss in (OFA(), Standardized(OFA())):
        asked = []

        class Logits(TinyTeacher):
            def ports(self, data):
                return Ports(data.classes, 4, ())  # as of an ensemble, which has no maps

            def __call__(self, view, needs, asked=asked):
                asked.append(needs)
                return super().__call__(view, needs)

        regime = Offline(tiny_net(), Logits(), Objective({"OFA": Term(loss)}))
        regime.bind(tiny_facts())
        batch = tiny_batch(tiny_facts(), 4)
        with torch.no_grad():
            guides = regime.guide(batch)
        assert regime(batch, guides).loss.isfinite()
        assert asked == [Needs()]
