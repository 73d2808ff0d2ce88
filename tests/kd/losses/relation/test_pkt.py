from __future__ import annotations

import math

import pytest
import torch

from kd.errors import InputError
from kd.losses.relation.pkt import PKT, pkt
from kd.testing import LossContract


def naive_neighbours(rows, eps):
    rows = [[value / (math.sqrt(sum(v**2 for v in row)) + eps) for value in row] for row in rows]
    similar = [[(sum(x * y for x, y in zip(a, b, strict=True)) + 1) / 2 for b in rows] for a in rows]
    return [[max(value, 0.0) / sum(row) for value in row] for row in similar]


def naive_pkt(student, teacher, eps=1e-7):
    ours, theirs = naive_neighbours(student, eps), naive_neighbours(teacher, eps)
    total = 0.0
    for row, other in zip(ours, theirs, strict=True):
        total += sum(t * math.log((t + eps) / (s + eps)) for s, t in zip(row, other, strict=True))
    return total / len(ours) ** 2


class TestPKT(LossContract):
    perfect = 0.0

    def make(self):
        return PKT()

    def reference(self, loss, student, teacher, batch):
        return naive_pkt(student.embedding.tolist(), teacher.embedding.tolist())


@pytest.mark.parametrize("eps", [1e-7, 0.1])
@pytest.mark.parametrize("shapes", [((6, 3), (6, 8)), ((4, 5), (4, 5)), ((1, 3), (1, 2))])
def test_value(shapes, eps):
    student, teacher = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    value = pkt(student, teacher, eps)
    assert value.item() == pytest.approx(naive_pkt(student.tolist(), teacher.tolist(), eps), rel=1e-9, abs=1e-15)


def test_the_divergence_is_of_the_student_from_the_teacher():
    """Not the other way round: the two differ."""
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64)
    there, back = naive_pkt(student.tolist(), teacher.tolist()), naive_pkt(teacher.tolist(), student.tolist())
    assert abs(there - back) > 1e-3 * there
    assert pkt(student, teacher).item() == pytest.approx(there, rel=1e-9)


def test_it_does_not_grow_with_the_batch():
    """Twice the samples: the probabilities halve, their quotients stay, and the mean over pairs halves with them."""
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64)
    twice = pkt(student.repeat(2, 1), teacher.repeat(2, 1))
    torch.testing.assert_close(2 * twice, pkt(student, teacher), rtol=1e-4, atol=1e-9)


def test_opposite_samples():
    """Rounding takes some of these cosines below -1 in float32, by more than eps."""
    half = 100 * torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    student = torch.stack([half, -half], 1).requires_grad_()
    values = torch.stack([pkt(opposite, torch.ones(2, 3)) for opposite in student])
    values.sum().backward()
    assert values.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("side", [0, 1])
def test_embeddings_of_zeros_and_such_that_coincide(side):
    rows = [torch.randn(5, 3), torch.randn(5, 3)]
    rows[side][0] = 0
    rows[side][2] = rows[side][1]
    value = pkt(rows[0].requires_grad_(), rows[1])
    value.backward()
    assert value.item() == pytest.approx(naive_pkt(*(x.tolist() for x in rows)), rel=1e-4)
    assert rows[0].grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher():
    student, teacher = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    pkt(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = torch.randn(2, 4, 6).to(dtype)
    value = pkt(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(pkt(student.double(), teacher.double()).item(), abs=1e-6)


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3,), (3, 2)), ((3, 2, 1, 1), (3, 2))])
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        pkt(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_it_sees_the_whole_batch():
    assert PKT().needs.gathered


def test_an_eps_that_protects_nothing_is_refused():
    with pytest.raises(InputError, match=r"PKT\.eps: 0\.0: must be above 0"):
        PKT(0.0)
