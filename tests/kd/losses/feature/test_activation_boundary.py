from __future__ import annotations

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from kd.batch import Ports
from kd.errors import InputError
from kd.losses.feature.activation_boundary import AB, activation_boundary
from kd.testing import LossContract, naive_net, naive_pool, tiny_facts


def naive_ab(student, teacher, margin):
    """Of (N, C, H, W) nested lists."""
    size = min(len(student[0][0]), len(teacher[0][0])), min(len(student[0][0][0]), len(teacher[0][0][0]))
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            for row, other in zip(naive_pool(a, size), naive_pool(b, size), strict=True):
                for s, t in zip(row, other, strict=True):
                    if t <= 0 and s > -margin:
                        total += (s + margin) ** 2
                    elif t > 0 and s <= margin:
                        total += (s - margin) ** 2
    return total / len(student)


class TestAB(LossContract):
    def make(self):
        return AB()

    def reference(self, loss, student, teacher, batch):
        total = 0.0
        for weight, i, connector in zip((0.5, 1.0), (0, 1), loss.connectors, strict=True):
            ours = naive_net(connector, student.before[i].tolist())
            total += weight * naive_ab(ours, teacher.before[i].tolist(), 1.0)
        return total


@pytest.mark.parametrize("margin", [1.0, 0.3])
@pytest.mark.parametrize("shapes", [((3, 2, 4, 4), (3, 2, 4, 4)), ((3, 2, 7, 3), (3, 2, 4, 5))])
def test_value(shapes, margin):
    student, teacher = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    expected = naive_ab(student.tolist(), teacher.tolist(), margin)
    assert activation_boundary(student, teacher, margin).item() == pytest.approx(expected, rel=1e-9)


def test_on_the_right_side_by_the_margin_is_enough():
    teacher = torch.randn(2, 3, 4, 4)
    assert activation_boundary(1.5 * teacher.sign(), teacher) == 0
    assert activation_boundary(-teacher.sign(), teacher) == 2**2 * 3 * 4 * 4


def test_a_teacher_at_the_boundary_is_not_active():
    zero = torch.zeros(1, 1, 1, 1)
    assert activation_boundary(zero - 1, zero) == 0
    assert activation_boundary(zero + 1, zero) == 4


def test_a_sum_over_elements_and_a_mean_over_samples():
    student, teacher = torch.randn(2, 3, 2, 4, 4)
    value = activation_boundary(student, teacher)
    more = activation_boundary(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1))
    wider = activation_boundary(student.repeat(1, 4, 1, 1), teacher.repeat(1, 4, 1, 1))
    torch.testing.assert_close(more, value)
    torch.testing.assert_close(wider, 4 * value)


def test_gradcheck():
    student, teacher = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: activation_boundary(x, teacher), student.requires_grad_())


def test_no_gradient_flows_into_the_teacher():
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    activation_boundary(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = torch.randn(2, 3, 2, 4, 4).to(dtype)
    value = activation_boundary(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(activation_boundary(student.double(), teacher.double()).item(), rel=1e-5)


@pytest.mark.parametrize("shapes", [((3, 2, 4, 4), (2, 2, 4, 4)), ((3, 2, 4, 4), (3, 3, 4, 4)), ((3, 2), (3, 2))])
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        activation_boundary(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_the_teachers_larger_map_is_pooled():
    student, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(
        activation_boundary(student, teacher), activation_boundary(student, adaptive_avg_pool2d(teacher, 2))
    )


def test_stages():
    loss, ports = AB(), Ports(3, 2, ((2, 4, 4),) * 5)
    loss.bind(ports, Ports(3, 2, ((2, 4, 4),) * 4), tiny_facts())
    assert loss.stages == (-3, -2, -1)
    assert loss.needs.before
    assert {name.split(".", 2)[2] for name, _ in loss.named_parameters()} == {"0.weight", "1.weight", "1.bias"}
    with pytest.raises(InputError, match=r"AB\.stages"):
        AB([])


def test_a_margin_that_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"AB\.margin"):
        AB(margin=0.0)
