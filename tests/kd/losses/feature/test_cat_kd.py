from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Outputs, Ports
from kd.errors import InputError
from kd.losses.feature.cat_kd import CATKD, class_attention
from kd.testing import LossContract, naive_pooled, tiny_facts


def naive_class_attention(ours, theirs, pool=2, normalize=False):
    """Of (N, C, H, W) nested lists."""
    gaps = []
    for images in zip(*(naive_pooled(cams, (pool, pool)) for cams in (ours, theirs)), strict=True):
        for planes in zip(*images, strict=True):
            flat = [[value for row in plane for value in row] for plane in planes]
            if normalize:
                flat = [[v / (math.sqrt(sum(x**2 for x in values)) or 1.0) for v in values] for values in flat]
            gaps += [(a - b) ** 2 for a, b in zip(*flat, strict=True)]
    return sum(gaps) / len(gaps)


def naive_cam(outputs):
    cams = []
    for image in outputs.extra["final"].tolist():
        rows, columns = range(len(image[0])), range(len(image[0][0]))
        cams.append(
            [
                [[sum(w * plane[y][x] for w, plane in zip(row, image, strict=True)) for x in columns] for y in rows]
                for row in outputs.extra["classifier"].tolist()
            ]
        )
    return cams


class TestCATKD(LossContract):
    student = Ports(classes=4, embedding=3, stages=((2, 5, 5), (3, 4, 4)))
    teacher = Ports(classes=4, embedding=4, stages=((3, 5, 5), (4, 3, 2)))
    perfect = 0.0

    def make(self):
        return CATKD()

    def reference(self, loss, student, teacher, batch):
        return naive_class_attention(naive_cam(student), naive_cam(teacher), loss.pool, loss.normalize)


class TestNormalisedCATKD(TestCATKD):
    def make(self):
        return CATKD(pool=3, normalize=True)


def cams(*shape, dtype=torch.float64):
    draws = torch.Generator().manual_seed(0)
    return torch.randn(2, *shape, dtype=torch.float64, generator=draws).to(dtype)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pool", [1, 2, 3, 4])
def test_value(pool, normalize):
    student, teacher = cams(3, 2, 5, 7)[0], cams(3, 2, 4, 2)[1]
    expected = naive_class_attention(student.tolist(), teacher.tolist(), pool, normalize)
    assert class_attention(student, teacher, pool, normalize).item() == pytest.approx(expected, rel=1e-9)


def test_maps_are_pooled_before_they_are_normalised():
    large = cams(3, 2, 4, 4)[0]
    small = large.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    assert class_attention(large, 7 * small, 2, True).item() == pytest.approx(0, abs=1e-12)


def test_each_class_of_each_sample_is_normalised_by_itself():
    student, teacher = cams(3, 2, 2, 2)
    scales = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)[:, :, None, None]
    expected = class_attention(student, teacher, normalize=True)
    torch.testing.assert_close(class_attention(scales * student, teacher, normalize=True), expected)
    assert not torch.isclose(class_attention(scales * student, teacher), class_attention(student, teacher))


def test_a_larger_batch_of_the_same_maps_changes_nothing():
    student, teacher = cams(3, 2, 4, 4)
    larger = class_attention(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1))
    torch.testing.assert_close(larger, class_attention(student, teacher))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("side", [0, 1])
def test_maps_of_zeros(side, normalize):
    maps = list(cams(2, 3, 4, 4, dtype=torch.float32))
    maps[side][0] = 0
    value = class_attention(maps[0].requires_grad_(), maps[1], normalize=normalize)
    value.backward()
    expected = naive_class_attention(*(x.tolist() for x in maps), normalize=normalize)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert maps[0].grad.abs().max() < 1


@pytest.mark.parametrize("normalize", [False, True])
def test_no_gradient_flows_into_the_teacher(normalize):
    student, teacher = (x.clone().requires_grad_() for x in cams(2, 3, 4, 3))
    class_attention(student, teacher, normalize=normalize).backward()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(lambda x: class_attention(x, teacher, normalize=normalize), student)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = cams(3, 2, 4, 4, dtype=dtype)
    value = class_attention(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(class_attention(student.double(), teacher.double()).item(), rel=1e-5)


@pytest.mark.parametrize("shapes", [((3, 2, 4, 4), (2, 2, 4, 4)), ((3, 2, 4, 4), (3, 3, 4, 4)), ((3, 2), (3, 2))])
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        class_attention(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_the_classifier_of_the_student_learns_and_that_of_the_teacher_does_not():
    draws = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 4, generator=draws, requires_grad=True) for _ in range(2)]
    student, teacher = (
        Outputs(torch.zeros(2, 3), extra={"classifier": weight, "final": torch.randn(2, 4, 3, 3, generator=draws)})
        for weight in weights
    )
    CATKD()(student, teacher, None).backward()
    assert weights[0].grad.any()
    assert weights[1].grad is None


def test_the_mean_of_an_activation_map_is_the_logit_without_its_bias():
    """With a pool of 1 the loss is the mean squared difference of such logits."""
    draws = torch.Generator().manual_seed(0)
    sides, logits = [], []
    for _ in range(2):
        stage, weight = torch.randn(2, 4, 3, 3, generator=draws), torch.randn(3, 4, generator=draws)
        logits.append(stage.mean((2, 3)) @ weight.T)
        sides.append(Outputs(logits[-1] + 5, extra={"classifier": weight, "final": stage}))
    expected = torch.nn.functional.mse_loss(*logits)
    torch.testing.assert_close(CATKD(pool=1)(*sides, None), expected)


def test_nets_that_classify_otherwise_are_refused():
    shapes, classifier = ((4, 2, 2),), (torch.zeros(3, 4), torch.zeros(3))
    fits, none = Ports(3, 4, shapes, (), classifier, (4, 2, 2)), Ports(3, 4, shapes, (), None, (4, 2, 2))
    tokens = Ports(3, 4, shapes, (), classifier)
    for student, teacher, message in (
        (none, fits, r"CATKD\.student: classifies by no linear layer"),
        (fits, none, r"CATKD\.teacher: classifies by no linear layer"),
        (tokens, fits, r"CATKD\.student: classifies by no average of a map"),
    ):
        with pytest.raises(InputError, match=message):
            CATKD().bind(student, teacher, tiny_facts())


def test_a_pool_that_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"CATKD\.pool"):
        CATKD(pool=0)
