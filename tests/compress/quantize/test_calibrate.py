from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from onnx import helper

from compress.quantize.calibrate import BINS, RANGES, Histogram, entropy, histograms, mse, percentile, ranges
from kd.errors import InputError


def made(values: np.ndarray, bins: int = BINS) -> Histogram:
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    counts, _ = np.histogram(values[values != 0], bins, (low, high))
    return Histogram(low, high, counts.astype(float), int((values == 0).sum()))


def rounded(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """As unsigned bytes whose zero is one of them."""
    step = (high - low) / 255
    zero = round(-low / step)
    return step * ((values / step).round() + zero).clip(0, 255) - step * zero


def error(values: np.ndarray, low: float, high: float) -> float:
    return float(((rounded(values, low, high) - values) ** 2).mean())


def heavy(seed: int = 0, count: int = 20_000) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, count)


@pytest.mark.parametrize("values", [heavy(), heavy().clip(0), -heavy().clip(0), 3 + np.abs(heavy())])
def test_mse_finds_what_a_naive_search_finds(values):
    found = error(values, *mse(made(values)))
    low, high = min(values.min(), 0), max(values.max(), 0)
    shares = np.linspace(0.05, 1, 39)
    naive = min(error(values, low * a, high * b) for a, b in product(shares, shares))
    assert found < 1.03 * naive


def naive_entropy(counts: list[float], edges: list[float]) -> tuple[float, float]:
    """Bin by bin, the threshold with the least divergence."""
    far, best, least = max(-edges[0], edges[-1]), (edges[0], edges[-1]), math.inf
    for k in range(1, 129):
        threshold = far * k / 128
        inside = [i for i in range(len(counts)) if edges[i + 1] > -threshold and edges[i] < threshold]
        if len(inside) < 256:
            continue
        p = [counts[i] for i in inside]
        p[0] += sum(counts[: inside[0]])
        p[-1] += sum(counts[inside[-1] + 1 :])
        q = [0.0] * len(p)
        for level in range(256):
            bins = [i for i in range(len(p)) if i * 256 // len(p) == level]
            there = [i for i in bins if counts[inside[i]] > 0]
            for i in there:
                q[i] = sum(counts[inside[j]] for j in bins) / len(there)
        lost = 0.0
        for a, b in zip(p, q, strict=True):
            if a > 0:
                lost += a / sum(p) * math.log(a / sum(p) / max(b / sum(q), 1e-9))
        if lost < least:
            best, least = (max(edges[0], -threshold), min(edges[-1], threshold)), lost
    return best


@pytest.mark.parametrize("values", [heavy(1, 3000), heavy(2, 3000).clip(0)])
def test_entropy_is_that_of_plain_loops(values):
    found = made(values, 512)
    assert entropy(found) == pytest.approx(naive_entropy(found.counts.tolist(), found.edges.tolist()))


@pytest.mark.parametrize("values", [heavy(3), heavy(3).clip(0), 2 + np.abs(heavy(3))])
def test_percentile_leaves_the_tails_out(values):
    found = made(values)
    low, high = percentile(found, 99)
    width = (found.high - found.low) / BINS
    assert low == pytest.approx(min(0, np.quantile(values, 0.005)), abs=1.01 * width)
    assert high == pytest.approx(np.quantile(values, 0.995), abs=1.01 * width)
    assert percentile(found, 100) == pytest.approx((found.low, found.high))


def test_an_outlier_spoils_only_what_looks_at_the_ends():
    values = np.random.default_rng(0).normal(size=100_000).clip(0)
    planted = np.append(values, 300.0)
    errors = {name: error(values, *find(made(planted))) for name, find in RANGES.items()}
    assert errors["percentile"] < errors["minmax"] / 100
    assert errors["entropy"] < errors["minmax"] / 10
    rare = made(planted)
    often = Histogram(rare.low, rare.high, 50 * rare.counts - 49 * (np.arange(BINS) == BINS - 1), 50 * rare.zeros)
    assert error(values, *mse(often)) < errors["minmax"] / 10  # one in millions is given up; in thousands it is not
    assert mse(rare)[1] > 100 > mse(often)[1]


def test_histograms_count_all_that_flows_and_zeros_apart(make_net):
    net = make_net([helper.make_node("Relu", ["image"], ["out"])], {}, (2, 100, 50))
    images = torch.randn(5, 2, 100, 50, generator=torch.Generator().manual_seed(0))
    found = histograms(net, ["image", "out"], images, bins=64)
    for name, values in (("image", images), ("out", images.relu())):
        low, high, array = float(values.min()), float(values.max()), values.numpy()
        counts, _ = np.histogram(array[array != 0], 64, (low, high))
        assert (found[name].low, found[name].high) == (low, high)
        assert np.abs(found[name].counts - counts).sum() <= 4  # rounding at the edges of bins
        assert found[name].zeros == (array == 0).sum()
    assert ranges(net, ["out"], images, "minmax")["out"] == (0.0, float(images.max()))
    assert ranges(net, ["out"], images, "percentile")["out"][1] < float(images.max())


def test_of_large_tensors_a_part_is_counted_alike_from_all_places(make_net):
    net = make_net([helper.make_node("Relu", ["image"], ["out"])], {}, (4, 128, 128))
    images = torch.rand(2, 4, 128, 128) + torch.arange(4)[None, :, None, None]
    counts = histograms(net, ["image"], images, bins=4)["image"].counts
    assert 2 * 2**12 < counts.sum() <= 2 * 2**15
    assert counts.min() > 0.95 * counts.max()


@pytest.mark.parametrize("how", RANGES)
def test_a_tensor_that_is_always_zero_has_a_range(how, make_net):
    nodes = [helper.make_node("Sub", ["image", "image"], ["none"]), helper.make_node("Add", ["image", "none"], ["out"])]
    found = ranges(make_net(nodes, {}, (1, 4, 4)), ["none", "out"], torch.rand(3, 1, 4, 4), how)
    assert found["none"] == (0.0, 0.0)
    assert found["out"][1] > 0.9


@pytest.mark.parametrize("how", RANGES)
def test_what_is_infinite_is_named(how, make_net):
    """As what a mask of attention is."""
    mask = np.zeros((4, 4), np.float32)
    mask[0, 3] = -np.inf
    nodes = [helper.make_node("Add", ["image", "mask"], ["masked"]), helper.make_node("Softmax", ["masked"], ["out"])]
    with pytest.raises(InputError, match=r"quantize\.mode: static: masked is infinite or NaN"):
        ranges(make_net(nodes, {"mask": mask}, (1, 4, 4)), ["masked", "out"], torch.rand(3, 1, 4, 4), how)
