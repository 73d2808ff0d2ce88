from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kd.batch import Outputs, Ports
from kd.errors import InputError
from kd.losses.feature.factor_transfer import FT, Paraphrase, factor_transfer
from kd.testing import LossContract, naive_pool, tiny_facts


def naive_factor(image, size):
    flat = [value for plane in image for row in naive_pool(plane, size) for value in row]
    length = max(math.sqrt(sum(value**2 for value in flat)), 1e-12)
    return [value / length for value in flat]


def naive_ft(student, teacher):
    """Of (N, K, H, W) nested lists."""
    size = min(len(student[0][0]), len(teacher[0][0])), min(len(student[0][0][0]), len(teacher[0][0][0]))
    gaps = []
    for ours, theirs in zip(student, teacher, strict=True):
        gaps += [abs(a - b) for a, b in zip(naive_factor(ours, size), naive_factor(theirs, size), strict=True)]
    return sum(gaps) / len(gaps)


def naive_layers(layers, image):
    """3x3 convolutions, plain or transposed, and leaky ReLUs on one image, [channel][row][column]."""
    rows, columns = range(len(image[0])), range(len(image[0][0]))
    for layer in layers:
        if isinstance(layer, nn.LeakyReLU):
            image = [[[x if x > 0 else 0.1 * x for x in row] for row in plane] for plane in image]
            continue
        transposed = isinstance(layer, nn.ConvTranspose2d)
        weight, result = layer.weight.tolist(), []
        for b, bias in enumerate(layer.bias.tolist()):
            plane = [[bias for _ in columns] for _ in rows]
            for y in rows:
                for x in columns:
                    for i in range(-1, 2):
                        for j in range(-1, 2):
                            if y + i in rows and x + j in columns:
                                for a, source in enumerate(image):
                                    w = weight[a][b][1 - i][1 - j] if transposed else weight[b][a][1 + i][1 + j]
                                    plane[y][x] += w * source[y + i][x + j]
            result.append(plane)
        image = result
    return image


class TestParaphrase(LossContract):
    def make(self):
        return Paraphrase()

    def reference(self, loss, student, teacher, batch):
        layers, gaps = [*loss.paraphraser.encoder, *loss.paraphraser.decoder], []
        for image in teacher.stages[-1].tolist():
            for plane, other in zip(naive_layers(layers, image), image, strict=True):
                for row, target in zip(plane, other, strict=True):
                    gaps += [(a - b) ** 2 for a, b in zip(row, target, strict=True)]
        return sum(gaps) / len(gaps)


class TestFT(LossContract):
    teaches = LossContract.teacher

    def _case(self, student=None, teacher=None, *args, **options):
        self.teaches = teacher or self.teacher  # whose paraphraser `make` needs
        return super()._case(student, teacher, *args, **options)

    def make(self):
        return FT(paraphrase(self.teaches))

    def reference(self, loss, student, teacher, batch):
        ours = [naive_layers(loss.translator, image) for image in student.stages[-1].tolist()]
        return naive_ft(ours, [naive_layers(loss.encoder, image) for image in teacher.stages[-1].tolist()])


def paraphrase(teacher=TestFT.teacher, **options):
    loss = Paraphrase(**options)
    loss.bind(teacher, teacher, tiny_facts(4))
    return loss


