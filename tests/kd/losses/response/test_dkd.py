from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kd.errors import InputError
from kd.losses.response.dkd import DKD, dkd
from kd.testing import LossContract, naive_log_softmax, naive_targets, tiny_facts


def divergence(ours, theirs):
    return sum(math.exp(log_p) * (log_p - log_q) for log_q, log_p in zip(ours, theirs, strict=True))


def naive_dkd(student, teacher, targets, alpha, beta, temperature):
    def binary(row, label):
        log_p = naive_log_softmax(row, temperature)
        return [log_p[label], math.log(sum(math.exp(p) for i, p in enumerate(log_p) if i != label))]

    def others(row, label):
        return naive_log_softmax([z for i, z in enumerate(row) if i != label], temperature)

    total = 0.0
    for ours, theirs, target in zip(student, teacher, targets, strict=True):
        for label, weight in enumerate(target):
            tckd = divergence(binary(ours, label), binary(theirs, label))
            total += weight * (alpha * tckd + beta * divergence(others(ours, label), others(theirs, label)))
    return temperature**2 * total / len(student)


class TestDKD(LossContract):
    perfect = 0.0

    def make(self):
        return DKD()

    def reference(self, loss, student, teacher, batch):
        targets = naive_targets(batch.y, 4)
        return naive_dkd(student.logits.tolist(), teacher.logits.tolist(), targets, 1.0, 8.0, 4.0)


class TestDKDUntempered(LossContract):
    perfect = 0.0

    def make(self):
        return DKD(alpha=0.5, beta=2.0, temperature=1.0)

    def reference(self, loss, student, teacher, batch):
        targets = naive_targets(batch.y, 4)
        return naive_dkd(student.logits.tolist(), teacher.logits.tolist(), targets, 0.5, 2.0, 1.0)


def case(samples=5, classes=4):
    student, teacher = torch.randn(2, samples, classes, dtype=torch.float64)
    return student, teacher, torch.arange(samples) % classes


@pytest.mark.parametrize("weights", [(1.0, 8.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value(weights, temperature):
    student, teacher, target = case()
    rows = student.tolist(), teacher.tolist(), naive_targets(target, 4)
    expected = naive_dkd(*rows, *weights, temperature)
    assert dkd(student, teacher, target, *weights, temperature).item() == pytest.approx(expected, rel=1e-9)


def test_the_parts_make_up_the_divergence():
    """KL = TCKD + (1 - p_y)·NCKD, equation 7 of the paper."""
    student, teacher, target = case(1)
    whole = divergence(*(naive_log_softmax(x[0].tolist()) for x in (student, teacher)))
    tckd, nckd = dkd(student, teacher, target, 1, 0, 1), dkd(student, teacher, target, 0, 1, 1)
    other = 1 - teacher.softmax(1)[0, target[0]]
    assert (tckd + other * nckd).item() == pytest.approx(whole, rel=1e-9)


def test_soft_labels_that_are_hard_change_nothing():
    student, teacher, target = case()
    soft = torch.nn.functional.one_hot(target, 4).double()
    torch.testing.assert_close(dkd(student, teacher, soft), dkd(student, teacher, target))


def test_mixed_labels_mix_the_loss():
    student, teacher, target = case()
    soft = 0.3 * torch.nn.functional.one_hot(target, 4) + 0.7 * torch.nn.functional.one_hot(target.flip(0), 4)
    expected = 0.3 * dkd(student, teacher, target) + 0.7 * dkd(student, teacher, target.flip(0))
    torch.testing.assert_close(dkd(student, teacher, soft), expected)


def test_a_larger_batch_of_the_same_rows_changes_nothing():
    student, teacher, target = case()
    larger = dkd(student.repeat(4, 1), teacher.repeat(4, 1), target.repeat(4))
    torch.testing.assert_close(larger, dkd(student, teacher, target))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_teacher_that_is_sure_and_a_student_that_is_wrong(temperature):
    student, teacher = torch.full((2, 4), -60.0), torch.full((2, 4), -60.0)
    teacher[:, 1], student[:, 2] = 60.0, 60.0
    target = torch.tensor([1, 2])
    value = dkd(student.requires_grad_(), teacher, target, temperature=temperature)
    value.backward()
    rows = student.tolist(), teacher.tolist(), naive_targets(target, 4)
    assert value.item() == pytest.approx(naive_dkd(*rows, 1.0, 8.0, temperature), rel=1e-5)
    assert student.grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher():
    student, teacher, target = case()
    dkd(student.requires_grad_(), teacher.requires_grad_(), target).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher", "target"), [((5, 4), (5, 3), (5,)), ((5, 4), (5, 4), (4,)), ((5, 4), (5, 4), (5, 3))]
)
def test_wrong_shapes_are_told(student, teacher, target):
    with pytest.raises(ValueError) as error:
        dkd(torch.zeros(student), torch.zeros(teacher), torch.zeros(target).long())
    assert all(str(shape) in str(error.value) for shape in (student, teacher, target))


def test_two_classes_are_refused():
    with pytest.raises(ValueError, match=r"3 or more classes.*\(5, 2\)"):
        dkd(*case(5, 2))
    ports = replace(TestDKD.student, classes=2)
    with pytest.raises(InputError, match=r"classes.*two beside the target"):
        DKD().bind(ports, ports, tiny_facts(2))


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"beta": -1.0}, {"temperature": 0.0}])
def test_hyper_parameters_outside_their_range_are_refused(wrong):
    with pytest.raises(InputError, match=rf"DKD\.{next(iter(wrong))}"):
        DKD(**wrong)
