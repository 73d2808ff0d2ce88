from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans

from compress.kmeans import Line, lloyd, start


def numbers(count: int = 3000, seed: int = 0) -> np.ndarray:
    """What pruning leaves of normal weights: none near zero."""
    drawn = np.random.default_rng(seed).standard_normal(3 * count).astype(np.float32)
    return drawn[np.abs(drawn) > 0.9][:count]


def naive(values, centres, weights=None, price=0.0, steps=100):
    """Lloyd's algorithm as it reads, in float64: (centres, labels, error, bits); empty clusters vanish."""
    values, centres = values.astype(np.float64), list(map(float, centres))
    weights = np.ones(len(values)) if weights is None else weights.astype(np.float64)
    lengths = [0.0] * len(centres)
    for _ in range(steps):
        costs = [(values - c) ** 2 + price * bits for c, bits in zip(centres, lengths, strict=True)]
        labels = np.argmin(costs, axis=0)
        live = [k for k in range(len(centres)) if (labels == k).any()]
        centres = [np.average(values[labels == k], weights=weights[labels == k]) for k in live]
        lengths = [-np.log2((labels == k).mean()) for k in live]
    costs = [(values - c) ** 2 + price * bits for c, bits in zip(centres, lengths, strict=True)]
    labels = np.argmin(costs, axis=0)
    error = sum(w * (v - centres[k]) ** 2 for v, k, w in zip(values, labels, weights, strict=True))
    counts = np.bincount(labels)
    return np.array(centres), labels, error, sum(-n * np.log2(n / len(values)) for n in counts if n)


@pytest.mark.parametrize("how", ["linear", "density", "random"])
@pytest.mark.parametrize("clusters", [4, 16, 64])
def test_no_worse_than_scikit_learn_from_the_same_start(how, clusters):
    values = numbers()
    line = Line.of(values)
    first = start(line, clusters, how)
    found = lloyd(line, first)
    theirs = KMeans(clusters, init=first[:, None], n_init=1, max_iter=500, tol=0).fit(values[:, None].astype(float))
    assert len(found.centres) == clusters
    assert found.error < 1.005 * theirs.inertia_
    error = np.square(values.astype(float) - found.centres[found.labels(values)]).sum()
    assert found.error == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("weighed", [False, True])
def test_as_lloyds_algorithm_written_out(weighed):
    values = numbers(400)
    weights = np.random.default_rng(1).random(400).astype(np.float32) if weighed else None
    line = Line.of(values, weights)
    first = start(line, 8, "density")
    centres, labels, error, bits = naive(values, first, weights, steps=500)
    found = lloyd(line, first)
    assert np.allclose(found.centres, centres)
    assert (found.labels(values) == labels).all()
    assert (found.counts == np.bincount(labels)).all()
    assert found.error == pytest.approx(error)
    assert found.bits == pytest.approx(bits)


def test_at_a_price_as_written_out_and_dearer_bits_leave_fewer_of_them():
    values = numbers(400)
    line = Line.of(values)
    before = lloyd(line, start(line, 16, "linear"))
    for price in (1e-3, 1e-2, 1e-1):
        _, _, error, bits = naive(values, start(line, 16, "linear"), price=price, steps=500)
        found = lloyd(line, start(line, 16, "linear"), price)
        assert found.error + price * found.bits == pytest.approx(error + price * bits, rel=0.01)
        assert found.bits < before.bits
        before = found
    one = lloyd(line, start(line, 16, "linear"), 1e6)
    assert len(one.centres) == 1
    assert one.centres[0] == pytest.approx(values.mean(dtype=float))
    assert one.bits == 0


def test_a_price_finds_what_an_ideal_code_tells_in_fewer_bits():
    """Of exponential tails: by as many clusters of equal width as lose no more, which is near the best there is."""
    values = np.random.default_rng(0).exponential(size=20000).astype(np.float32)
    line = Line.of(values)
    plain = lloyd(line, start(line, 8, "density"))
    found = [lloyd(line, start(line, 256, "linear"), price) for price in np.logspace(-3, 0, 60)]
    assert min(each.bits for each in found if each.error <= plain.error) < 0.93 * plain.bits


def test_an_outlier_does_not_use_up_the_clusters():
    values = np.append(numbers(), np.float32(1e4))
    line = Line.of(values)
    found = lloyd(line, start(line, 16, "linear"))
    assert len(found.centres) == 16
    assert found.centres[-1] == 1e4
    assert found.error < 2 * lloyd(Line.of(values[:-1]), start(Line.of(values[:-1]), 15, "density")).error


def test_few_distinct_values_are_their_own_centres():
    values = np.repeat(np.float32([-2, 0.5, 3]), [5, 1, 4])
    found = lloyd(Line.of(values), start(Line.of(values), 16, "linear"))
    assert found.centres.tolist() == [-2, 0.5, 3]
    assert found.counts.tolist() == [5, 1, 4]
    assert found.error == 0
    assert lloyd(Line.of(values[:1]), start(Line.of(values[:1]), 4, "linear")).centres.tolist() == [-2]


def test_starts():
    line = Line.of(np.float32([0, 1, 2, 3, 10]))
    assert start(line, 3, "linear").tolist() == [0, 5, 10]
    assert start(line, 5, "density").tolist() == [0, 1, 2, 3, 10]
    assert set(start(line, 3, "random", seed=1)) < {0, 1, 2, 3, 10}
    assert start(line, 3, "random", seed=1).tolist() == start(line, 3, "random", seed=1).tolist()


def test_values_that_weigh_nothing_do_not_move_centres():
    values, weights = np.float32([0, 1, 5, 6]), np.float32([1, 0, 0, 1])
    found = lloyd(Line.of(values, weights), np.array([0.0, 6.0]))
    assert found.centres.tolist() == [0, 6]
    assert found.error == 0
    assert lloyd(Line.of(values, 0 * weights), np.array([0.5, 6.0])).error == 0


def test_labels_of_many_values_are_those_of_a_search():
    values = np.random.default_rng(0).standard_normal((1 << 18) + 5).astype(np.float32)
    for clusters in (4, 256):
        found = lloyd(Line.of(values), start(Line.of(values), clusters, "linear"))
        labels = found.labels(values)
        assert (labels == np.searchsorted(found.borders, values, side="right")).all()
        assert (np.bincount(labels) == found.counts).all()
    assert found.labels(found.borders).tolist() == [*range(1, len(found.centres))]
