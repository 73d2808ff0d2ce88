"""CP of convolutions: a kernel as a sum of outer products, which runs as 1 x 1, depthwise k x l, 1 x 1.

Lebedev et al., Speeding-up convolutional neural networks using fine-tuned CP-decomposition, 2015, split the rows
of the kernel from its columns, for two depthwise layers of k + l numbers a component. Here both are one mode of k·l: of
inputs + k·l + outputs numbers that is next to nothing, the error is never larger, and the row is a layer shorter.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from compress.lowrank.decompose import whitened, whitening

SWEEPS = 30
PROBING = 8  # sweeps that tell what more of them would reach
PROBES = (0.2, 0.5)  # of the numbers that the weight has
RIDGE = 1e-3  # of the mean square of a column: a hundredth of it let components grow tenfold, and lost no less
MOMENTUM = 0.5  # to begin with
LIMIT = 30.0  # energies of the tensor that its components may have together; those of trained layers have up to 6
TINY = 1e-30


class Degenerate(ArithmeticError):
    """Components grow and cancel each other: what is left of them in finite precision is noise, and does not train.

    de Silva and Lim, Tensor rank and the ill-posedness of the best low-rank approximation problem, 2008.
    """


class Components(NamedTuple):
    """A tensor, as the sum over r of the outer products of columns r: (k·l, r), (outputs, r), (inputs, r)."""

    kernels: Tensor
    outs: Tensor
    ins: Tensor

    @property
    def energy(self) -> Tensor:
        """(r,) squared norms."""
        return self.kernels.square().sum(0) * self.outs.square().sum(0) * self.ins.square().sum(0)

    def first(self, rank: int) -> Components:
        return Components(*(side[:, :rank] for side in self))

    def balanced(self) -> Components:
        """The same sum, the columns of each component equally long."""
        norms = [side.norm(dim=0).clamp(min=TINY) for side in self]
        mean = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
        return Components(*(side * (mean / norm) for side, norm in zip(self, norms, strict=True)))


def cp_energy(weight: Tensor, moment: Tensor | None = None) -> Tensor:
    """(r,) energies that rank 1, 2, ... adds to what `cp` keeps of (outputs, inputs, k, l), about.

    What the components lose that it starts from is known for each rank. By which factor its sweeps lower that is tried
    at few ranks, and interpolated between them.

    Args:
        moment: the (inputs, inputs) second moment of the inputs.
    """
    tensor = _tensor(whitened(weight.double(), None if moment is None else whitening(moment)))
    total, start = float(tensor.square().sum()), _start(tensor)
    lost = (total - start.energy.cumsum(0)).clamp(min=0)
    ranks, factors = [0], [1.0]
    for share in PROBES:
        rank = int(share * tensor.numel() / sum(tensor.shape))
        if ranks[-1] < rank < len(lost) and lost[rank - 1] > 1e-6 * total:
            _, left = _improved(tensor.float(), start.first(rank), PROBING)
            ranks.append(rank)
            factors.append(left / float(lost[rank - 1]))
    lost = lost * _interpolated(ranks, factors, len(lost))
    kept = (total - lost).cummax(0).values
    return kept.diff(prepend=kept.new_zeros(1))


def cp(weight: Tensor, rank: int, moment: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """CP of (outputs, inputs, k, l), which has min(outputs, inputs)·k·l components at most.

    Alternating least squares, with Nesterov's momentum and restarts (Mitchell et al., Nesterov acceleration of
    alternating least squares for canonical tensor decomposition, 2020), in float32: two products with the weight a
    sweep, since two of its three modes share one.

    Returns (rank, inputs), (rank, 1, k, l) and (outputs, rank), in the order in which they run.
    Raises Degenerate where the components together have `LIMIT` times the energy of the weight.
    """
    white = None if moment is None else whitening(moment)
    tensor = _tensor(whitened(weight.double(), white))
    found, _ = _improved(tensor.float(), _start(tensor).first(rank), SWEEPS)
    if float(found.energy.sum()) > LIMIT * max(float(tensor.square().sum()), TINY):
        raise Degenerate(f"components at rank {rank} cancel each other")
    found = Components(*(side.double() for side in found))
    if white is not None:
        found = found._replace(ins=white.inverse.T @ found.ins)
    kernels, outs, ins = found.balanced()
    return ins.T, kernels.T.reshape(rank, 1, *weight.shape[2:]), outs


def slice_energy(weight: Tensor, moment: Tensor | None = None) -> Tensor:
    """(k·l, min(outputs, inputs)) energies of the slices along the principal kernels, that `cp` starts from."""
    slices = _slices(_tensor(whitened(weight.double(), None if moment is None else whitening(moment))))[1]
    return torch.linalg.svdvals(slices).square()


def _tensor(weight: Tensor) -> Tensor:
    """(k·l, outputs, inputs)."""
    return weight.flatten(2).permute(2, 0, 1).contiguous()


def _start(tensor: Tensor) -> Components:
    """All components of the best sum in which those of one kernel are orthogonal and the kernels are principal ones,
    the strongest first: the singular triples of the slices along the principal axes of the kernels' mode."""
    kernels, slices = _slices(tensor)
    if slices.shape[1] > slices.shape[2]:
        ins, outs = _singular(slices.transpose(1, 2))
    else:
        outs, ins = _singular(slices)
    sides = [side.transpose(0, 1).flatten(1) for side in (outs, ins)]
    found = Components(kernels.repeat_interleave(outs.shape[2], 1), *sides)
    order = found.energy.argsort(descending=True)
    return Components(*(side[:, order] for side in found)).balanced()


