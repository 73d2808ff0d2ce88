from __future__ import annotations

import pytest
import torch

from compress.importance import IMPORTANCES, Weights, bn, l1, l2, random

CHANNELS, PLANTED = 6, 4


def planted() -> Weights:
    """Two layers and two norms whose channel 4 is a hundredth of the others."""
    torch.manual_seed(0)
    matrices = [torch.randn(CHANNELS, 27), torch.randn(CHANNELS, 40)]
    scales = [torch.rand(CHANNELS) + 1, -torch.rand(CHANNELS) - 1]
    for tensor in (*matrices, *scales):
        tensor[PLANTED] /= 100
    return Weights(matrices, scales)


def test_l1_is_the_sum_of_absolute_weights_and_finds_the_planted_channel():
    weights = planted()
    expected = [
        sum(abs(value) for matrix in weights.matrices for value in matrix[c].tolist())
        + sum(abs(scale[c].item()) for scale in weights.scales)
        for c in range(CHANNELS)
    ]

    assert l1(weights).tolist() == pytest.approx(expected, rel=1e-5)
    assert l1(weights).argmin() == PLANTED


def test_l2_is_the_sum_of_norms_over_layers_and_finds_the_planted_channel():
    weights = planted()
    expected = [
        sum(sum(value**2 for value in matrix[c].tolist()) ** 0.5 for matrix in weights.matrices)
        + sum(abs(scale[c].item()) for scale in weights.scales)
        for c in range(CHANNELS)
    ]

    assert l2(weights).tolist() == pytest.approx(expected, rel=1e-5)
    assert l2(weights).argmin() == PLANTED


def test_bn_looks_at_scales_alone_whatever_their_sign():
    weights = planted()
    loud = Weights(
        [torch.full((CHANNELS, 9), 7.0), *(10 * matrix.flip(0) for matrix in weights.matrices)], weights.scales
    )

    assert bn(loud).argmin() == PLANTED
    assert torch.equal(bn(loud), weights.scales[0].abs() + weights.scales[1].abs())


def test_bn_falls_back_on_l2_without_a_norm():
    weights = Weights(planted().matrices)

    assert torch.equal(bn(weights), l2(weights))


def test_random_is_drawn_by_the_seed_alone():
    weights = planted()

    assert torch.equal(random(weights, seed=3), random(Weights(weights.matrices[:1]), seed=3))
    assert not torch.equal(random(weights, seed=3), random(weights, seed=4))
    assert random(weights).shape == (CHANNELS,)
    # over many seeds no channel is favoured, the planted one included
    least = torch.tensor([int(random(weights, seed).argmin()) for seed in range(600)]).bincount(minlength=CHANNELS)
    assert least.min() > 60


@pytest.mark.parametrize("name", IMPORTANCES)
def test_a_layer_of_zeros_decides_nothing(name):
    """timm begins the last norm of residual branches with zeros."""
    weights = planted()
    with_zeros = Weights(weights.matrices, [*weights.scales, torch.zeros(CHANNELS)])

    assert torch.equal(IMPORTANCES[name](with_zeros), IMPORTANCES[name](weights))
