"""EVBMF: how many directions of a matrix stand out of noise of one strength in all of its entries."""

from __future__ import annotations

import torch
from torch import Tensor

GRID = 1000  # variances of the noise that are tried: neighbours differ by a few hundredths


def evbmf(energy: Tensor, longer: int) -> int:
    """The rank that empirical variational Bayes gives a matrix, by its global analytic solution.

    Nakajima, Sugiyama, Babacan and Tomioka, Global analytic solution of fully-observed variational Bayesian matrix
    factorization, 2013. Of a matrix of noise alone, such as an untrained weight, it is 0.

    Args:
        energy: (shorter,) squared singular values of the (shorter, longer) matrix, in any order.
    """
    energy = energy.double().sort(descending=True).values
    shorter = len(energy)
    if float(energy.sum()) <= 0:
        return 0
    alpha = shorter / longer
    least = 2.5129 * alpha**0.5  # so the paper, where the hyperparameters are estimated too
    edge = (1 + least) * (1 + alpha / least)
    most = min(shorter - 1, -int(-shorter // (1 + alpha)) - 1)  # directions that may stand out
    tail = float(energy[most:].sum()) / (longer * (shorter - most))
    low, high = max(float(energy[most]) / (longer * edge), tail), float(energy.sum()) / (shorter * longer)
    low = max(low, 1e-12 * high)
    variances = torch.logspace(0, 1, GRID, base=max(high / low, 1.0), dtype=torch.float64) * low
    scaled = energy / (longer * variances[:, None])
    best = variances[_free_energy(scaled.clamp(min=1e-300), alpha, edge).argmin()]
    return int((energy > longer * best * edge).sum())


def _free_energy(scaled: Tensor, alpha: float, edge: float) -> Tensor:
    """(variances,) of (variances, shorter) energies in units of noise, but for a constant."""
    beyond = (scaled - (1 + alpha)).clamp(min=0)
    tau = (beyond + (beyond.square() - 4 * alpha).clamp(min=0).sqrt()) / 2
    gained = (tau + 1).log() + alpha * (tau / alpha + 1).log() - tau
    return (scaled - scaled.log() + torch.where(scaled > edge, gained, 0.0)).sum(1)
