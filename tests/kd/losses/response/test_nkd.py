from __future__ import annotations

import math

import pytest
import torch

from kd.errors import InputError
from kd.losses.response.nkd import NKD, nkd
from kd.testing import LossContract, naive_log_softmax, naive_targets


def naive_nkd(student, teacher, targets, gamma, temperature):
    def others(row, label):
        return naive_log_softmax([z for i, z in enumerate(row) if i != label], temperature)

    total = 0.0
    for ours, theirs, target in zip(student, teacher, targets, strict=True):
        log_s, log_t = naive_log_softmax(ours), naive_log_softmax(theirs)
        for label, weight in enumerate(target):
            pairs = zip(others(ours, label), others(theirs, label), strict=True)
            of_others = sum(math.exp(log_p) * log_q for log_q, log_p in pairs)
            total -= weight * (math.exp(log_t[label]) * log_s[label] + gamma * temperature**2 * of_others)
    return total / len(student)


class TestNKD(LossContract):
    def make(self):
        return NKD()

    def reference(self, loss, student, teacher, batch):
        targets = naive_targets(batch.y, 4)
        return naive_nkd(student.logits.tolist(), teacher.logits.tolist(), targets, 3.5, 3.0)


class TestNKDUntempered(LossContract):
    def make(self):
        return NKD(gamma=1.5, temperature=1.0)

    def reference(self, loss, student, teacher, batch):
        targets = naive_targets(batch.y, 4)
        return naive_nkd(student.logits.tolist(), teacher.logits.tolist(), targets, 1.5, 1.0)


def case(samples=5, classes=4):
    student, teacher = torch.randn(2, samples, classes, dtype=torch.float64)
    return student, teacher, torch.arange(samples) % classes


@pytest.mark.parametrize("gamma", [1.5, 0.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_value(gamma, temperature, classes):
    student, teacher, target = case(5, classes)
    expected = naive_nkd(student.tolist(), teacher.tolist(), naive_targets(target, classes), gamma, temperature)
    assert nkd(student, teacher, target, gamma, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_the_target_term_knows_no_temperature():
    student, teacher, target = case()
    torch.testing.assert_close(nkd(student, teacher, target, 0.0, 3.0), nkd(student, teacher, target, 0.0, 1.0))


def test_the_gradient_vanishes_where_the_other_classes_agree():
    student, teacher, target = case()
    whole = torch.autograd.grad(nkd(student.requires_grad_(), teacher, target), student)[0]
    alike = teacher.clone().requires_grad_()
    same = torch.autograd.grad(nkd(alike, teacher, target) - nkd(alike, teacher, target, gamma=0.0), alike)[0]
    assert whole.abs().max() > 1e-3
    assert same.abs().max() < 1e-9


def test_mixed_labels_mix_the_loss():
    student, teacher, target = case()
    soft = 0.3 * torch.nn.functional.one_hot(target, 4) + 0.7 * torch.nn.functional.one_hot(target.flip(0), 4)
    expected = 0.3 * nkd(student, teacher, target) + 0.7 * nkd(student, teacher, target.flip(0))
    torch.testing.assert_close(nkd(student, teacher, soft), expected)


def test_a_larger_batch_of_the_same_rows_changes_nothing():
    student, teacher, target = case()
    larger = nkd(student.repeat(4, 1), teacher.repeat(4, 1), target.repeat(4))
    torch.testing.assert_close(larger, nkd(student, teacher, target))


def test_a_teacher_that_is_sure_and_a_student_that_is_wrong():
    student, teacher = torch.full((2, 4), -60.0), torch.full((2, 4), -60.0)
    teacher[:, 1], student[:, 2] = 60.0, 60.0
    target = torch.tensor([1, 2])
    value = nkd(student.requires_grad_(), teacher, target)
    value.backward()
    expected = naive_nkd(student.tolist(), teacher.tolist(), naive_targets(target, 4), 1.5, 1.0)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert student.grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher():
    student, teacher, target = case()
    nkd(student.requires_grad_(), teacher.requires_grad_(), target).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher", "target"), [((5, 4), (5, 3), (5,)), ((5, 4), (5, 4), (4,)), ((5, 1), (5, 1), (5,))]
)
def test_wrong_shapes_are_told(student, teacher, target):
    with pytest.raises(ValueError) as error:
        nkd(torch.zeros(student), torch.zeros(teacher), torch.zeros(target).long())
    assert all(str(shape) in str(error.value) for shape in (student, teacher, target))


@pytest.mark.parametrize("wrong", [{"gamma": -1.0}, {"temperature": 0.0}])
def test_hyper_parameters_outside_their_range_are_refused(wrong):
    with pytest.raises(InputError, match=rf"NKD\.{next(iter(wrong))}"):
        NKD(**wrong)
