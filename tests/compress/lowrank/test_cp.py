from __future__ import annotations

import warnings

import pytest
import torch
from tensorly.cp_tensor import cp_to_tensor
from tensorly.decomposition import parafac
from torch import Tensor
from torch.nn.functional import conv2d

from compress.lowrank import cp as module
from compress.lowrank.cp import Degenerate, cp, cp_energy, slice_energy

SHAPES = [(16, 12, 3, 3), (10, 20, 3, 3), (8, 8, 1, 5), (6, 5, 2, 3)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decaying(outs: int, ins: int, height: int, width: int) -> Tensor:
    """A weight like a trained one: some directions of each mode matter more."""
    weight = normal(outs, ins, height, width)
    for mode, size in enumerate((outs, ins)):
        weight = weight * torch.logspace(0, -1, size, dtype=torch.float64).movedim(0, -1).reshape(
            [size if place == mode else 1 for place in range(4)]
        )
    return weight


def product(factors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """By loops over components."""
    first, middle, last = factors
    total = torch.zeros(last.shape[0], first.shape[1], *middle.shape[2:], dtype=torch.float64)
    for r in range(len(first)):
        total += last[:, r, None, None, None] * first[r, None, :, None, None] * middle[r, 0][None, None]
    return total


def lost(weight: Tensor, found: Tensor) -> float:
    return float((weight - found).square().sum() / weight.square().sum())


def cancelling(outs: int = 12, ins: int = 10) -> Tensor:
    """a a b + a b a + b a a of rank 3, to which sums of two components come as near as one likes, by growing."""
    sides = [normal(size, 2, seed=size) for size in (outs, ins, 9)]
    terms = [
        torch.einsum("o,i,k->oik", *(side[:, place] for side, place in zip(sides, places, strict=True)))
        for places in ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    return (terms[0] + terms[1] + terms[2]).reshape(outs, ins, 3, 3)


@pytest.mark.parametrize("shape", [(16, 12, 3, 3), (10, 20, 3, 3), (32, 24, 3, 3), (12, 16, 5, 5)])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_at_equal_rank_it_loses_no_more_than_tensorly(shape, share):
    weight = decaying(*shape)
    rank = max(2, int(share * weight.numel() / (shape[0] + shape[1] + shape[2] * shape[3])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer singular vectors than components
        theirs = parafac(weight.flatten(2).numpy(), rank, init="svd", n_iter_max=50, tol=1e-8, random_state=0)
    factors = cp(weight, rank)

    assert [tuple(factor.shape) for factor in factors] == [(rank, shape[1]), (rank, 1, *shape[2:]), (shape[0], rank)]
    bound = lost(weight, torch.from_numpy(cp_to_tensor(theirs)).reshape(shape))
    assert lost(weight, product(factors)) <= 1.02 * bound  # each ends in an optimum of its own


@pytest.mark.parametrize("white", [True, False])
def test_a_sum_of_few_components_is_found(white):
    weight = torch.einsum("or,ri,rk->oik", normal(14, 5), normal(5, 11), normal(5, 9)).reshape(14, 11, 3, 3)
    x = normal(11, 200, seed=3) * torch.logspace(1, -1, 11, dtype=torch.float64)[:, None]

    def missed(rank: int) -> float:
        found = product(cp(weight, rank, x @ x.T if white else None))
        if not white:
            return lost(weight, found)
        return lost(*(torch.einsum("oikl,in->onkl", each, x) for each in (weight, found)))

    assert missed(5) < 1e-3
    assert missed(4) > 10 * missed(5)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_components_are_exact_and_rank_one_is_the_best_there_is(shape):
    weight = normal(*shape)
    full = min(shape[:2]) * shape[2] * shape[3]
    assert lost(weight, product(cp(weight, full))) < 1e-10

    a, b, c = normal(shape[0]), normal(shape[1]), normal(shape[2] * shape[3])
    tensor = weight.flatten(2)
    for _ in range(500):  # the power method
        a = torch.einsum("oik,i,k->o", tensor, b, c)
        b = torch.einsum("oik,o,k->i", tensor, a / a.norm(), c)
        c = torch.einsum("oik,o,i->k", tensor, a / a.norm(), b / b.norm())
        b, c = b / b.norm(), c / c.norm()
    best = 1 - float(torch.einsum("oik,o,i,k->", tensor, a / a.norm(), b, c) ** 2 / tensor.square().sum())
    assert lost(weight, product(cp(weight, 1))) <= best + 2e-2


def test_sweeps_gain_on_the_closed_form_that_they_start_from():
    weight = decaying(24, 16, 3, 3)
    energy = slice_energy(weight).flatten().sort(descending=True).values
    for rank in (10, 30, 50):
        start = float(energy[rank:].sum() / energy.sum())
        assert lost(weight, product(cp(weight, rank))) < 0.95 * start


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("white", [True, False])
def test_slices_have_all_of_the_energy(shape, white):
    weight, x = normal(*shape), normal(shape[1], 100, seed=1)
    moment = x @ x.T if white else None
    total = torch.einsum("oikl,ij,ojkl->", weight, x @ x.T, weight) if white else weight.square().sum()

    assert slice_energy(weight, moment).shape == (shape[2] * shape[3], min(shape[:2]))
    assert slice_energy(weight, moment).sum() == pytest.approx(float(total), rel=1e-4)
    assert cp_energy(weight, moment).sum() == pytest.approx(float(total), rel=1e-4)
    assert (cp_energy(weight, moment) >= 0).all()


def test_what_is_told_of_a_rank_is_about_what_it_loses():
    weight = decaying(32, 24, 3, 3)
    energy = cp_energy(weight)
    for share in (0.1, 0.2, 0.35, 0.5):
        rank = int(share * weight.numel() / (32 + 24 + 9))
        told = 1 - float(energy[:rank].sum() / weight.square().sum())
        real = lost(weight, product(cp(weight, rank)))
        assert real <= told <= 1.6 * real


def test_whitened_it_misses_less_of_the_outputs():
    weight = normal(12, 10, 3, 3)
    mixing = torch.linalg.qr(normal(10, 10, seed=1)).Q * torch.logspace(1, -2, 10, dtype=torch.float64)
    x = torch.einsum("ij,njhw->nihw", mixing, normal(20, 10, 16, 16, seed=2))
    rows = x.movedim(1, -1).flatten(0, -2)
    outputs = conv2d(x, weight, padding=1)
    for rank in (5, 12, 20):
        missed = [
            float((outputs - conv2d(x, product(cp(weight, rank, moment)), padding=1)).square().sum())
            for moment in (None, rows.T @ rows)
        ]
        assert missed[1] < 0.8 * missed[0]


@pytest.mark.parametrize("white", [True, False])
def test_the_three_factors_of_a_component_are_equally_long(white):
    x = 1000 * normal(12, 100, seed=1)
    first, middle, last = cp(normal(16, 12, 3, 3), 20, x @ x.T if white else None)
    norms = [first.norm(dim=1), middle.flatten(1).norm(dim=1), last.norm(dim=0)]

    assert torch.allclose(norms[0], norms[1], rtol=1e-4)
    assert torch.allclose(norms[0], norms[2], rtol=1e-4)


def test_components_that_would_cancel_each_other_are_held_back():
    """tensorly's go on growing, as do ours without the ridge."""
    weight = cancelling()
    first, middle, last = cp(weight, 2)
    energies = first.square().sum(1) * middle.flatten(1).square().sum(1) * last.square().sum(0)

    assert lost(weight, product((first, middle, last))) < 2e-3
    assert energies.sum() < 10 * weight.square().sum()


def test_components_that_cancel_each_other_are_refused(monkeypatch):
    monkeypatch.setattr(module, "RIDGE", 1e-9)
    monkeypatch.setattr(module, "SWEEPS", 300)
    with pytest.raises(Degenerate, match="rank 2"):
        cp(cancelling(), 2)
    cp(cancelling(), 3)


def test_a_layer_of_zeros_stays_one():
    zeros = torch.zeros(8, 6, 3, 3)
    assert torch.equal(product(cp(zeros, 3)), zeros.double())
    assert torch.equal(cp_energy(zeros), torch.zeros(54, dtype=torch.float64))
    weight = normal(8, 6, 3, 3)
    weight[:, 3] = 0
    weight[2] = 0
    assert torch.isfinite(product(cp(weight, 12))).all()


def test_the_factors_run_as_three_convolutions():
    options = {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)}
    weight, x = normal(6, 5, 3, 2), normal(2, 5, 9, 11, seed=1)
    first, middle, last = cp(weight, 7)
    ran = conv2d(conv2d(x, first[:, :, None, None]), middle, groups=7, **options)

    assert torch.allclose(
        conv2d(ran, last[:, :, None, None]), conv2d(x, product((first, middle, last)), **options), atol=1e-8
    )
