"""Low-rank factors of weights: SVD of matrices, Tucker-2 and rows of columns of convolutions; CP is in `cp`.

All are whitened where the second moment of a layer's inputs is known: W L is decomposed in the place of the weight W,
with L Lᵀ the moment, so that what is cut is what the outputs miss least, on the images that gave the moment.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SWEEPS = 3  # of the higher-order orthogonal iteration; more moved the error by less than a thousandth
BALANCINGS = 8  # of the norms of three factors, until they agree to a thousandth
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
    """The directions that the outputs of a matrix lie along.

    Attributes:
        basis: (outputs, r) orthonormal, the one of most energy first, r = min(outputs, inputs).
        energy: (r,) that the outputs have along each.
    """

    basis: Tensor
    energy: Tensor


def spectrum(weight: Tensor, moment: Tensor | None = None) -> Spectrum:
    """Directions of the outputs of (outputs, inputs), in float64; their rank-r projection B Bᵀ W is the closest weight.

    Args:
        moment: the second moment of whichever are fewer: the outputs, without their bias, or the inputs (also where
            they are as many). None: inputs are taken to be white noise.
    """
    weight = weight.double()
    if moment is not None and weight.shape[0] >= weight.shape[1]:
        weight, moment = weight @ whitening(moment).root, None
    if weight.shape[0] > weight.shape[1]:
        basis, values, _ = torch.linalg.svd(weight, False)
        return Spectrum(basis, values.square())
    energy, basis = torch.linalg.eigh(weight @ weight.T if moment is None else moment.double())
    return Spectrum(basis.flip(1), energy.flip(0).clamp(min=0))


def svd(weight: Tensor, rank: int, moment: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(rank, inputs) and (outputs, rank), in the order in which they run, for (outputs, inputs); see `spectrum`."""
    return onto(spectrum(weight, moment).basis[:, :rank], weight)


def onto(basis: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """`svd` at the rank of a basis (outputs, rank) of its outputs."""
    return _balanced(basis.T @ weight.double(), basis)


def core_energy(weight: Tensor, moment: Tensor | None = None) -> Tensor:
    """(outputs, inputs) energies of the core of (outputs, inputs, k, k) along the directions of both modes, the first
    ones the strongest: a cut at ranks (ro, ri) keeps the sum of [:ro, :ri], or more once `tucker` has iterated.

    Args:
        moment: the (inputs, inputs) second moment of the inputs.
    """
    seen = whitened(weight.double(), None if moment is None else whitening(moment))
    outer, inner = (_leading(_gram(seen, mode), seen.shape[mode]) for mode in (0, 1))
    return torch.einsum("oikl,or,is->rskl", seen, outer, inner).square().sum((2, 3))


def tucker(weight: Tensor, ranks: tuple[int, int], moment: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Tucker-2 of (outputs, inputs, k, k) at (output, input) ranks (ro, ri), in float64, by higher-order orthogonal
    iteration (De Lathauwer et al. 2000), each sweep by the eigenvectors of two small Gram matrices.

    Returns (ri, inputs), (ro, ri, k, k) and (outputs, ro), in the order in which they run.
    """
    white = None if moment is None else whitening(moment)
    seen = whitened(weight.double(), white)
    inner = _leading(_gram(seen, 1), ranks[1])
    for _ in range(SWEEPS):
        outer = _leading(_gram(torch.einsum("oikl,ir->orkl", seen, inner), 0), ranks[0])
        inner = _leading(_gram(torch.einsum("oikl,or->rikl", seen, outer), 1), ranks[1])
    core = torch.einsum("oikl,or,is->rskl", seen, outer, inner)
    first = inner.T if white is None else inner.T @ white.inverse
    for _ in range(BALANCINGS):  # each undoes a little of the other
        first, core = _balanced(first, core)
        core, outer = _balanced(core, outer)
    return first, core, outer


def spatial_energy(weight: Tensor, moment: Tensor | None = None) -> Tensor:
    """(r,) energies, in order, along the directions that `spatial` keeps the first of; the moment is as there."""
    matrix = _columns(whitened(weight.double(), None if moment is None else whitening(moment)))
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)


def spatial(weight: Tensor, rank: int, moment: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A k x l kernel as columns of k and then rows of l, in float64: the truncated SVD of (outputs·l, inputs·k).

    Jaderberg et al., Speeding up convolutional neural networks with low rank expansions, 2014, scheme 2; in closed form
    as in Tai et al., Convolutional neural networks with low-rank regularization, 2016, theorem 1.

    Args:
        moment: the (inputs, inputs) second moment of the inputs.

    Returns (rank, inputs, k, 1) and (outputs, rank, 1, l), in the order in which they run.
    """
    outs, ins, height, width = weight.shape
    white = None if moment is None else whitening(moment)
    matrix = _columns(whitened(weight.double(), white))
    if matrix.shape[0] < matrix.shape[1]:
        second = _leading(matrix @ matrix.T, rank)
        first = second.T @ matrix
    else:
        first = _leading(matrix.T @ matrix, rank).T
        second = matrix @ first.T
    first = first.reshape(rank, ins, height)
    if white is not None:
        first = torch.einsum("riy,ij->rjy", first, white.inverse)
    first, second = _balanced(first, second.reshape(outs, width, rank).transpose(1, 2))
    return first[..., None], second[:, :, None]


def _columns(weight: Tensor) -> Tensor:
    """(outputs·l, inputs·k) of (outputs, inputs, k, l)."""
    outs, ins, height, width = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(outs * width, ins * height)


def _balanced(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, each channel between two factors with equal norms in both: factors that whitening has left
    thousands of times apart do not train."""
    makes, reads = first.flatten(1).norm(dim=1), second.transpose(0, 1).flatten(1).norm(dim=1)
    dead = torch.minimum(makes, reads) < 1e-12 * torch.maximum(makes, reads)
    scale = torch.where(dead, 1.0, (reads / makes).sqrt())
    return torch.einsum("r...,r->r...", first, scale), torch.einsum("or...,r->or...", second, 1 / scale)


def whitened(weight: Tensor, white: Whitening | None) -> Tensor:
    """(outputs, inputs, k, l) as if its inputs were white noise."""
    return weight if white is None else torch.einsum("oikl,ij->ojkl", weight, white.root)


def _gram(weight: Tensor, mode: int) -> Tensor:
    unfolded = weight.transpose(0, mode).flatten(1)
    return unfolded @ unfolded.T


def _leading(gram: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1)
