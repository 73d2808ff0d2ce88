from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from teachers.fold import folded


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


def lived_in(model: nn.Module) -> nn.Module:
    """As if trained: statistics and affine parameters that are not those of a new BatchNorm."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def worst(model: nn.Module, other: nn.Module, size: int = 32) -> float:
    x = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        reference = model(x)
        return ((other(x) - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize(
    ("name", "left", "overrides"),
    [
        ("resnet18", 0, {}),
        ("mobilenetv2_035", 0, {}),
        ("tf_mobilenetv3_small_minimal_100", 0, {}),
        ("resnetv2_18", 9, {}),  # pre-activation: a norm after a shortcut has no layer of its own
        ("convnext_atto", 0, {}),
        ("vit_tiny_patch16_224", 0, {"img_size": 32, "patch_size": 8, "depth": 2}),
    ],
)
def test_folds_every_norm_that_follows_a_layer_and_keeps_the_answers(name: str, left: int, overrides: dict) -> None:
    model = lived_in(timm.create_model(name, num_classes=5, **overrides))
    before = copy.deepcopy(model.state_dict())
    result = folded(model, torch.rand(2, 3, 32, 32))
    assert norms(result) == left
    assert worst(model, result) < 1e-4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Net(nn.Module):
    def __init__(self, conv: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv or nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).mean((2, 3))


class Shortcut(Net):
    """The layer's output is read a second time, past the norm."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (self.bn(x) + x).mean((2, 3))


class Shared(Net):
    """The layer runs twice, once without the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.conv(x))).mean((2, 3))


class Peeking(Net):
    """The layer's weight is read by hand as well: only the answers betray it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.conv.weight.mean((1, 2, 3))


class PeekingAtNorm(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.bn.weight


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


def test_folds_a_plain_pair() -> None:
    model = lived_in(Net())
    result = folded(model, torch.rand(2, 3, 8, 8))
    assert norms(result) == 0
    assert worst(model, result) < 1e-5


@pytest.mark.parametrize(
    "model", [Shortcut(), Shared(), Peeking(), PeekingAtNorm(), Net(Standardized(3, 3, 3))], ids=lambda m: str(type(m))
)
def test_leaves_a_norm_alone_where_folding_would_change_the_answers(model: nn.Module) -> None:
    lived_in(model)
    assert folded(model, torch.rand(2, 3, 8, 8)) is model


class Both(nn.Module):
    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.odd, self.plain = odd, Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(x) + self.plain(x)


@pytest.mark.parametrize("odd", [Shortcut(), Shared(), Net(Standardized(3, 3, 3))], ids=lambda m: type(m).__name__)
def test_folds_the_rest_around_a_norm_that_must_stay(odd: nn.Module) -> None:
    model = lived_in(Both(odd))
    result = folded(model, torch.rand(2, 3, 8, 8))
    assert (norms(result.odd), norms(result.plain)) == (1, 0)
    assert worst(model, result) < 1e-5


def test_a_linear_layer_absorbs_its_norm() -> None:
    model = lived_in(nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)))
    result = folded(model, torch.rand(2, 3, 4, 4))
    assert norms(result) == 0
    assert worst(model, result, 4) < 1e-5
