from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Ports
from kd.errors import InputError
from kd.losses.relation.correlation_congruence import CC, correlation_congruence
from kd.testing import LossContract, tiny_facts


def naive_kernel(rows, gamma, order):
    lengths = [math.sqrt(sum(value**2 for value in row)) for row in rows]
    rows = [[v / length if length else 0.0 for v in row] for row, length in zip(rows, lengths, strict=True)]
    cosines = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    weights = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) for p in range(order + 1)]
    return [[sum(w * cosine**p for p, w in enumerate(weights)) for cosine in row] for row in cosines]


def naive_cc(student, teacher, gamma=0.4, order=2):
    total = 0.0
    for row, other in zip(naive_kernel(student, gamma, order), naive_kernel(teacher, gamma, order), strict=True):
        total += sum((ours - theirs) ** 2 for ours, theirs in zip(row, other, strict=True))
    return total / len(student) ** 2


def naive_linear(layer, rows):
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [
        [sum(w * x for w, x in zip(out, row, strict=True)) + b for out, b in zip(weight, bias, strict=True)]
        for row in rows
    ]


class TestCC(LossContract):
    def make(self):
        return CC()

    def reference(self, loss, student, teacher, batch):
        return naive_cc(naive_linear(loss.embed, student.embedding.tolist()), teacher.embedding.tolist())


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (0.4, 1), (1.5, 4)])
@pytest.mark.parametrize("samples", [1, 5])
def test_value(samples, gamma, order):
    student, teacher = torch.randn(2, samples, 3, dtype=torch.float64)
    expected = naive_cc(student.tolist(), (3 * teacher).tolist(), gamma, order)
    value = correlation_congruence(student, 3 * teacher, gamma, order)
    assert value.item() == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_high_order_is_the_gaussian_kernel():
    student, teacher = torch.nn.functional.normalize(torch.randn(2, 5, 3, dtype=torch.float64), dim=2)
    gaussian = [torch.exp(-0.4 * torch.cdist(x, x).square()) for x in (student, teacher)]
    torch.testing.assert_close(
        correlation_congruence(student, teacher, 0.4, 20), (gaussian[0] - gaussian[1]).square().mean()
    )


def test_a_larger_batch_of_the_same_samples_changes_nothing():
    student, teacher = torch.randn(2, 4, 6)
    twice = correlation_congruence(student.repeat(2, 1), teacher.repeat(2, 1))
    torch.testing.assert_close(twice, correlation_congruence(student, teacher))


def test_equal_embeddings_up_to_scale_have_no_loss():
    student = torch.randn(4, 6, dtype=torch.float64)
    assert correlation_congruence(student, 3 * student).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("side", [0, 1])
def test_embeddings_of_zeros_and_such_that_coincide(side):
    rows = [torch.randn(5, 3), torch.randn(5, 3)]
    rows[side][0] = 0
    rows[side][2] = rows[side][1]
    value = correlation_congruence(rows[0].requires_grad_(), rows[1])
    value.backward()
    assert value.item() == pytest.approx(naive_cc(*(x.tolist() for x in rows)), rel=1e-5)
    assert rows[0].grad.abs().max() < 100  # divided by a small number instead of its norm, it would be 1e12


def test_no_gradient_flows_into_the_teacher():
    student, teacher = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    correlation_congruence(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = torch.randn(2, 4, 6).to(dtype)
    value = correlation_congruence(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(correlation_congruence(student.double(), teacher.double()).item(), abs=1e-6)


@pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3, 2), (3, 4)), ((3,), (3,)), ((3, 2, 1, 1), (3, 2, 1, 1))])
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        correlation_congruence(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_the_student_gets_the_width_of_the_teacher():
    loss = CC()
    loss.bind(Ports(3, 4, ()), Ports(3, 9, ()), tiny_facts())
    assert (loss.embed.in_features, loss.embed.out_features) == (4, 9)
    assert loss.needs.gathered


@pytest.mark.parametrize(("name", "value"), [("gamma", 0.0), ("order", 0)])
def test_a_kernel_that_relates_nothing_is_refused(name, value):
    with pytest.raises(InputError, match=rf"CC\.{name}"):
        CC(**{name: value})
