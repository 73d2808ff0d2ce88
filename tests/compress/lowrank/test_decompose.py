from __future__ import annotations

import pytest
import tensorly
import torch
from tensorly.decomposition import partial_tucker
from torch import Tensor
from torch.nn.functional import conv2d

from compress.lowrank.decompose import core_energy, spatial, spatial_energy, spectrum, svd, tucker, whitening

MATRICES = [(6, 10), (10, 6), (8, 8)]
KERNELS = [(8, 6, 3, 3), (16, 24, 3, 3), (12, 4, 5, 1), (5, 9, 2, 3)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(features: int, count: int = 400) -> Tensor:
    """(features, count) inputs a few of whose directions have nearly all of the energy."""
    strengths = torch.logspace(1, -2, features, dtype=torch.float64)
    mixing = torch.linalg.qr(normal(features, features, seed=1)).Q
    return mixing @ (strengths[:, None] * normal(features, count, seed=2)) + 0.5


def moment_for(weight: Tensor, x: Tensor) -> Tensor:
    """Of the fewer of the outputs and the inputs, the inputs where they are as many."""
    rows = weight @ x if weight.shape[0] < weight.shape[1] else x
    return rows @ rows.T


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(values[:rank]) @ v[:rank]


def error(matrix: Tensor) -> float:
    return float(matrix.square().sum())


def product(factors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    inner, core, outer = factors
    return torch.einsum("or,rskl,si->oikl", outer, core, inner)


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_plain_cut_is_the_truncated_svd(shape, rank):
    weight = normal(*shape)
    first, second = svd(weight, rank)

    assert (first.shape, second.shape) == ((rank, shape[1]), (shape[0], rank))
    assert torch.allclose(second @ first, truncated(weight, rank), atol=1e-10)


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize("white", [True, False])
def test_full_rank_is_exact(shape, white):
    weight = normal(*shape)
    first, second = svd(weight, min(shape), moment_for(weight, correlated(shape[1])) if white else None)

    assert torch.allclose(second @ first, weight, atol=1e-10)


@pytest.mark.parametrize("shape", MATRICES)
def test_the_spectrum_is_that_of_the_matrix_in_order_on_an_orthonormal_basis(shape):
    weight = normal(*shape)
    found = spectrum(weight.float())
    rank = min(shape)

    assert found.basis.dtype == found.energy.dtype == torch.float64
    assert found.basis.shape == (shape[0], rank)
    assert torch.allclose(found.basis.T @ found.basis, torch.eye(rank, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(found.energy, torch.linalg.svdvals(weight).square(), rtol=1e-5)


@pytest.mark.parametrize("shape", MATRICES)
def test_a_whitened_cut_misses_the_least_of_the_outputs_that_any_could(shape):
    weight, x = normal(*shape), correlated(shape[1])
    moment = moment_for(weight, x)
    energy = spectrum(weight, moment).energy
    outputs = weight @ x
    assert energy.sum() == pytest.approx(error(outputs))
    for rank in range(1, min(shape)):
        first, second = svd(weight, rank, moment)
        missed = error(outputs - second @ (first @ x))
        plain_first, plain_second = svd(weight, rank)

        assert missed == pytest.approx(error(outputs - truncated(outputs, rank)), rel=1e-3, abs=1e-9)
        assert missed == pytest.approx(float(energy[rank:].sum()), rel=1e-3, abs=1e-9)
        assert missed < 0.9 * error(outputs - plain_second @ (plain_first @ x))


def test_whitening_roots_the_moment_and_inverts_the_root():
    x = normal(7, 50)
    moment = x @ x.T
    white = whitening(moment.float())

    assert torch.allclose(white.root @ white.root.T, moment, rtol=1e-5, atol=1e-4)
    assert torch.allclose(white.inverse @ white.root, torch.eye(7, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(white.root @ white.inverse, torch.eye(7, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_whitening_bears_a_singular_moment(rank):
    x = normal(7, rank)
    moment = x @ x.T
    white = whitening(moment)

    assert torch.isfinite(white.root).all()
    assert torch.isfinite(white.inverse).all()
    assert torch.allclose(white.inverse @ white.root, torch.eye(7, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(white.root @ white.root.T, moment, atol=2e-6 * float(moment.trace()) + 1e-12)


@pytest.mark.parametrize("shape", [(10, 6), (6, 10)])
def test_inputs_of_low_rank_need_no_more_than_that_rank(shape):
    weight = normal(*shape)
    x = normal(shape[1], 3) @ normal(3, 200, seed=1)
    first, second = svd(weight, 3, moment_for(weight, x))

    assert error(weight @ x - second @ (first @ x)) < 1e-5 * error(weight @ x)
    plain_first, plain_second = svd(weight, 3)
    assert error(weight @ x - plain_second @ (plain_first @ x)) > 1e-3 * error(weight @ x)


@pytest.mark.parametrize("shape", KERNELS)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_tucker_is_as_good_as_tensorlys(shape, share):
    weight = normal(*shape)
    ranks = (max(1, int(share * shape[0])), max(1, int(share * shape[1])))
    (core, factors), _ = partial_tucker(
        weight.numpy(), rank=list(ranks), modes=[0, 1], init="svd", n_iter_max=100, tol=1e-6
    )
    theirs = torch.from_numpy(tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1]))
    factors = tucker(weight, ranks)

    assert [tuple(factor.shape) for factor in factors] == [
        (ranks[1], shape[1]),
        (*ranks, *shape[2:]),
        (shape[0], ranks[0]),
    ]
    assert error(weight - product(factors)) <= 1.01 * error(weight - theirs)


@pytest.mark.parametrize("shape", KERNELS)
def test_tucker_at_the_ranks_that_the_modes_have_is_exact(shape):
    weight = normal(*shape)
    x = correlated(shape[1])

    for moment in (None, x @ x.T):
        assert torch.allclose(product(tucker(weight, shape[:2], moment)), weight, atol=1e-8)
    low = torch.einsum("or,rskl,si->oikl", normal(shape[0], 3), normal(3, 2, *shape[2:]), normal(2, shape[1]))
    for moment in (None, x @ x.T):
        assert torch.allclose(product(tucker(low, (3, 2), moment)), low, atol=1e-8)


def channel_norms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return first.flatten(1).norm(dim=1), second.transpose(0, 1).flatten(1).norm(dim=1)


@pytest.mark.parametrize("white", [True, False])
def test_each_channel_is_as_large_in_what_makes_it_as_in_what_reads_it(white):
    """A large factor after a small one would not train."""
    x = 1000 * correlated(12)
    first, core, last = tucker(normal(16, 12, 3, 3), (9, 7), x @ x.T if white else None)
    pairs = [(first, core), (core, last)]
    for weight in (normal(16, 12), normal(12, 12)):
        pairs.append(svd(weight, 5, moment_for(weight, x) if white else None))

    for makes, reads in (channel_norms(*pair) for pair in pairs):
        assert torch.allclose(makes, reads, rtol=1e-2)


def test_layers_of_zeros_stay_zeros():
    x = correlated(6)
    for moment in (None, x @ x.T):
        factors = tucker(torch.zeros(8, 6, 3, 3), (3, 2), moment)
        assert torch.equal(product(factors), torch.zeros(8, 6, 3, 3, dtype=torch.float64))
        first, second = svd(torch.zeros(8, 6), 3, moment)
        assert torch.equal(second @ first, torch.zeros(8, 6, dtype=torch.float64))


def test_whitened_tucker_misses_less_of_the_outputs():
    weight, x = normal(12, 10, 3, 3), correlated(10, 20 * 16 * 16).reshape(10, 20, 16, 16).movedim(0, 1)
    rows = x.movedim(1, -1).flatten(0, -2)
    outputs = conv2d(x, weight, padding=1)

    for ranks in [(12, 3), (8, 5), (4, 2)]:
        missed = [
            error(outputs - conv2d(x, product(tucker(weight, ranks, moment)), padding=1))
            for moment in (None, rows.T @ rows)
        ]
        assert missed[1] < 0.8 * missed[0]


@pytest.mark.parametrize("shape", KERNELS)
@pytest.mark.parametrize("white", [True, False])
def test_core_energies_add_up_to_those_of_the_unfoldings(shape, white):
    weight = normal(*shape)
    x = correlated(shape[1])
    moment = x @ x.T if white else None
    values, vectors = torch.linalg.eigh(x @ x.T)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T  # another root than the code's
    seen = torch.einsum("oikl,ij->ojkl", weight, root) if white else weight
    energy = core_energy(weight, moment)

    assert energy.shape == shape[:2]
    assert energy.sum() == pytest.approx(error(seen), rel=1e-4)
    for mode, unfolded in ((0, seen.reshape(shape[0], -1)), (1, seen.movedim(1, 0).reshape(shape[1], -1))):
        squares = torch.linalg.svdvals(unfolded).square()
        wanted = torch.zeros(shape[mode], dtype=torch.float64)
        wanted[: len(squares)] = squares
        assert torch.allclose(energy.sum(1 - mode), wanted, rtol=1e-4, atol=2e-6 * float(energy.sum()))


@pytest.mark.parametrize("shape", KERNELS)
def test_a_cut_loses_no_more_than_the_core_told(shape):
    weight = normal(*shape)
    energy = core_energy(weight)
    outer = torch.linalg.svd(weight.reshape(shape[0], -1)).U
    inner = torch.linalg.svd(weight.movedim(1, 0).reshape(shape[1], -1)).U
    for ro, ri in [(1, 1), (2, 3), (shape[0] - 1, 2), (shape[0], shape[1] - 1)]:
        kept = torch.einsum("oikl,or,is->rskl", weight, outer[:, :ro], inner[:, :ri])
        told = float(energy[:ro, :ri].sum())

        assert told == pytest.approx(error(kept))
        assert error(weight - product(tucker(weight, (ro, ri)))) <= error(weight) - told + 1e-9


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 1, "padding": 0},
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": (2, 1), "dilation": (2, 1)},
    ],
)
@pytest.mark.parametrize("white", [True, False])
def test_the_factors_run_as_three_convolutions(options, white):
    weight, x = normal(6, 5, 3, 2), normal(2, 5, 9, 11, seed=1)
    moment = correlated(5) @ correlated(5).T if white else None
    pointwise = lambda x, w: conv2d(x, w[:, :, None, None])  # noqa: E731

    first, core, last = tucker(weight, (6, 5), moment)
    assert torch.allclose(
        pointwise(conv2d(pointwise(x, first), core, **options), last), conv2d(x, weight, **options), atol=1e-8
    )
    first, core, last = tucker(weight, (4, 2), moment)
    assert torch.allclose(
        pointwise(conv2d(pointwise(x, first), core, **options), last),
        conv2d(x, product((first, core, last)), **options),
        atol=1e-8,
    )


def composed(factors: tuple[Tensor, Tensor]) -> Tensor:
    first, second = factors
    return torch.einsum("rik,orl->oikl", first[..., 0], second[:, :, 0])


@pytest.mark.parametrize("shape", KERNELS)
def test_columns_and_rows_are_the_best_there_are(shape):
    """By the singular values of the matrix that Jaderberg's second scheme factorises, filled in by loops."""
    weight, (outs, ins, height, width) = normal(*shape), shape
    matrix = torch.zeros(outs * width, ins * height, dtype=torch.float64)
    for o in range(outs):
        for i in range(ins):
            for k in range(height):
                for at in range(width):
                    matrix[o * width + at, i * height + k] = weight[o, i, k, at]
    squares = torch.linalg.svdvals(matrix).square()
    full = len(squares)
    assert torch.allclose(spatial_energy(weight)[:full], squares, atol=1e-9)
    for rank in (1, full // 2, full):
        factors = spatial(weight, rank)
        assert [tuple(factor.shape) for factor in factors] == [(rank, ins, height, 1), (outs, rank, 1, width)]
        assert error(weight - composed(factors)) == pytest.approx(float(squares[rank:].sum()), abs=1e-9)


@pytest.mark.parametrize("shape", [(12, 10, 3, 3), (5, 9, 2, 3)])
def test_whitened_columns_and_rows_miss_less_of_the_outputs_and_as_much_as_told(shape):
    weight, x = normal(*shape), correlated(shape[1], 20 * 16 * 16).reshape(shape[1], 20, 16, 16).movedim(0, 1)
    rows = x.movedim(1, -1).flatten(0, -2)
    outputs, moment = conv2d(x, weight, padding=1), rows.T @ rows
    full = min(shape[0] * shape[3], shape[1] * shape[2])
    energy = spatial_energy(weight, moment)
    seen = torch.einsum("oikl,ij,ojkl->", weight, moment, weight)
    assert energy.sum() == pytest.approx(float(seen), rel=1e-4)
    for rank in (full // 4, full // 2):
        found = composed(spatial(weight, rank, moment))
        missed = [error(outputs - conv2d(x, each, padding=1)) for each in (composed(spatial(weight, rank)), found)]
        assert missed[1] < 0.8 * missed[0]
        left = torch.einsum("oikl,ij,ojkl->", weight - found, moment, weight - found)
        assert float(left) == pytest.approx(float(energy[rank:].sum()), rel=1e-2, abs=1e-5 * float(seen))
    assert torch.allclose(composed(spatial(weight, full, moment)), weight, atol=1e-6)


@pytest.mark.parametrize("white", [True, False])
def test_channels_between_columns_and_rows_are_as_large_in_both(white):
    x = 1000 * correlated(12)
    first, second = spatial(normal(16, 12, 3, 3), 9, x @ x.T if white else None)
    assert torch.allclose(*channel_norms(first, second), rtol=1e-6)
    zeros = torch.zeros(8, 6, 3, 3)
    assert torch.equal(composed(spatial(zeros, 3)), zeros.double())
