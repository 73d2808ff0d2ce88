from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Ports
from kd.errors import InputError
from kd.losses.feature.nst import NST, nst
from kd.testing import LossContract, naive_pool, tiny_facts


def naive_channels(image, size):
    channels = [[value for row in naive_pool(plane, size) for value in row] for plane in image]
    lengths = [max(math.sqrt(sum(value**2 for value in channel)), 1e-12) for channel in channels]
    return [[value / length for value in channel] for channel, length in zip(channels, lengths, strict=True)]


def naive_kernel(a, b):
    return sum(sum(x * y for x, y in zip(p, q, strict=True)) ** 2 for p in a for q in b) / len(a) / len(b)


def naive_nst(student, teacher):
    """Of (N, C, H, W) nested lists."""
    size = min(len(student[0][0]), len(teacher[0][0])), min(len(student[0][0][0]), len(teacher[0][0][0]))
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        a, b = naive_channels(ours, size), naive_channels(theirs, size)
        total += naive_kernel(a, a) + naive_kernel(b, b) - 2 * naive_kernel(a, b)
    return total / len(student)


class TestNST(LossContract):
    perfect = 0.0

    def make(self):
        return NST()

    def reference(self, loss, student, teacher, batch):
        pairs = zip(student.stages, teacher.stages, strict=True)
        return sum(naive_nst(ours.tolist(), theirs.tolist()) for ours, theirs in pairs)


@pytest.mark.parametrize(
    "shapes", [((3, 2, 4, 4), (3, 5, 4, 4)), ((3, 2, 7, 3), (3, 4, 4, 5)), ((1, 2, 2, 2), (1, 2, 6, 6))]
)
def test_value(shapes):
    student, teacher = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    expected = naive_nst(student.tolist(), teacher.tolist())
    assert nst(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert nst(teacher, student).item() == pytest.approx(expected, rel=1e-9)


def test_what_counts_is_the_distribution_of_channels():
    """Neither their order nor their number, scale and sign."""
    student, teacher = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    other = -2 * student[:, [2, 0, 3, 1, 2, 0, 3, 1]]
    torch.testing.assert_close(nst(other, teacher), nst(student, teacher))
    assert nst(other, student).item() == pytest.approx(0, abs=1e-12)


def test_a_larger_batch_of_the_same_maps_changes_nothing():
    student, teacher = torch.randn(2, 3, 2, 4, 4)
    torch.testing.assert_close(nst(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1)), nst(student, teacher))


@pytest.mark.parametrize("side", [0, 1])
def test_channels_of_zeros(side):
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)]
    maps[side][0] = 0
    maps[side][1, 2] = 0
    value = nst(maps[0].requires_grad_(), maps[1])
    value.backward()
    assert value.item() == pytest.approx(naive_nst(*(x.tolist() for x in maps)), rel=1e-5)
    assert maps[0].grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher():
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    nst(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = torch.randn(2, 3, 2, 4, 4).to(dtype)
    value = nst(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(nst(student.double(), teacher.double()).item(), abs=1e-6)


@pytest.mark.parametrize("shapes", [((3, 2, 4, 4), (2, 2, 4, 4)), ((3, 2, 4), (3, 2, 4, 4))])
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        nst(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_stages():
    loss, ports = NST(), Ports(3, 2, ((2, 4, 4),) * 5)
    loss.bind(ports, Ports(3, 2, ((2, 4, 4),) * 4), tiny_facts())
    assert loss.stages == (-3, -2, -1)
    assert NST([-1]).needs.stages == (-1,)
    with pytest.raises(InputError, match=r"NST\.stages"):
        NST([])
