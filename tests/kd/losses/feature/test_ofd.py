from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch

from kd.batch import Ports
from kd.errors import InputError
from kd.losses.feature.ofd import OFD, ofd, ofd_margin
from kd.testing import LossContract, naive_net, naive_pool, tiny_facts


def naive_ofd(student, teacher, margins):
    """Of (N, C, H, W) nested lists and a margin a channel."""
    size = min(len(student[0][0]), len(teacher[0][0])), min(len(student[0][0][0]), len(teacher[0][0][0]))
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        for a, b, margin in zip(ours, theirs, margins, strict=True):
            for row, other in zip(naive_pool(a, size), naive_pool(b, size), strict=True):
                for s, t in zip(row, other, strict=True):
                    t = max(t, margin)
                    total += (s - t) ** 2 if s > t or t > 0 else 0.0
    return total / len(student)


def naive_margin(weight, bias):
    deviation = abs(weight)
    if deviation == 0:
        return 0.0
    below = NormalDist().cdf(-bias / deviation)
    if below <= 0.001:
        return -3 * deviation
    return bias - deviation * math.exp(-((bias / deviation) ** 2) / 2) / (math.sqrt(2 * math.pi) * below)


class TestOFD(LossContract):
    def make(self):
        return OFD()

    def reference(self, loss, student, teacher, batch):
        total = 0.0
        for weight, i, connector in zip((0.5, 1.0), (0, 1), loss.connectors, strict=True):
            ours = naive_net(connector, student.before[i].tolist())
            total += weight * naive_ofd(ours, teacher.before[i].tolist(), loss.get_buffer(f"margin{i}").tolist())
        return total


MARGIN = torch.tensor([-0.2, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("shapes", [((3, 2, 4, 4), (3, 2, 4, 4)), ((3, 2, 7, 3), (3, 2, 4, 5))])
def test_value(shapes):
    student, teacher = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    expected = naive_ofd(student.tolist(), teacher.tolist(), MARGIN.tolist())
    assert ofd(student, teacher, MARGIN).item() == pytest.approx(expected, rel=1e-9)


def test_below_the_margin_all_is_well():
    student, teacher = torch.full((1, 2, 2, 2), -2.0), torch.full((1, 2, 2, 2), -7.0)
    assert ofd(student, teacher, MARGIN) == 0
    assert ofd(student + 1.5, teacher, MARGIN) == 4 * 0.5**2  # above the margin of one channel


def test_what_is_above_zero_is_matched_from_both_sides():
    teacher = torch.rand(2, 2, 3, 3) + 0.1
    for shift in (-0.5, 0.5):
        assert ofd(teacher + shift, teacher, MARGIN).item() == pytest.approx(2 * 9 * 0.25, rel=1e-5)
    assert ofd(teacher, teacher, MARGIN) == 0


def test_a_sum_over_elements_and_a_mean_over_samples():
    student, teacher = torch.randn(2, 3, 2, 4, 4)
    value = ofd(student, teacher, MARGIN)
    torch.testing.assert_close(ofd(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1), MARGIN), value)
    taller = ofd(student.repeat(1, 1, 4, 1), teacher.repeat(1, 1, 4, 1), MARGIN)
    torch.testing.assert_close(taller, 4 * value)


def test_gradcheck():
    student, teacher = torch.randn(2, 2, 2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ofd(x, teacher, MARGIN), student.requires_grad_())


def test_no_gradient_flows_into_the_teacher():
    student, teacher = (torch.randn(2, 2, 4, 4, requires_grad=True) for _ in range(2))
    ofd(student, teacher, MARGIN).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = torch.randn(2, 3, 2, 4, 4).to(dtype)
    margin = MARGIN.to(dtype)
    value = ofd(student, teacher, margin)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(ofd(student.double(), teacher.double(), margin.double()).item(), rel=1e-5)


@pytest.mark.parametrize(
    "shapes",
    [((3, 2, 4, 4), (2, 2, 4, 4), (2,)), ((3, 2, 4, 4), (3, 3, 4, 4), (3,)), ((3, 2, 4, 4), (3, 2, 4, 4), (3,))],
)
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        ofd(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_the_margin():
    draws = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(2, 200, dtype=torch.float64, generator=draws)
    bias *= 2
    expected = torch.tensor([*map(naive_margin, weight.tolist(), bias.tolist())], dtype=torch.float64)
    torch.testing.assert_close(ofd_margin(weight, bias), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(ofd_margin(weight.float(), bias.float()), expected.float(), rtol=1e-3, atol=0)
    assert 10 < (expected == -3 * weight.abs()).sum() < 190, "both cases must occur"


def test_the_margin_is_the_mean_of_what_is_cut_off():
    values = 0.7 + 2 * torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    margin = ofd_margin(torch.tensor([-2.0]), torch.tensor([0.7]))  # the sign of a weight does not count
    assert margin.item() == pytest.approx(values[values < 0].mean().item(), rel=1e-2)


def test_margins_of_channels_that_are_hardly_ever_below_zero_or_never_above():
    weight, bias = torch.tensor([1.0, 1.0, 2.0, 1.0, 1e-3]), torch.tensor([3.0, 3.2, 60.0, -60.0, -2.0])
    expected = [naive_margin(w, b) for w, b in zip(weight.tolist(), bias.tolist(), strict=True)]
    torch.testing.assert_close(ofd_margin(weight, bias), torch.tensor(expected), rtol=1e-4, atol=0)
    assert expected[1:4] == [-3.0, -6.0, -60.0]


def test_a_channel_that_does_not_vary_has_no_margin():
    assert ofd_margin(torch.zeros(3), torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 0, 0]


def test_half_norms_have_float32_margins():
    weight, bias = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(ofd_margin(weight, bias), ofd_margin(weight.float(), bias.float()))


def test_gradients_of_margins_are_finite():
    weight, bias = torch.tensor([0.0, 0.0, 1.0], requires_grad=True), torch.tensor([0.0, 1.0, 9.0], requires_grad=True)
    ofd_margin(weight, bias).sum().backward()
    assert weight.grad.isfinite().all()
    assert bias.grad.isfinite().all()


def test_wrong_shapes_of_norms_are_told():
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        ofd_margin(torch.zeros(3), torch.zeros(4))


PORTS = Ports(3, 2, ((2, 4, 4),) * 5, norms=((torch.ones(2), torch.zeros(2)),) * 5)


def test_stages():
    loss = OFD()
    loss.bind(PORTS, PORTS, tiny_facts())
    assert loss.stages == (-3, -2, -1)
    assert loss.needs.before
    torch.testing.assert_close(loss.get_buffer("margin2"), ofd_margin(*PORTS.norms[-1]))
    with pytest.raises(InputError, match=r"OFD\.stages"):
        OFD([])


@pytest.mark.parametrize("norms", [(), (None,) * 5])
def test_a_teacher_without_batch_norm_is_refused(norms):
    teacher = Ports(3, 2, PORTS.stages, norms=norms)
    with pytest.raises(InputError, match=r"OFD\.stages: -3: .*BatchNorm"):
        OFD().bind(PORTS, teacher, tiny_facts())
