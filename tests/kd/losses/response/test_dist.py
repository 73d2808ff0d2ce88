from __future__ import annotations

import math

import pytest
import torch

from kd.errors import InputError
from kd.losses.response.dist import DIST, dist
from kd.testing import LossContract, naive_log_softmax


def naive_correlation(a, b):
    a, b = ([value - sum(row) / len(row) for value in row] for row in (a, b))
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (norms + 1e-8)


def naive_dist(student, teacher, beta, gamma, temperature):
    def table(rows):
        return [[math.exp(log_p) for log_p in naive_log_softmax(row, temperature)] for row in rows]

    def distance(ours, theirs):
        return 1 - sum(map(naive_correlation, ours, theirs)) / len(ours)

    ours, theirs = table(student), table(teacher)
    inter, intra = distance(ours, theirs), distance([*zip(*ours, strict=True)], [*zip(*theirs, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


class TestDIST(LossContract):
    def make(self):
        return DIST()

    def reference(self, loss, student, teacher, batch):
        return naive_dist(student.logits.tolist(), teacher.logits.tolist(), 1.0, 1.0, 4.0)


class TestDISTUntempered(LossContract):
    def make(self):
        return DIST(beta=2.0, gamma=0.5, temperature=1.0)

    def reference(self, loss, student, teacher, batch):
        return naive_dist(student.logits.tolist(), teacher.logits.tolist(), 2.0, 0.5, 1.0)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_value(weights, temperature):
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    expected = naive_dist(student.tolist(), teacher.tolist(), *weights, temperature)
    assert dist(student, teacher, *weights, temperature).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_both_relations_fall_as_the_student_nears_the_teacher(weights):
    teacher, noise = torch.randn(2, 6, 4, dtype=torch.float64)
    values = [dist(teacher + share * noise, teacher, *weights).item() for share in (0.0, 0.1, 1.0)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0, abs=1e-6)


def test_a_student_that_is_a_scaled_teacher_has_perfect_relations_in_each_sample():
    first = torch.tensor([2.0, -1.0, 0.5, -3.0, 1.0], dtype=torch.float64)  # where the guard is nothing
    logits = torch.stack([first, -first], 1)  # of two classes, probabilities are always a scaled copy
    assert dist(3 * logits, logits, gamma=0.0).item() == pytest.approx(0, abs=1e-6)


def test_a_larger_batch_of_the_same_rows_changes_nothing():
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    larger = dist(student.repeat(4, 1), teacher.repeat(4, 1))
    torch.testing.assert_close(larger, dist(student, teacher), rtol=1e-6, atol=0)


@pytest.mark.parametrize("student", [torch.zeros(5, 4), torch.randn(1, 4).repeat(5, 1), torch.randn(1, 4)])
def test_what_does_not_vary_has_a_gradient(student):
    teacher = torch.randn(student.shape)
    value = dist(student.requires_grad_(), teacher)
    value.backward()
    assert value.item() == pytest.approx(naive_dist(student.tolist(), teacher.tolist(), 1.0, 1.0, 1.0), abs=1e-4)
    assert student.grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher():
    student, teacher = torch.randn(2, 5, 4)
    student, teacher = student.requires_grad_(), teacher.clone().requires_grad_()
    dist(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize(("student", "teacher"), [((5, 4), (5, 3)), ((5, 4), (4, 4)), ((4,), (4,))])
def test_wrong_shapes_are_told(student, teacher):
    with pytest.raises(ValueError) as error:
        dist(torch.zeros(student), torch.zeros(teacher))
    assert all(str(shape) in str(error.value) for shape in (student, teacher))


def test_the_batch_is_seen_whole():
    assert DIST().needs.gathered


@pytest.mark.parametrize("wrong", [{"beta": -1.0}, {"gamma": -1.0}, {"temperature": 0.0}])
def test_hyper_parameters_outside_their_range_are_refused(wrong):
    with pytest.raises(InputError, match=rf"DIST\.{next(iter(wrong))}"):
        DIST(**wrong)
