from __future__ import annotations

import math

import pytest
import torch

from kd.losses.relation.similarity_preserving import SP, similarity_preserving
from kd.testing import LossContract


def flat(values):
    return [x for value in values for x in flat(value)] if isinstance(values, list) else [values]


def naive_similarities(samples):
    """Of nested lists, a sample each."""
    rows = [flat(sample) for sample in samples]
    table = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    lengths = [math.sqrt(sum(value**2 for value in row)) for row in table]
    return [[value / length if length else 0.0 for value in row] for row, length in zip(table, lengths, strict=True)]


def naive_sp(student, teacher):
    pairs = zip(flat(naive_similarities(student)), flat(naive_similarities(teacher)), strict=True)
    return sum((ours - theirs) ** 2 for ours, theirs in pairs) / len(student) ** 2


class TestSP(LossContract):
    perfect = 0.0

    def make(self):
        return SP()

    def reference(self, loss, student, teacher, batch):
        return naive_sp(student.stages[-1].tolist(), teacher.stages[-1].tolist())


@pytest.mark.parametrize(
    "shapes", [((4, 2, 3, 3), (4, 5, 2, 2)), ((5, 3), (5, 7)), ((3, 6), (3, 2, 4, 4)), ((1, 2, 2, 2), (1, 3))]
)
def test_value(shapes):
    student, teacher = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    value = similarity_preserving(student, teacher)
    assert value.item() == pytest.approx(naive_sp(student.tolist(), teacher.tolist()), rel=1e-9, abs=1e-15)


def test_the_sum_is_over_rows_that_have_length_1():
    """By hand: the identity against a teacher whose samples are all alike; a mean over rows or no root would differ."""
    value = similarity_preserving(torch.eye(2, dtype=torch.float64), torch.ones(2, 5, dtype=torch.float64))
    assert value.item() == pytest.approx(2 * ((1 - math.sqrt(0.5)) ** 2 + 0.5) / 4)


def test_it_does_not_grow_with_the_batch():
    """Twice the samples have similarities 1/√2 as long, on four times the pairs: half the loss, not as much or more."""
    student, teacher = torch.randn(2, 4, 6)
    twice = similarity_preserving(student.repeat(2, 1), teacher.repeat(2, 1))
    torch.testing.assert_close(2 * twice, similarity_preserving(student, teacher))


def test_the_scale_of_the_maps_does_not_matter():
    student, teacher = torch.randn(2, 4, 6)
    torch.testing.assert_close(similarity_preserving(1e-9 * student, teacher), similarity_preserving(student, teacher))


@pytest.mark.parametrize("side", [0, 1])
def test_a_map_of_zeros(side):
    maps = [torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)]
    maps[side][1] = 0
    value = similarity_preserving(maps[0].requires_grad_(), maps[1])
    value.backward()
    assert value.item() == pytest.approx(naive_sp(*(x.tolist() for x in maps)), rel=1e-5)
    assert maps[0].grad.abs().max() < 100  # divided by a small number instead of its norm, it would be 1e12


def test_samples_that_coincide():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    student[1] = student[0]
    value = similarity_preserving(student.requires_grad_(), teacher)
    value.backward()
    assert value.item() == pytest.approx(naive_sp(student.tolist(), teacher.tolist()), rel=1e-5)
    assert student.grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher():
    student, teacher = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    similarity_preserving(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = torch.randn(2, 4, 6).to(dtype)
    value = similarity_preserving(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(similarity_preserving(student.double(), teacher.double()).item(), abs=1e-6)


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3,), (3, 2)), ((3, 2, 4, 4), (3,))])
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        similarity_preserving(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_it_sees_the_whole_batch():
    assert SP().needs.gathered
    assert SP(-2).needs.stages == (-2,)
