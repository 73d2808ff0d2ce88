from __future__ import annotations

import pytest
import torch

from kd.batch import Ports
from kd.errors import InputError
from kd.losses.feature.fsp import FSP, fsp
from kd.testing import LossContract, naive_pool, tiny_facts


def naive_flow(first, last):
    """Of the two maps of one sample, [channel][row][column]."""
    size = min(len(first[0]), len(last[0])), min(len(first[0][0]), len(last[0][0]))
    places = [(y, x) for y in range(size[0]) for x in range(size[1])]
    first, last = ([naive_pool(plane, size) for plane in image] for image in (first, last))
    return [[sum(a[y][x] * b[y][x] for y, x in places) / len(places) for b in last] for a in first]


def naive_fsp(student_pair, teacher_pair):
    """Of pairs of (N, C, H, W) tensors."""
    gaps = []
    samples = zip(*(x.tolist() for x in (*student_pair, *teacher_pair)), strict=True)
    for ours_first, ours_last, theirs_first, theirs_last in samples:
        ours, theirs = naive_flow(ours_first, ours_last), naive_flow(theirs_first, theirs_last)
        for row, other in zip(ours, theirs, strict=True):
            gaps += [(a - b) ** 2 for a, b in zip(row, other, strict=True)]
    return sum(gaps) / len(gaps)


class TestFSP(LossContract):
    student = Ports(classes=4, embedding=3, stages=((2, 6, 6), (3, 4, 4), (2, 2, 2)))
    teacher = Ports(classes=4, embedding=5, stages=((2, 4, 4), (3, 4, 4), (2, 3, 3)))
    perfect = 0.0

    def make(self):
        return FSP()

    def reference(self, loss, student, teacher, batch):
        (a, b, c), (d, e, f) = student.stages, teacher.stages
        return naive_fsp((a, b), (d, e)) + naive_fsp((b, c), (e, f))


def maps(*shapes):
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


PAIRS = [
    (((3, 2, 4, 4), (3, 4, 4, 4)), ((3, 2, 4, 4), (3, 4, 4, 4))),
    (((3, 2, 8, 8), (3, 4, 4, 4)), ((3, 2, 3, 3), (3, 4, 6, 6))),
    (((3, 2, 7, 3), (3, 4, 4, 5)), ((3, 2, 4, 5), (3, 4, 7, 3))),
]


@pytest.mark.parametrize("shapes", PAIRS)
def test_value(shapes):
    student, teacher = (maps(*side) for side in shapes)
    assert fsp(student, teacher).item() == pytest.approx(naive_fsp(student, teacher), rel=1e-9)
    assert fsp(list(student), list(teacher)).item() == pytest.approx(naive_fsp(student, teacher), rel=1e-9)


def test_a_larger_batch_or_a_larger_map_of_the_same_changes_nothing():
    student, teacher = (maps((3, 2, 4, 4), (3, 4, 4, 4)) for _ in range(2))
    for repeat in ((4, 1, 1, 1), (1, 1, 2, 3)):
        larger = [tuple(x.repeat(repeat) for x in side) for side in (student, teacher)]
        torch.testing.assert_close(fsp(*larger), fsp(student, teacher))


def test_maps_of_zeros():
    student = tuple(torch.zeros(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    value = fsp(student, (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)))
    value.backward()
    assert value > 0
    assert all(x.grad.isfinite().all() for x in student)


def test_gradients_reach_both_maps_of_the_student_and_none_of_the_teacher():
    sides = [tuple(x.requires_grad_() for x in maps((2, 2, 4, 4), (2, 3, 2, 2))) for _ in range(2)]
    fsp(*sides).backward()
    assert all(x.grad.any() for x in sides[0])
    assert all(x.grad is None for x in sides[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    sides = [tuple(x.to(dtype) for x in maps((3, 2, 4, 4), (3, 4, 2, 2))) for _ in range(2)]
    value = fsp(*sides)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(fsp(*(tuple(x.double() for x in side) for side in sides)).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (((3, 2, 4, 4), (3, 4, 4, 4)), ((3, 2, 4, 4), (3, 5, 4, 4))),
        (((3, 2, 4, 4), (3, 4, 4, 4)), ((3, 3, 4, 4), (3, 4, 4, 4))),
        (((3, 2, 4, 4), (3, 4, 4, 4)), ((2, 2, 4, 4), (2, 4, 4, 4))),
        (((3, 2, 4, 4), (2, 4, 4, 4)), ((3, 2, 4, 4), (2, 4, 4, 4))),
        (((3, 2, 4), (3, 4, 4)), ((3, 2, 4), (3, 4, 4))),
        (((3, 2, 4, 4), (3, 4, 4, 4)), ((3, 2, 4, 4),)),
    ],
)
def test_wrong_shapes_are_told(student, teacher):
    with pytest.raises(ValueError) as error:
        fsp(tuple(map(torch.zeros, student)), tuple(map(torch.zeros, teacher)))
    assert all(str(shape) in str(error.value) for shape in (*student, *teacher))


def bound(student, teacher, stages=None):
    loss = FSP(stages)
    sides = [Ports(3, 2, tuple((width, 4, 4) for width in widths)) for widths in (student, teacher)]
    loss.bind(*sides, tiny_facts())
    return loss


def test_stages():
    assert bound([2, 2, 4, 8, 16], [2, 2, 4, 8, 16]).stages == (-4, -3, -2, -1)
    assert bound([1, 4, 8], [4, 8]).stages == (-2, -1)
    with pytest.raises(InputError, match=r"FSP\.stages"):
        FSP([-1])
    with pytest.raises(InputError, match=r"FSP\.stages.*two stages"):
        bound([4], [4, 4])


def test_unequal_widths_are_refused():
    with pytest.raises(InputError, match=r"FSP\.stages: -2: the student has 4 channels there and the teacher 6"):
        bound([2, 4, 8], [2, 6, 8])
