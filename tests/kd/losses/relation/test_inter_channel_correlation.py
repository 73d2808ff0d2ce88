from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Ports
from kd.losses.relation.inter_channel_correlation import ICKD, inter_channel_correlation
from kd.testing import LossContract, naive_net, tiny_facts


def naive_correlations(image):
    rows = [[value for line in plane for value in line] for plane in image]
    table = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    lengths = [math.sqrt(sum(value**2 for value in row)) for row in table]
    return [[value / length if length else 0.0 for value in row] for row, length in zip(table, lengths, strict=True)]


def naive_ickd(student, teacher):
    """Of (N, C, H, W) nested lists."""
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        for row, other in zip(naive_correlations(ours), naive_correlations(theirs), strict=True):
            total += sum((s - t) ** 2 for s, t in zip(row, other, strict=True))
    return total / len(student) / len(student[0])


class TestICKD(LossContract):
    def make(self):
        return ICKD()

    def reference(self, loss, student, teacher, batch):
        ours = naive_net(loss.connector, student.stages[-1].tolist())
        return naive_ickd(ours, teacher.stages[-1].tolist())


@pytest.mark.parametrize("shapes", [((3, 4, 2, 2), (3, 4, 2, 2)), ((2, 3, 5, 4), (2, 3, 2, 7)), ((1, 1, 2, 2),) * 2])
def test_value(shapes):
    student, teacher = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    expected = naive_ickd(student.tolist(), teacher.tolist())
    assert inter_channel_correlation(student, teacher).item() == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_channels_are_related_within_a_sample():
    """A larger batch of the same maps changes nothing, and one sample's loss does not depend on the others."""
    student, teacher = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    value = inter_channel_correlation(student, teacher)
    torch.testing.assert_close(inter_channel_correlation(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), value)
    alone = [inter_channel_correlation(student[i : i + 1], teacher[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.stack(alone).mean(), value)


def test_the_scale_of_the_maps_does_not_matter():
    student, teacher = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(
        inter_channel_correlation(1e-9 * student, 5 * teacher), inter_channel_correlation(student, teacher)
    )


@pytest.mark.parametrize("side", [0, 1])
def test_channels_and_maps_of_zeros(side):
    maps = [torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)]
    maps[side][0] = 0
    maps[side][1, 2] = 0
    maps[side][2, 0] = maps[side][2, 1]
    value = inter_channel_correlation(maps[0].requires_grad_(), maps[1])
    value.backward()
    assert value.item() == pytest.approx(naive_ickd(*(x.tolist() for x in maps)), rel=1e-5)
    assert maps[0].grad.abs().max() < 100  # divided by a small number instead of its norm, it would be 1e12


def test_no_gradient_flows_into_the_teacher():
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    inter_channel_correlation(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = torch.randn(2, 3, 4, 2, 2).to(dtype)
    value = inter_channel_correlation(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = inter_channel_correlation(student.double(), teacher.double())
    assert value.item() == pytest.approx(exact.item(), abs=1e-6)


@pytest.mark.parametrize("shapes", [((3, 2, 4, 4), (2, 2, 4, 4)), ((3, 2, 4, 4), (3, 5, 4, 4)), ((3, 2), (3, 2))])
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        inter_channel_correlation(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_the_student_gets_the_width_of_the_teacher():
    loss = ICKD(-2)
    loss.bind(Ports(3, 2, ((4, 8, 8), (5, 4, 4))), Ports(3, 2, ((9, 8, 8), (7, 4, 4))), tiny_facts())
    assert loss.connector[0].weight.shape == (9, 4, 1, 1)
    assert loss.needs.stages == (-2,)
