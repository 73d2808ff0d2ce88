from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compress.lowrank import evbmf as module
from compress.lowrank.evbmf import evbmf


def planted(rows: int, columns: int, rank: int, noise: float, seed: int = 0) -> Tensor:
    """Squared singular values of a product of rank `rank`, in noise."""
    draw = torch.Generator().manual_seed(seed)
    sides = torch.randn(rows, rank, generator=draw), torch.randn(rank, columns, generator=draw)
    matrix = sides[0] @ sides[1] + noise * torch.randn(rows, columns, generator=draw)
    return torch.linalg.svdvals(matrix.double()).square()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("rows", "columns", "rank", "noise"),
    [(64, 100, 10, 0.1), (64, 100, 10, 1.0), (100, 300, 30, 0.5), (128, 128, 30, 0.5), (200, 50, 10, 1.0)],
)
def test_planted_ranks_are_found(rows, columns, rank, noise, seed):
    assert evbmf(planted(rows, columns, rank, noise, seed), max(rows, columns)) == rank


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(64, 64), (32, 288), (256, 300)])
def test_noise_alone_has_rank_zero_whatever_its_strength(shape, seed):
    assert evbmf(planted(*shape, 0, 1.0, seed), max(shape)) == 0
    assert evbmf(1e-6 * planted(*shape, 0, 1.0, seed), max(shape)) == 0


def test_a_direction_that_drowns_in_noise_is_left_out():
    """Below about sqrt(noise's variance · sqrt(rows · columns)) nothing can be told from noise."""
    for strength, rank in ((0.5, 0), (4.0, 1)):
        draw = torch.Generator().manual_seed(0)
        matrix = torch.randn(50, 200, generator=draw)
        matrix[0] += strength * (50 * 200) ** 0.25 * torch.nn.functional.normalize(torch.ones(200), dim=0)
        assert evbmf(torch.linalg.svdvals(matrix).square(), 200) == rank


@pytest.mark.parametrize(("count", "longer"), [(1, 1), (1, 5), (2, 2), (3, 7)])
def test_the_smallest_matrices_have_some_rank(count, longer):
    for energy in (torch.zeros(count), torch.ones(count), torch.arange(count) + 1.0):
        assert 0 <= evbmf(energy, longer) <= count


def test_the_free_energy_is_the_papers():
    """Against the sums as they are written, for each variance and each singular value."""
    energy, longer = planted(12, 30, 3, 0.5), 30
    alpha = 12 / 30
    root = 2.5129 * math.sqrt(alpha)
    edge = (1 + root) * (1 + alpha / root)
    for variance in (0.1, 0.25, 1.0, 5.0):
        total = 0.0
        for value in energy.tolist():
            x = value / (longer * variance)
            total += x - math.log(x)
            if x > edge:
                tau = 0.5 * (x - (1 + alpha) + math.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha))
                total += math.log(tau + 1) + alpha * math.log(tau / alpha + 1) - tau
        (found,) = module._free_energy((energy / (longer * variance))[None], alpha, edge).tolist()
        assert found == pytest.approx(total, rel=1e-9)