@pytest.mark.parametrize("shapes", [((3, 2, 4, 4), (3, 2, 4, 4)), ((3, 2, 7, 3), (3, 2, 4, 5))])
def test_value(shapes):
    student, teacher = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    expected = naive_ft(student.tolist(), teacher.tolist())
    assert factor_transfer(student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_the_size_of_factors_does_not_count():
    student, teacher = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(factor_transfer(3 * student, 7 * teacher), factor_transfer(student, teacher))
    assert factor_transfer(3 * student, student).item() == pytest.approx(0, abs=1e-12)


def test_a_larger_batch_of_the_same_factors_changes_nothing():
    student, teacher = torch.randn(2, 3, 2, 4, 4)
    larger = factor_transfer(student.repeat(4, 1, 1, 1), teacher.repeat(4, 1, 1, 1))
    torch.testing.assert_close(larger, factor_transfer(student, teacher))


@pytest.mark.parametrize("side", [0, 1])
def test_factors_of_zeros(side):
    factors = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)]
    factors[side][0] = 0
    value = factor_transfer(factors[0].requires_grad_(), factors[1])
    value.backward()
    assert value.item() == pytest.approx(naive_ft(*(x.tolist() for x in factors)), rel=1e-5)
    assert factors[0].grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher():
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    factor_transfer(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    student, teacher = torch.randn(2, 3, 2, 4, 4).to(dtype)
    value = factor_transfer(student, teacher)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(factor_transfer(student.double(), teacher.double()).item(), rel=1e-5)


@pytest.mark.parametrize("shapes", [((3, 2, 4, 4), (2, 2, 4, 4)), ((3, 2, 4, 4), (3, 3, 4, 4)), ((3, 2), (3, 2))])
def test_wrong_shapes_are_told(shapes):
    with pytest.raises(ValueError) as error:
        factor_transfer(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


@pytest.mark.parametrize(("ratio", "factors"), [(0.5, 2), (0.75, 3), (2.0, 8), (0.01, 1)])
def test_the_ratio_is_that_of_channels(ratio, factors):
    loss = paraphrase(ratio=ratio)
    assert loss.paraphraser.encoder(torch.randn(2, 4, 3, 3)).shape == (2, factors, 3, 3)
    assert loss.paraphraser(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)
    assert Paraphrase().ratio == 0.5


def test_the_nets_are_the_papers():
    trained = paraphrase()
    loss = FT(trained)
    loss.bind(TestFT.student, TestFT.teacher, tiny_facts(4))
    for layers, kind, widths in (
        (loss.encoder, nn.Conv2d, [4, 4, 2, 2]),
        (trained.paraphraser.decoder, nn.ConvTranspose2d, [2, 2, 4, 4]),
        (loss.translator, nn.Conv2d, [3, 3, 2, 2]),
    ):
        assert [type(layer) for layer in layers] == [kind, nn.LeakyReLU] * 3
        assert [layers[0].in_channels, *(layer.out_channels for layer in layers[::2])] == widths


def test_a_paraphraser_learns():
    torch.manual_seed(0)
    loss, logits, maps = paraphrase(), torch.zeros(8, 4), torch.randn(8, 1, 2, 2).relu().expand(8, 4, 2, 2)
    outputs = Outputs(logits, stages=(maps,))
    optimiser = torch.optim.Adam(loss.parameters(), 0.01)
    values = []
    for _ in range(100):
        value = loss(outputs, outputs, None)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.2 * values[0]


def test_the_encoder_is_the_trained_one_and_stays_as_it_is():
    trained = paraphrase()
    loss = FT(trained)
    with torch.no_grad():
        trained.paraphraser.encoder[0].weight.fill_(0.5)  # trains on between the two being made and bound
    loss.bind(TestFT.student, TestFT.teacher, tiny_facts(4))
    assert (loss.encoder[0].weight == 0.5).all()
    assert {name.split(".")[0] for name, p in loss.named_parameters() if p.requires_grad} == {"translator"}
    assert not any("decoder" in name for name in loss.state_dict())
    with torch.no_grad():
        trained.paraphraser.encoder[0].weight.zero_()
    assert (loss.encoder[0].weight == 0.5).all()


def test_the_stage_is_the_paraphrasers():
    loss = FT(paraphrase(stage=-2))
    assert loss.needs.stages == (-2,)
    loss.bind(TestFT.student, TestFT.teacher, tiny_facts(4))
    assert loss.translator[0].in_channels == 2
    assert loss.encoder[0].in_channels == 3


def test_a_paraphraser_that_is_not_trained_or_of_another_teacher_is_refused():
    with pytest.raises(InputError, match=r"FT\.paraphrase: not trained"):
        FT(Paraphrase()).bind(TestFT.student, TestFT.teacher, tiny_facts(4))
    with pytest.raises(InputError, match=r"FT\.paraphrase: .*4 channels.*has 7"):
        FT(paraphrase()).bind(TestFT.student, Ports(4, 5, ((7, 2, 2),)), tiny_facts(4))


def test_a_ratio_that_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"Paraphrase\.ratio"):
        Paraphrase(ratio=0.0)
