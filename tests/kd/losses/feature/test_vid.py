from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kd.batch import Outputs, Ports
from kd.errors import InputError
from kd.losses.feature.vid import VID, vid
from kd.testing import LossContract, naive_pool, tiny_facts


def naive_pixels(maps, size):
    """The channels of every pixel of (N, C, H, W) nested lists, after pooling to `size`."""
    images = [[naive_pool(plane, size) for plane in image] for image in maps]
    places = [(y, x) for y in range(size[0]) for x in range(size[1])]
    return [[plane[y][x] for plane in image] for image in images for y, x in places]


def naive_mean(net, pixels):
    """1x1 convolutions, BatchNorm by the statistics of the batch, ReLU."""
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.flatten(1).tolist()
            pixels = [[sum(w * x for w, x in zip(row, p, strict=True)) for row in weight] for p in pixels]
        elif isinstance(layer, nn.BatchNorm2d):
            columns = []
            affine = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            for values, (scale, shift) in zip(zip(*pixels, strict=True), affine, strict=True):
                mean = sum(values) / len(values)
                deviation = math.sqrt(sum((x - mean) ** 2 for x in values) / len(values) + layer.eps)
                columns.append([scale * (x - mean) / deviation + shift for x in values])
            pixels = [list(p) for p in zip(*columns, strict=True)]
        else:
            pixels = [[max(x, 0.0) for x in p] for p in pixels]
    return pixels


def naive_vid(means, targets, scales):
    """Of pixels, and of one ρ a channel."""
    variances = [math.log1p(math.exp(scale)) + 1e-5 for scale in scales]
    total = 0.0
    for mean, target in zip(means, targets, strict=True):
        for m, t, v in zip(mean, target, variances, strict=True):
            total += 0.5 * ((m - t) ** 2 / v + math.log(v))
    return total / len(means) / len(scales)


class TestVID(LossContract):
    def make(self):
        return VID()

    def reference(self, loss, student, teacher, batch):
        total = 0.0
        for i, net, scale in zip(loss.stages, loss.means, loss.log_scales, strict=True):
            ours, theirs = student.stages[i], teacher.stages[i]
            size = min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3])
            pixels, targets = naive_pixels(ours.tolist(), size), naive_pixels(theirs.tolist(), size)
            total += naive_vid(naive_mean(net, pixels), targets, scale.tolist())
        return total


def case(samples=3, channels=4):
    mean, teacher = torch.randn(2, samples, channels, 2, 3, dtype=torch.float64)
    return mean, teacher, torch.randn(channels, dtype=torch.float64)


def test_value():
    mean, teacher, scale = case()
    pixels = (naive_pixels(x.tolist(), (2, 3)) for x in (mean, teacher))
    assert vid(mean, teacher, scale).item() == pytest.approx(naive_vid(*pixels, scale.tolist()), rel=1e-9)


def test_gradients_reach_mean_and_scale_and_not_the_teacher():
    mean, teacher, scale = (x.requires_grad_() for x in case())
    vid(mean, teacher, scale).backward()
    assert mean.grad.any()
    assert scale.grad.all()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda m, s: vid(m, teacher, s), (mean, scale))


def test_the_best_variance_is_the_mean_squared_error():
    mean, teacher, _ = case(2, 1)
    error = (mean - teacher).square().mean()
    best = torch.log(torch.expm1(error - 1e-5)).view(1)
    values = [vid(mean, teacher, best + shift).item() for shift in (-0.1, 0.0, 0.1)]
    assert min(values) == values[1] == pytest.approx(0.5 * (1 + error.log()).item(), rel=1e-9)


def test_a_larger_batch_of_the_same_maps_changes_nothing():
    mean, teacher, scale = case()
    larger = vid(mean.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1), scale)
    torch.testing.assert_close(larger, vid(mean, teacher, scale))


@pytest.mark.parametrize("scale", [-60.0, 0.0, 60.0])
def test_extreme_values(scale):
    mean, scales = torch.full((2, 3, 2, 2), 60.0, requires_grad=True), torch.full((3,), scale, requires_grad=True)
    value = vid(mean, -mean.detach(), scales)
    value.backward()
    variance = math.log1p(math.exp(scale)) + 1e-5
    assert value.item() == pytest.approx(0.5 * (120**2 / variance + math.log(variance)), rel=1e-5)
    assert mean.grad.isfinite().all()
    assert scales.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    given = [x.to(dtype) for x in case()]
    value = vid(*given)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(vid(*(x.double() for x in given)).item(), rel=1e-5)


@pytest.mark.parametrize(
    "shapes",
    [((3, 2, 4, 4), (3, 2, 2, 2), (2,)), ((3, 2, 4, 4), (3, 3, 4, 4), (3,)), ((3, 2, 4, 4), (3, 2, 4, 4), (3,))],
)
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        vid(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


@pytest.mark.parametrize("variance", [0.5, 5.0, 1000.0])
def test_the_variance_at_the_start(variance):
    loss = VID(variance=variance)
    loss.bind(TestVID.student, TestVID.teacher, tiny_facts(4))
    assert [len(scale) for scale in loss.log_scales] == [3, 4]
    start = loss.log_scales[0].double()
    mean = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    assert vid(mean, mean, start).item() == pytest.approx(0.5 * math.log(variance), abs=1e-6)
    assert VID().variance == 5.0


def test_the_variances_train():
    loss = VID()
    loss.bind(TestVID.student, TestVID.teacher, tiny_facts(4))
    student, teacher = (
        Outputs(torch.zeros(3, 4), stages=tuple(torch.randn(3, *shape) for shape in ports.stages))
        for ports in (TestVID.student, TestVID.teacher)
    )
    before = [scale.detach().clone() for scale in loss.log_scales]
    optimiser = torch.optim.SGD(loss.parameters(), 0.1)
    loss(student, teacher, None).backward()
    optimiser.step()
    assert all((scale != old).all() for scale, old in zip(loss.log_scales, before, strict=True))


def test_the_mean_nets():
    loss = VID()
    loss.bind(TestVID.student, TestVID.teacher, tiny_facts(4))
    convolution, norm, relu = nn.Conv2d, nn.BatchNorm2d, nn.ReLU
    expected = [convolution, norm, relu, convolution, norm, relu, convolution]
    assert all([type(layer) for layer in net] == expected for net in loss.means)


def test_stages():
    loss, ports = VID(), Ports(3, 2, ((2, 4, 4),) * 5)
    loss.bind(ports, Ports(3, 2, ((2, 4, 4),) * 4), tiny_facts())
    assert loss.stages == (-3, -2, -1)
    with pytest.raises(InputError, match=r"VID\.stages"):
        VID([])


def test_a_variance_that_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"VID\.variance"):
        VID(variance=0.0)