def _slices(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(k·l, s) principal kernels, and the (s, outputs, inputs) slices along them."""
    kernels = torch.linalg.eigh(torch.einsum("koi,loi->kl", tensor, tensor)).eigenvectors
    return kernels, torch.einsum("koi,ks->soi", tensor, kernels)


def _singular(slices: Tensor) -> tuple[Tensor, Tensor]:
    """(s, m, m) and (s, n, m) of (s, m, n), m at most n: left singular vectors, right ones times their values."""
    left = torch.linalg.eigh(slices @ slices.transpose(1, 2)).eigenvectors
    return left, slices.transpose(1, 2) @ left


def _improved(tensor: Tensor, start: Components, sweeps: int) -> tuple[Components, float]:
    """The best components that were found, never worse than the first ones, and the energy that they lose."""
    start = Components(*(side.to(tensor.dtype) for side in start))
    total = float(tensor.square().sum())
    best, lost, momentum = start, max(0.0, total - float(start.energy.sum())), MOMENTUM
    ahead = best
    for _ in range(sweeps):
        found, left = _swept(tensor, ahead, total)
        if left < lost:
            steps = (new + momentum * (new - old) for new, old in zip(found, best, strict=True))
            best, lost, ahead = found, left, Components(*steps)
            momentum = (4 * momentum + 1) / 5
        elif ahead is best:
            break
        else:
            ahead, momentum = best, momentum / 2
    return best, lost


def _swept(tensor: Tensor, now: Components, total: float) -> tuple[Components, float]:
    """Each mode solved for in turn, and the energy that is lost then."""
    kernels, _, ins = now
    read = tensor @ ins  # (k·l, outputs, r)
    outs = _solved(_summed(read, kernels), _gram(kernels) * _gram(ins))
    kernels = _solved(torch.stack([(part * outs).sum(0) for part in read]), _gram(outs) * _gram(ins))
    both = _gram(kernels) * _gram(outs)
    seen = _summed(tensor.transpose(1, 2) @ outs, kernels)
    ins = _solved(seen, both)
    lost = total - 2 * float((seen * ins).sum()) + float((both * _gram(ins)).sum())
    return Components(kernels, outs, ins).balanced(), max(0.0, lost)


def _summed(parts: Tensor, weights: Tensor) -> Tensor:
    """(n, r) of (k, n, r), weighted by (k, r); twenty times as fast as by einsum."""
    total = torch.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        total.addcmul_(part, weight)
    return total


def _gram(side: Tensor) -> Tensor:
    return side.T @ side


def _solved(right: Tensor, gram: Tensor) -> Tensor:
    """The least squares (n, r) for a symmetric (r, r)."""
    ridge = RIDGE * gram.diagonal().mean().clamp(min=TINY)
    return torch.cholesky_solve(right.T, torch.linalg.cholesky(gram + ridge * torch.eye(len(gram)).to(gram))).T


def _interpolated(ranks: list[int], factors: list[float], count: int) -> Tensor:
    """(count,) factors at ranks 1, 2, ..., linear between those that are known, the last one beyond them."""
    found = []
    for rank in range(1, count + 1):
        above = next((place for place, known in enumerate(ranks) if known >= rank), len(ranks) - 1)
        below = max(above - 1, 0)
        width = ranks[above] - ranks[below]
        part = min(1.0, (rank - ranks[below]) / width) if width else 1.0
        found.append(factors[below] + part * (factors[above] - factors[below]))
    return torch.tensor(found, dtype=torch.float64)
