"""Low-rank factors of weights: whitened SVD of matrices, whitened Tucker-2 of convolutions.

Whitening (A = W L with L Lᵀ the second moment of the inputs) makes the error of the factors the error of the outputs,
so that the truncation is optimal for the calibration data rather than for white noise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SWEEPS = 3  # of the higher-order orthogonal iteration; more moved the error by less than a thousandth
RIDGE = 1e-6  # of the largest eigenvalue, so that directions which calibration never saw stay invertible


class Whitening(NamedTuple):
    """L and its inverse, both (inputs, inputs), for inputs of second moment L Lᵀ."""

    root: Tensor
    inverse: Tensor


def whitening(moment: Tensor) -> Whitening:
    """A root of an (inputs, inputs) second moment by its eigenvectors, which bear a moment of low rank."""
    values, vectors = torch.linalg.eigh(moment.double())
    scale = values.clamp(min=RIDGE * float(values[-1].clamp(min=1e-30))).sqrt()
    return Whitening(vectors * scale, (vectors / scale).T)


class Spectrum(NamedTuple):
    """A weight (outputs, inputs) decomposed once, to be cut at any rank.

    Attributes:
        left: (outputs, r) orthonormal; right: (r, inputs) with the singular values and the whitening undone.
        energy: (r,) squared singular values of the whitened weight, largest first.
    """

    left: Tensor
    right: Tensor
    energy: Tensor

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """(outputs, rank) and (rank, inputs) whose product is closest to the weight, in the outputs."""
        return self.left[:, :rank], self.right[:rank]


def spectrum(weight: Tensor, white: Whitening | None = None) -> Spectrum:
    """SVD of (outputs, inputs) in float64, whitened where `white` is given."""
    weight = weight.double()
    u, s, v = torch.linalg.svd(weight if white is None else weight @ white.root, full_matrices=False)
    right = s[:, None] * v
    return Spectrum(u, right if white is None else right @ white.inverse, s.square())


class Tucker(NamedTuple):
    """first (ri, inputs), core (ro, ri, k, k), last (outputs, ro): the three convolutions, in their order."""

    first: Tensor
    core: Tensor
    last: Tensor


def mode_energies(weight: Tensor, white: Whitening | None = None) -> tuple[Tensor, Tensor]:
    """Energies of the output mode and of the (whitened) input mode of (outputs, inputs, k, k), largest first."""
    whitened = _whitened(weight.double(), white)
    outer, inner = (torch.linalg.eigvalsh(_gram(whitened, mode)).flip(0).clamp(min=0) for mode in (0, 1))
    return outer, inner


def tucker(weight: Tensor, ranks: tuple[int, int], white: Whitening | None = None) -> Tucker:
    """Tucker-2 of (outputs, inputs, k, k) at (output, input) ranks by higher-order orthogonal iteration
    (De Lathauwer et al. 2000), each sweep by the eigenvectors of two small Gram matrices."""
    whitened = _whitened(weight.double(), white)
    inner = _leading(_gram(whitened, 1), ranks[1])
    for _ in range(SWEEPS):
        outer = _leading(_gram(torch.einsum("oikl,ir->orkl", whitened, inner), 0), ranks[0])
        inner = _leading(_gram(torch.einsum("oikl,or->rikl", whitened, outer), 1), ranks[1])
    core = torch.einsum("oikl,or,is->rskl", whitened, outer, inner)
    first = inner.T if white is None else inner.T @ white.inverse
    return Tucker(first, core, outer)


def _whitened(weight: Tensor, white: Whitening | None) -> Tensor:
    return weight if white is None else torch.einsum("oikl,ij->ojkl", weight, white.root)


def _gram(weight: Tensor, mode: int) -> Tensor:
    unfolded = weight.transpose(0, mode).flatten(1)
    return unfolded @ unfolded.T


def _leading(gram: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1)
