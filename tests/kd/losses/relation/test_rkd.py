from __future__ import annotations

import math

import pytest
import torch

from kd.errors import InputError
from kd.functional import rkd_angle, rkd_distance
from kd.losses import RKD
from kd.testing import LossContract


def smooth_l1(a, b):
    gap = abs(a - b)
    return 0.5 * gap**2 if gap < 1 else gap - 0.5


def length(gap):
    return math.sqrt(max(sum(value**2 for value in gap), 1e-12))


def difference(rows, i, j):
    return [b - a for a, b in zip(rows[i], rows[j], strict=True)]


def naive_distance(student, teacher):
    def table(rows):
        n = len(rows)
        distances = [0.0 if i == j else length(difference(rows, i, j)) for i in range(n) for j in range(n)]
        positive = [distance for distance in distances if distance > 0]
        return [distance * len(positive) / sum(positive) for distance in distances]

    ours, theirs = table(student), table(teacher)
    return sum(map(smooth_l1, ours, theirs)) / len(ours)


def naive_angle(student, teacher):
    def direction(rows, i, j):
        gap = difference(rows, i, j)
        return [value / length(gap) for value in gap]

    def cosine(rows, i, j, k):
        return sum(a * b for a, b in zip(direction(rows, i, j), direction(rows, i, k), strict=True))

    n = len(student)
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    return sum(smooth_l1(cosine(student, *triple), cosine(teacher, *triple)) for triple in triples) / n**3


class TestRKD(LossContract):
    perfect = 0.0

    def make(self):
        return RKD()

    def reference(self, loss, student, teacher, batch):
        ours, theirs = student.embedding.tolist(), teacher.embedding.tolist()
        return 25 * naive_distance(ours, theirs) + 50 * naive_angle(ours, theirs)


@pytest.mark.parametrize(("function", "naive"), [(rkd_distance, naive_distance), (rkd_angle, naive_angle)])
class TestFunctions:
    def test_value(self, function, naive):
        student, teacher = torch.randn(6, 3, dtype=torch.float64), 5 * torch.randn(6, 8, dtype=torch.float64)
        expected = naive(student.tolist(), teacher.tolist())
        assert function(student, teacher).item() == pytest.approx(expected, rel=1e-9)

    def test_samples_that_coincide(self, function, naive):
        student, teacher = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
        student[1] = student[0]
        value = function(student.requires_grad_(), teacher)
        value.backward()
        assert value.item() == pytest.approx(naive(student.tolist(), teacher.tolist()), rel=1e-9)
        assert student.grad.isfinite().all()

    def test_a_student_that_collapsed(self, function, naive):
        student = torch.zeros(4, 3, requires_grad=True)
        function(student, torch.randn(4, 3)).backward()
        assert student.grad.isfinite().all()

    def test_small_distances_between_large_embeddings(self, function, naive):
        student, teacher = 1e3 + torch.randn(5, 16), torch.randn(5, 16)
        expected = naive(student.tolist(), teacher.tolist())
        assert function(student, teacher).item() == pytest.approx(expected, rel=1e-3)


def test_the_distance_has_no_meaning_for_one_sample():
    with pytest.raises(ValueError, match="2 or more"):
        rkd_distance(torch.randn(1, 3), torch.randn(1, 3))


@pytest.mark.parametrize("name", ["distance", "angle"])
def test_negative_weights_are_refused(name):
    with pytest.raises(InputError, match=rf"RKD\.{name}"):
        RKD(**{name: -1.0})
