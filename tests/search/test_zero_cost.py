from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import students
from kd import taps
from kd.batch import Facts, Needs, Outputs, Ports, View
from kd.testing.naive import naive_convolution, naive_log_softmax, naive_pool, naive_targets
from kd.testing.tiny import TinyTeacher, tiny_batch, tiny_facts, tiny_net
from search.zero_cost import SCORES, diswot, naswot, rank_correlation, synflow
from teachers import Teacher

Rows = list[list[float]]


class Told:
    """A guide that is the net itself, as it stands."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, view: View, needs: Needs) -> Outputs:
        return taps.read(self.net, view.x, needs)

    def ports(self, data: Facts) -> Ports:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def view(samples: int = 6, soft_labels: bool = False) -> View:
    return tiny_batch(tiny_facts(soft_labels=soft_labels), samples).views[0]


def plain_net(width: int = 3, act: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Without norms; in float64."""
    first, second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 4, 3, 2, 1)
    return nn.Sequential(first, act(), second, act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()


def images(samples: int = 4, size: int = 4) -> Tensor:
    return torch.rand(samples, 3, size, size, dtype=torch.float64)


def relu(plane: Any) -> Any:
    return [relu(value) for value in plane] if isinstance(plane, list) else max(plane, 0.0)


# synflow


def test_synflow_is_the_flow_of_ones_counted_once_a_layer() -> None:
    """R is linear in the weights of each layer, so that each of them has Σ θ·∂R/∂θ = R, less what biases add."""
    net = tiny_net().double()
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(value, 0.5, 2.0)  # type: ignore[arg-type]
    first, second, last = copy.deepcopy([net[0], net[3], net[8]])
    for layer in (first, second, last):
        layer.weight.data.abs_()
    maps = naive_convolution(second, naive_convolution(first, [[[1.0] * 8] * 8] * 3))
    pooled = [naive_pool(plane, (1, 1))[0][0] for plane in maps]
    flow = sum(w * v for row in last.weight.tolist() for w, v in zip(row, pooled, strict=True))
    biases = sum(map(abs, last.bias.tolist()))
    assert synflow(net, torch.rand(2, 3, 8, 8)) == pytest.approx(math.log(3 * flow + biases), rel=1e-9)


@pytest.mark.parametrize("name", ["cifar_resnet14", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_a_wider_and_a_deeper_net_has_more_synflow(name: str) -> None:
    def score(**factors: float) -> float:
        torch.manual_seed(0)
        return synflow(students.create(name, num_classes=10, image_size=32, **factors), torch.rand(1, 3, 32, 32))

    scores = [score(width=width) for width in (0.25, 0.5, 1.0)]
    assert scores == sorted(scores)
    assert len(set(scores)) == 3
    if name in ("cifar_resnet14", "mobilenetv3_small_050"):  # of BatchNorms
        assert score(depth=0.5) < scores[-1] < score(depth=2.0)


def test_synflow_of_signs_and_sizes_beyond_float32() -> None:
    net = tiny_net()
    other = copy.deepcopy(net)
    with torch.no_grad():
        for module in (other[0], other[3]):
            module.weight.mul_(-1e25)
    x = torch.rand(1, 3, 8, 8)
    nn.init.zeros_(net[8].bias)
    nn.init.zeros_(other[8].bias)
    assert synflow(other, x) == pytest.approx(synflow(net, x) + 50 * math.log(10), rel=1e-6)


def test_synflow_sees_no_pixels_and_no_normalisation() -> None:
    def score(x: Tensor, **normalize: Any) -> float:
        torch.manual_seed(0)
        return synflow(students.create("cifar_resnet8", num_classes=3, **normalize), x)

    assert score(torch.rand(2, 3, 16, 16)) == score(torch.zeros(5, 3, 16, 16), normalize=((2.0,), (0.1,)))


# naswot


def code(net: nn.Sequential, image: Any) -> list[bool]:
    on = []
    for layer in net[:4]:
        if isinstance(layer, nn.Conv2d):
            image = naive_convolution(layer, image)
            on += [value > 0 for plane in image for row in plane for value in row]
        else:
            image = relu(image)
    return on


def log_determinant(rows: Rows) -> float:
    """By Gaussian elimination."""
    rows, total = [list(row) for row in rows], 0.0
    while rows:
        rows.sort(key=lambda row: -abs(row[0]))
        first, *rest = rows
        total += math.log(abs(first[0]))
        rows = [[b - a * row[0] / first[0] for a, b in zip(first[1:], row[1:], strict=True)] for row in rest]
    return total


def test_naswot_is_the_log_determinant_of_how_many_units_are_alike() -> None:
    net, x = plain_net(), images()
    codes = [code(net, image) for image in x.tolist()]
    kernel = [[float(sum(a == b for a, b in zip(mine, other, strict=True))) for other in codes] for mine in codes]
    assert naswot(net, x) == pytest.approx(log_determinant(kernel), rel=1e-9)


def test_naswot_is_least_where_images_are_the_same() -> None:
    net, x = plain_net(), images(size=8)
    assert naswot(net, x) > naswot(net, x[:1] + 0.1 * images(size=8)) > -math.inf
    assert naswot(net, x[:1].expand(4, -1, -1, -1)) == -math.inf


@pytest.mark.parametrize("kind", [nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish, nn.ELU, nn.LeakyReLU, nn.ReLU6, nn.PReLU])
def test_naswot_reads_the_sign_before_any_activation_that_bends(kind: type[nn.Module]) -> None:
    def score(act: nn.Module) -> float:
        torch.manual_seed(1)
        return naswot(nn.Sequential(nn.Conv2d(3, 8, 3), act).double(), images())

    assert score(kind()) == score(nn.ReLU()) == score(nn.ReLU(inplace=True))


class Functional(nn.Module):
    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net, self.bias = net, nn.Parameter(torch.ones(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        F.relu(self.bias)
        gate = torch.sigmoid(x.mean((2, 3), keepdim=True))
        x = F.relu(self.net[0](x)) * gate.mean(1, keepdim=True)
        return F.relu_(self.net[2](x / gate.mean(1, keepdim=True)))


def test_naswot_sees_functions_but_no_gates_and_no_weights() -> None:
    net, x = plain_net(), images()
    assert naswot(Functional(net), x) == naswot(net, x)


def test_naswot_goes_by_the_statistics_of_the_batch() -> None:
    net, x = tiny_net(), torch.rand(6, 3, 8, 8)
    other = copy.deepcopy(net)
    assert isinstance(other[1], nn.BatchNorm2d)
    nn.init.constant_(other[1].running_mean, 100.0)  # type: ignore[arg-type]
    assert naswot(other.eval(), x) == naswot(net, x)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "maxvit_pico_rw_256", "swinv2_cr_tiny_224"])
def test_naswot_knows_the_images_of_windows_and_tokens(name: str) -> None:
    """Equal images have one code."""
    size = 64 if name.startswith("vit") else 224
    net = students.create(name, num_classes=3, image_size=size, width=0.25, depth=0.34)
    x = torch.rand(3, 3, size, size)
    assert naswot(net, x) > 0
    assert naswot(net, x[[0, 1, 0]]) == -math.inf


# diswot


def similarities(rows: Rows) -> Rows:
    """Products of any two rows, each row of them over its length."""
    products = [[sum(a * b for a, b in zip(mine, other, strict=True)) for other in rows] for mine in rows]
    return [[value / math.hypot(*row) for value in row] for row in products]


def told(net: nn.Module, seen: View) -> tuple[Rows, Rows]:
    """The similarities of classes by the slope of the classifier, and of samples by the last map."""
    outputs = taps.read(net, seen.x, Needs(embedding=True, stages=(-1,)))
    assert outputs.embedding is not None
    slope = [[0.0] * outputs.embedding.shape[1] for _ in range(3)]
    rows = zip(outputs.logits.tolist(), naive_targets(seen.y, 3), outputs.embedding.tolist(), strict=True)
    for logits, target, embedding in rows:
        for c, (log_p, y) in enumerate(zip(naive_log_softmax(logits), target, strict=True)):
            for d, value in enumerate(embedding):
                slope[c][d] += (math.exp(log_p) - y) * value
    return similarities(slope), similarities(outputs.stages[-1].flatten(1).tolist())


@pytest.mark.parametrize("soft_labels", [False, True])
def test_diswot_is_the_distance_of_similarities(soft_labels: bool) -> None:
    net, teacher, seen = plain_net(5), plain_net(2), view(soft_labels=soft_labels)
    seen = seen._replace(x=seen.x.double())
    expected = 0.0
    for mine, other in zip(told(net, seen), told(teacher, seen), strict=True):
        squares = [(a - b) ** 2 for r, s in zip(mine, other, strict=True) for a, b in zip(r, s, strict=True)]
        expected -= sum(squares) / len(mine) ** 2
    assert diswot(net, seen, Told(teacher)) == pytest.approx(expected, rel=1e-6)


def test_diswot_is_highest_for_the_teacher_itself() -> None:
    net, seen = plain_net(), view()
    seen = seen._replace(x=seen.x.double())
    assert diswot(net, seen, Told(net)) == pytest.approx(0.0, abs=1e-12)
    for _ in range(3):
        assert diswot(plain_net(), seen, Told(net)) < -1e-4


def test_the_slope_is_that_of_autograd() -> None:
    net, seen = plain_net(), view()
    x = seen.x.double()
    F.cross_entropy(net(x), seen.y).backward()
    slope = net[6].weight.grad
    assert isinstance(slope, Tensor)
    torch.testing.assert_close(
        torch.tensor(told(net, seen._replace(x=x))[0], dtype=torch.float64),
        torch.tensor(similarities(slope.tolist()), dtype=torch.float64),
    )


# all of them


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_repeatable_and_leaves_the_model_alone(name: str) -> None:
    net, seen, teacher = tiny_net(), view(), TinyTeacher()
    net[4].eval()
    next(net.parameters()).requires_grad_(False)
    state, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    drawn = torch.get_rng_state()
    score = SCORES[name](net, seen, teacher)
    assert math.isfinite(score)
    assert SCORES[name](net, seen, teacher) == score
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()].count(False) == 1
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", ["cifar_wrn_16_1", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_scores_any_classifier(name: str, score: str) -> None:
    net = students.create(name, num_classes=3, image_size=32, width=0.5)
    x = torch.rand(4, 3, 32, 32)
    seen = View(x, torch.tensor([0, 1, 2, 0]), torch.arange(4), 0)
    teacher = Teacher(students.create("cifar_resnet8", num_classes=3))
    assert math.isfinite(SCORES[score](net, seen, teacher))


# rank correlation


def test_rank_correlation_counts_pairs_and_ranks() -> None:
    """Of five candidates two neighbours change places: rho = 1 − 6·Σd² / (n³ − n), tau = (9 − 1) / 10."""
    assert rank_correlation([1, 2, 3, 4, 5], [10, 30, 20, 400, 5000]) == pytest.approx((1 - 6 * 2 / 120, 0.8))
    assert rank_correlation([1.0, 2.0, 3.0], [5.0, 4.0, -math.inf]) == pytest.approx((-1, -1))
    assert rank_correlation([1.0, math.nan, 3.0, 9.0], [1.0, 2.0, 3.0, math.nan]) == pytest.approx((1, 1))


@pytest.mark.parametrize(("xs", "ys"), [([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [3.0, 3.0])])
def test_rank_correlation_of_nothing_to_rank_is_nan(xs: list[float], ys: list[float]) -> None:
    assert all(map(math.isnan, rank_correlation(xs, ys)))
