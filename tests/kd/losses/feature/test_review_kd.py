from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Outputs, Ports
from kd.errors import InputError
from kd.losses.feature.review_kd import ReviewKD, hcl
from kd.testing import LossContract, naive_mse, naive_net, naive_pooled, tiny_facts


def naive_hcl(ours, theirs):
    """Of (N, C, H, W) nested lists."""
    size = min(len(ours[0][0]), len(theirs[0][0])), min(len(ours[0][0][0]), len(theirs[0][0][0]))
    ours, theirs = naive_pooled(ours, size), naive_pooled(theirs, size)
    sizes = [size, *((level, level) for level in (4, 2, 1) if level < size[0])]
    total = sum(naive_mse(naive_pooled(ours, s), naive_pooled(theirs, s)) / 2**i for i, s in enumerate(sizes))
    return total / sum(0.5**i for i in range(len(sizes)))


def naive_nearest(image, size):
    height, width = len(image[0]), len(image[0][0])
    rows, columns = [i * height // size[0] for i in range(size[0])], [i * width // size[1] for i in range(size[1])]
    return [[[plane[y][x] for x in columns] for y in rows] for plane in image]


def naive_attention(layer, own, other):
    """Two maps of one image, each pixel times a sigmoid of all channels of both, added up."""
    weight, bias = layer.weight.flatten(1).tolist(), layer.bias.tolist()
    result = [[row[:] for row in plane] for plane in own]
    for y in range(len(own[0])):
        for x in range(len(own[0][0])):
            pixel = [plane[y][x] for plane in own + other]
            scores = [
                b + sum(w * p for w, p in zip(row, pixel, strict=True)) for row, b in zip(weight, bias, strict=True)
            ]
            first, second = (1 / (1 + math.exp(-score)) for score in scores)
            for channel in range(len(own)):
                result[channel][y][x] = first * own[channel][y][x] + second * other[channel][y][x]
    return result


def naive_review(loss, ours, theirs):
    """Of the levels, shallow to deep, as nested lists."""
    total, deeper = 0.0, None
    for fusion, images, target in reversed(list(zip(loss.fusions, ours, theirs, strict=True))):
        images = naive_net(fusion.narrow, images)
        if deeper is not None:
            size = len(images[0][0]), len(images[0][0][0])
            others = [naive_nearest(image, size) for image in deeper]
            images = [naive_attention(fusion.attention[0], a, b) for a, b in zip(images, others, strict=True)]
        deeper = [naive_nearest(image, (len(target[0][0]), len(target[0][0][0]))) for image in images]
        total += naive_hcl(naive_net(fusion.predict, deeper), target)
    return total


class TestReviewKD(LossContract):
    student = Ports(classes=4, embedding=3, stages=((2, 5, 4), (3, 2, 2)))
    teacher = Ports(classes=4, embedding=5, stages=((3, 5, 4), (4, 2, 2)))

    def make(self):
        return ReviewKD()

    def reference(self, loss, student, teacher, batch):
        sides = [[*(x.stages[i] for i in loss.stages), x.embedding[:, :, None, None]] for x in (student, teacher)]
        return naive_review(loss, *([level.tolist() for level in levels] for levels in sides))


class TestReviewKDOfUnequalResolutions(TestReviewKD):
    student = Ports(classes=4, embedding=3, stages=((2, 3, 3), (2, 4, 4), (3, 2, 2)))
    teacher = Ports(classes=4, embedding=5, stages=((2, 5, 4), (4, 3, 1)))


def maps(*shape, dtype=torch.float64):
    draws = torch.Generator().manual_seed(0)
    return torch.randn(2, *shape, dtype=torch.float64, generator=draws).to(dtype)


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("width", [1, 4, 6])
def test_value(height, width):
    student, teacher = maps(3, 2, height, width)
    assert hcl(student, teacher).item() == pytest.approx(naive_hcl(student.tolist(), teacher.tolist()), rel=1e-9)


@pytest.mark.parametrize("height", [1, 2, 4, 8])
def test_the_weights_are_divided_by_their_sum(height):
    """A difference of 1 everywhere is one of 1 at every size."""
    teacher = maps(3, 2, height, height)[0]
    assert hcl(teacher + 1, teacher).item() == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize(("height", "weight"), [(2, 2 / 3), (4, 4 / 7), (5, 8 / 15), (8, 8 / 15)])
def test_what_pooling_cancels_weighs_as_much_as_the_map_itself(height, weight):
    """Signs that alternate along rows of width 8 average to 0 at every size that is pooled to."""
    signs = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, height, 8)
    assert hcl(signs, torch.zeros_like(signs)).item() == pytest.approx(weight, rel=1e-6)


