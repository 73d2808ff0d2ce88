from __future__ import annotations

import math
import statistics

import pytest
import torch

from kd.errors import InputError
from kd.losses.response.mlkd import MLKD, mlkd
from kd.testing import LossContract, naive_log_softmax


def probabilities(rows, temperature=1.0):
    return [[math.exp(log_p) for log_p in naive_log_softmax(row, temperature)] for row in rows]


def divergence(student, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        log_q, log_p = naive_log_softmax(ours, temperature), naive_log_softmax(theirs, temperature)
        total += sum(math.exp(p) * (p - q) for q, p in zip(log_q, log_p, strict=True))
    return temperature**2 * total / len(student)


def products(rows):
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]


def distance(a, b):
    pairs = zip(a, b, strict=True)
    return sum((x - y) ** 2 for row, other in pairs for x, y in zip(row, other, strict=True))


def share(values):
    return sum(value <= statistics.median(values) for value in values) / len(values)


def naive_mlkd(student_weak, student_strong, teacher_weak, teacher_strong, temperatures):
    sure = probabilities(teacher_weak)
    samples, classes = share([max(row) for row in sure]), share([sum(column) for column in zip(*sure, strict=True)])
    total = 0.0
    for t in temperatures:
        ours, theirs = probabilities(student_weak, t), probabilities(teacher_weak, t)
        columns = [*zip(*ours, strict=True)], [*zip(*theirs, strict=True)]
        total += samples * divergence(student_weak, teacher_weak, t) + divergence(student_strong, teacher_strong, t)
        total += classes * distance(*map(products, columns)) / len(columns[0])
        total += samples * distance(products(ours), products(theirs)) / len(ours)
    return total


def views(samples=6, classes=5):
    return [*torch.randn(4, samples, classes, dtype=torch.float64)]


@pytest.mark.parametrize("temperatures", [(2, 3, 4, 5, 6), (1.0,)])
@pytest.mark.parametrize(("samples", "classes"), [(6, 5), (7, 4), (1, 3)])
def test_value(samples, classes, temperatures):
    given = views(samples, classes)
    expected = naive_mlkd(*(view.tolist() for view in given), temperatures)
    assert mlkd(*given, temperatures).item() == pytest.approx(expected, rel=1e-9)


def test_the_papers_temperatures_are_the_default():
    given = views()
    assert torch.equal(mlkd(*given), mlkd(*given, (2, 3, 4, 5, 6)))


def test_samples_that_are_equally_sure_all_count():
    given = views()
    given[2] = given[2][:1].repeat(6, 1)  # the share is 1, not a half
    expected = naive_mlkd(*(view.tolist() for view in given), (2.0,))
    assert mlkd(*given, (2.0,)).item() == pytest.approx(expected, rel=1e-9)


def test_a_perfect_student():
    _, _, weak, strong = views()
    student = weak.clone().requires_grad_(), strong.clone().requires_grad_()
    value = mlkd(*student, weak, strong)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert all(gradient.abs().max() < 1e-9 for gradient in torch.autograd.grad(value, student))


def test_gradcheck():
    weak, strong, *teacher = views(3, 4)
    student = weak.requires_grad_(), strong.requires_grad_()
    assert torch.autograd.gradcheck(lambda *logits: mlkd(*logits, *teacher), student)


def test_no_gradient_flows_into_the_teacher():
    given = [view.clone().requires_grad_() for view in views()]
    mlkd(*given).backward()
    assert given[0].grad.any()
    assert given[1].grad.any()
    assert given[2].grad is None
    assert given[3].grad is None


def test_extreme_logits():
    given = [60 * view.float().sign() for view in views()]
    value = mlkd(given[0].requires_grad_(), given[1].requires_grad_(), *given[2:], (1.0, 2.0))
    value.backward()
    assert value.isfinite()
    assert all(view.grad.isfinite().all() for view in given[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    given = [view.to(dtype) for view in views()]
    value = mlkd(*given)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(mlkd(*(view.double() for view in given)).item(), rel=1e-5)


@pytest.mark.parametrize("odd", range(4))
def test_wrong_shapes_are_told(odd):
    given = [torch.zeros(5, 4) for _ in range(4)]
    given[odd] = torch.zeros(5, 3)
    with pytest.raises(ValueError) as error:
        mlkd(*given)
    assert all(shape in str(error.value) for shape in ("(5, 4)", "(5, 3)"))


class TestMLKD(LossContract):
    perfect = 0.0

    def make(self):
        return MLKD()

    def reference(self, loss, student, teacher, batch):
        views = student, student.others[0], teacher, teacher.others[0]
        return naive_mlkd(*(view.logits.tolist() for view in views), loss.temperatures)


@pytest.mark.parametrize("temperatures", [(), (2, 0)])
def test_temperatures_that_cannot_be_are_refused(temperatures):
    with pytest.raises(InputError, match=r"MLKD\.temperatures"):
        MLKD(temperatures)
