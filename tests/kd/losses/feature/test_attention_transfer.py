from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Outputs, Ports
from kd.errors import InputError
from kd.losses.feature.attention_transfer import AT, attention_transfer
from kd.testing import LossContract, naive_pool, tiny_facts


def naive_attention(image, size):
    planes = [naive_pool(plane, size) for plane in image]
    flat = [sum(p[y][x] ** 2 for p in planes) / len(planes) for y in range(size[0]) for x in range(size[1])]
    length = max(math.sqrt(sum(value**2 for value in flat)), 1e-12)
    return [value / length for value in flat]


def naive_at(student, teacher):
    """Of (N, C, H, W) nested lists."""
    size = min(len(student[0][0]), len(teacher[0][0])), min(len(student[0][0][0]), len(teacher[0][0][0]))
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        pairs = zip(naive_attention(ours, size), naive_attention(theirs, size), strict=True)
        total += sum((a - b) ** 2 for a, b in pairs)
    return total / len(student) / size[0] / size[1]


class TestAT(LossContract):
    perfect = 0.0

    def make(self):
        return AT()

    def reference(self, loss, student, teacher, batch):
        pairs = zip(student.stages, teacher.stages, strict=True)
        return sum(naive_at(ours.tolist(), theirs.tolist()) for ours, theirs in pairs)


@pytest.mark.parametrize(
    "shapes", [((3, 2, 4, 4), (3, 5, 4, 4)), ((3, 2, 7, 3), (3, 4, 4, 5)), ((1, 2, 2, 2), (1, 2, 6, 6))]
)
def test_value(shapes):
    student, teacher = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    expected = naive_at(student.tolist(), teacher.tolist())
    assert attention_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-9)
    assert attention_transfer(teacher, student).item() == pytest.approx(expected, rel=1e-9)


def test_the_size_of_a_map_and_its_signs_do_not_count():
    student, teacher = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(attention_transfer(-3 * student, 7 * teacher), attention_transfer(student, teacher))


def test_a_larger_batch_of_the_same_maps_changes_nothing():
    student, teacher = torch.randn(2, 3, 2, 4, 4)
    larger = attention_transfer(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1))
    torch.testing.assert_close(larger, attention_transfer(student, teacher))


@pytest.mark.parametrize("side", [0, 1])
def test_maps_of_zeros(side):
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)]
    maps[side][0] = 0
    value = attention_transfer(maps[0].requires_grad_(), maps[1])
    value.backward()
    assert value.item() == pytest.approx(naive_at(*(x.tolist() for x in maps)), rel=1e-5)
    assert maps[0].grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher():
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    attention_transfer(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = torch.randn(2, 3, 2, 4, 4).to(dtype)
    value = attention_transfer(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(attention_transfer(student.double(), teacher.double()).item(), rel=1e-5)


@pytest.mark.parametrize("shapes", [((3, 2, 4, 4), (2, 2, 4, 4)), ((3, 2, 4), (3, 2, 4, 4))])
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        attention_transfer(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_the_last_three_stages_that_both_have_are_read():
    sizes = [(2, 8, 8), (2, 8, 8), (2, 8, 8), (2, 4, 4), (2, 2, 2)]
    loss, shorter = AT(), AT()
    loss.bind(Ports(3, 2, tuple(sizes)), Ports(3, 2, tuple(sizes[1:])), tiny_facts())
    shorter.bind(Ports(3, 2, tuple(sizes)), Ports(3, 2, tuple(sizes[3:])), tiny_facts())
    assert loss.stages == (-3, -2, -1)
    assert shorter.stages == (-2, -1)
    student, teacher = ([torch.randn(2, *size) for size in side] for side in (sizes, sizes[1:]))
    expected = sum(attention_transfer(*maps) for maps in zip(student[2:], teacher[1:], strict=True))
    logits = torch.zeros(2, 3)
    value = loss(Outputs(logits, stages=tuple(student)), Outputs(logits, stages=tuple(teacher)), None)
    torch.testing.assert_close(value, expected)


def test_stages_of_choice():
    loss = AT([-2])
    assert loss.needs.stages == (-2,)
    loss.bind(Ports(3, 2, ((2, 4, 4),) * 4), Ports(3, 2, ((2, 4, 4),) * 4), tiny_facts())
    assert loss.stages == [-2]
    with pytest.raises(InputError, match=r"AT\.stages"):
        AT([])