def test_the_larger_map_is_pooled_to_the_smaller():
    large, small = maps(3, 2, 6, 6)[0], maps(3, 2, 3, 4)[1]
    expected = naive_hcl(large.tolist(), small.tolist())
    assert hcl(large, small).item() == pytest.approx(expected, rel=1e-9)
    assert hcl(small, large).item() == pytest.approx(expected, rel=1e-9)


def test_a_larger_batch_of_the_same_maps_changes_nothing():
    student, teacher = maps(3, 2, 4, 4)
    torch.testing.assert_close(hcl(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1)), hcl(student, teacher))


def test_no_gradient_flows_into_the_teacher():
    student, teacher = (x.clone().requires_grad_() for x in maps(2, 2, 5, 5))
    hcl(student, teacher).backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda x: hcl(x, teacher), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = maps(3, 2, 5, 5, dtype=dtype)
    value = hcl(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(hcl(student.double(), teacher.double()).item(), rel=1e-5)


def test_maps_of_zeros():
    zeros = torch.zeros(2, 3, 4, 4, requires_grad=True)
    value = hcl(zeros, zeros.detach())
    value.backward()
    assert value.item() == 0
    assert not zeros.grad.any()


@pytest.mark.parametrize("shapes", [((3, 2, 4, 4), (2, 2, 4, 4)), ((3, 2, 4, 4), (3, 3, 4, 4)), ((3, 2), (3, 2))])
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        hcl(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def bound(student, teacher, **options):
    loss = ReviewKD(**options)
    loss.bind(student, teacher, tiny_facts(student.classes))
    return loss


@pytest.mark.parametrize(("embedding", "middle"), [(64, 64), (512, 512), (1280, 512)])
def test_the_width_of_fusions(embedding, middle):
    student = Ports(4, embedding, ((2, 8, 8), (3, 4, 4)))
    fusions = bound(student, Ports(4, 7, ((5, 8, 8), (6, 4, 4)))).fusions
    widths = [(f.narrow[0].in_channels, f.narrow[0].out_channels, f.predict[0].out_channels) for f in fusions]
    assert widths == [(2, middle, 5), (3, middle, 6), (embedding, middle, 7)]
    assert [f.attention is None for f in fusions] == [False, False, True]


def test_a_shallow_level_learns_from_the_deeper_ones_and_no_deep_one_from_the_shallower():
    torch.manual_seed(0)
    ports = Ports(4, 3, ((2, 4, 4), (3, 2, 2)))
    loss, stages = bound(ports, ports), [torch.randn(5, 2, 4, 4), torch.randn(5, 3, 2, 2)]
    first, last, embedding = (x.requires_grad_() for x in (*stages, torch.randn(5, 3)))
    handed_on, _ = loss.fusions[-1](embedding[:, :, None, None], None, torch.Size((1, 1)))
    handed_on, deep = loss.fusions[1](last, handed_on, torch.Size((2, 2)))
    _, shallow = loss.fusions[0](first, handed_on, torch.Size((4, 4)))
    inputs = first, last, embedding
    reached = torch.autograd.grad(shallow.square().sum(), inputs, retain_graph=True)
    assert all(gradient.any() for gradient in reached)
    assert torch.autograd.grad(deep.square().sum(), inputs, allow_unused=True)[0] is None


def test_tokens_learn_from_maps_and_maps_from_tokens():
    """A ViT has maps of one size, a CNN a pyramid."""
    nets = Ports(4, 6, ((6, 4, 4),) * 5), Ports(4, 5, ((2, 8, 8), (3, 4, 4), (5, 2, 2)))
    for student, teacher in (nets, nets[::-1]):
        loss = bound(student, teacher)
        assert loss.stages == (-3, -2, -1)
        sides = [
            Outputs(torch.randn(3, 4), torch.randn(3, p.embedding), tuple(torch.randn(3, *s) for s in p.stages))
            for p in (student, teacher)
        ]
        assert loss(*sides, None).isfinite()


def test_stages():
    ports = Ports(3, 2, ((2, 4, 4),) * 5)
    assert len(bound(ports, Ports(3, 2, ((2, 4, 4),) * 2)).fusions) == 3
    assert ReviewKD((-2, -1)).needs.stages == (-2, -1)
    assert ReviewKD().needs.embedding
    with pytest.raises(InputError, match=r"ReviewKD\.stages"):
        ReviewKD([])
