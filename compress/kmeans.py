"""k-means of numbers: on sorted values with cumulative sums a step costs a few searches, however many values there are.

Clusters of numbers are intervals, so those of a step are told by the places of their ends, and their sums by two
look-ups each. Steps are Lloyd's own (Least squares quantization in PCM, 1982), none are skipped or sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

Start = Literal["linear", "density", "random"]
Array = Any  # of numpy
_PREFIX = 18  # bits of a float32 that are looked up
_PORTION = 1 << 16  # values whose look-ups stay in the cache
_ENOUGH = 1e-12  # of the range: centres that move less have arrived


@dataclass(frozen=True)
class Line:
    """Numbers in order, and sums over all that come before each.

    Attributes:
        values: (n,) in order.
        mass: (n + 1,) sums of what the values weigh; None: one each.
        moment: (n + 1,) sums of values times what they weigh, in float64.
        energy: the sum of squares, likewise.
    """

    values: Array
    mass: Array | None
    moment: Array
    energy: float

    @classmethod
    def of(cls, values: Array, weights: Array | None = None) -> Self:
        """From (n,) values in any order, n >= 1, and what they weigh (>= 0), if not all alike."""
        if weights is None:
            values = np.sort(values)
            return cls(values, None, _summed(values), float(_products(values, values)))
        order = np.argsort(values, kind="stable")
        values, weights = values[order], weights[order].astype(np.float64)
        return cls(values, _summed(weights), _summed(values * weights), float(_products(values, values, weights)))

    def sums(self, ends: Array) -> tuple[Array, Array]:
        """(k,) masses and moments of the intervals between k + 1 ends."""
        mass = ends if self.mass is None else self.mass[ends]
        return np.diff(mass).astype(np.float64), np.diff(self.moment[ends])


@dataclass(frozen=True)
class Clusters:
    """Where values lie.

    Attributes:
        centres: (k,) in order.
        borders: (k - 1,) between them, in the type of the values: a value on a border belongs above it.
        counts: (k,) values of each, none of them 0.
        error: the weighed sum of squared distances to the centres.
    """

    centres: Array
    borders: Array
    counts: Array
    error: float

    @property
    def bits(self) -> float:
        """The entropy of the numbers of the values' clusters, of all of them together."""
        return float(self.counts @ _lengths(self.counts))

    def labels(self, values: Array) -> Array:
        """(n,) numbers of the clusters of float32 values, in any order."""
        if len(values) < 1 << _PREFIX:
            return np.searchsorted(self.borders, values, side="right")
        # the first bits of most values tell their cluster, and a table is much faster than a search
        rest = 32 - _PREFIX
        least = np.arange(1 << _PREFIX, dtype=np.uint32) << rest
        edges = (least, least | np.uint32((1 << rest) - 1))
        low, high = (np.searchsorted(self.borders, edge.view(np.float32), side="right") for edge in edges)
        table, torn = low.astype(np.uint16), low != high
        found = np.empty(len(values), np.uint16)
        for first in range(0, len(values), _PORTION):
            part = values[first : first + _PORTION]
            prefixes = part.view(np.uint32) >> rest
            there = table[prefixes]
            places = np.flatnonzero(torn[prefixes])
            there[places] = np.searchsorted(self.borders, part[places], side="right")
            found[first : first + _PORTION] = there
        return found


def start(line: Line, clusters: int, how: Start, seed: int = 0) -> Array:
    """(k,) first centres, k at most `clusters` (Han et al., Deep Compression, 2016, section 3.2).

    Args:
        how: "linear": even over the range of the values, which gives the few large ones centres of their own;
            "density": even over their ranks; "random": values that are drawn by the seed.
    """
    first, last, count = line.values[0], line.values[-1], len(line.values)
    if how == "linear":
        return np.unique(np.linspace(float(first), float(last), clusters))
    if how == "density":
        places = ((np.arange(clusters) + 0.5) / clusters * count).astype(np.int64)
    else:
        places = np.random.default_rng(seed % (1 << 63)).choice(count, min(clusters, count), replace=False)
    return np.unique(line.values[places]).astype(np.float64)


def lloyd(line: Line, centres: Array, price: float = 0.0, steps: int = 500) -> Clusters:
    """k-means from these centres, (k,) in order, until they rest or there were so many steps.

    Without a price a centre that has lost its values moves into the cluster of the largest error. With one, what is
    minimised is the error plus `price` times the bits by which an ideal code tells each value's cluster (Chou et al.,
    Entropy-constrained vector quantization, 1989): clusters of few values cost many bits, and vanish. Of weighed values
    the price is that of one of average weight.
    """
    n = len(line.values)
    if price:
        price *= 1.0 if line.mass is None else line.mass[-1] / n
    reach = _ENOUGH * max(float(line.values[-1] - line.values[0]), 1e-300)
    lengths = np.zeros(len(centres))
    for _ in range(steps):
        borders, centres = _borders(centres, lengths, price)
        ends = _ends(line, borders)
        counts = np.diff(ends)
        found = _means(line, ends, centres)
        if not price:
            found = _filled(line, ends, found, counts)
        else:
            found, counts = found[counts > 0], counts[counts > 0]
            lengths = _lengths(counts)
        rests = len(found) == len(centres) and float(np.abs(found - centres).max()) <= reach
        centres = found
        if rests:
            break
    return _settled(line, centres, lengths, price)


def _settled(line: Line, centres: Array, lengths: Array, price: float) -> Clusters:
    """The clusters of these centres, each moved to the mean of its own."""
    borders, centres = _borders(centres, lengths, price)
    ends = _ends(line, borders)
    counts = np.diff(ends)
    centres = _means(line, ends, centres)
    mass, moment = line.sums(ends)
    error = line.energy - float((2 * centres * moment - mass * centres**2).sum())
    live = np.flatnonzero(counts)
    # of the borders around a cluster that is empty only the last one bounds anything
    borders = borders[live[1:] - 1].astype(line.values.dtype)
    return Clusters(centres[live], borders, counts[live], max(error, 0.0))


def _borders(centres: Array, lengths: Array, price: float) -> tuple[Array, Array]:
    """Where two neighbours are worth the same, and the centres that have a place between their borders."""
    while True:
        gaps = np.diff(centres)
        borders = centres[:-1] + gaps / 2
        if not price:
            return borders, centres
        borders = borders + price * np.diff(lengths) / (2 * gaps)
        crossed = np.flatnonzero(np.diff(borders) <= 0) + 1
        if not len(crossed):
            return borders, centres
        lone = crossed[np.diff(crossed, prepend=-1) > 1]  # of neighbours one at a time
        centres, lengths = np.delete(centres, lone), np.delete(lengths, lone)


def _ends(line: Line, borders: Array) -> Array:
    inner = np.searchsorted(line.values, borders.astype(line.values.dtype))
    return np.concatenate([[0], inner, [len(line.values)]])


def _means(line: Line, ends: Array, centres: Array) -> Array:
    """Of the intervals; where nothing weighs anything, the centre that is there."""
    mass, moment = line.sums(ends)
    return np.where(mass > 0, moment / np.where(mass > 0, mass, 1), centres)


def _filled(line: Line, ends: Array, centres: Array, counts: Array) -> Array:
    """The centres, those without values moved into the clusters that are widest for what they weigh."""
    empty = np.flatnonzero(counts == 0)
    if not len(empty):
        return centres
    mass, _ = line.sums(ends)
    width = line.values[np.maximum(ends[1:] - 1, 0)] - line.values[np.minimum(ends[:-1], len(line.values) - 1)]
    worst = np.argsort(-(mass * np.where(counts > 0, width, 0) ** 2), kind="stable")[: len(empty)]
    worst = worst[width[worst] * (counts[worst] > 0) > 0]
    middle = (line.values[ends[worst]].astype(np.float64) + centres[worst]) / 2
    kept = np.delete(centres, empty[: len(worst)])  # the others follow step by step
    return np.unique(np.concatenate([kept, middle]))


def _lengths(counts: Array) -> Array:
    """(k,) bits of an ideal code for a value of each cluster."""
    return -np.log2(counts / counts.sum())


def _products(*arrays: Array) -> Array:
    """The sum of products, in float64, without arrays between."""
    return np.einsum(",".join("i" * len(arrays)) + "->", *arrays, dtype=np.float64)


def _summed(values: Array) -> Array:
    sums = np.zeros(len(values) + 1)
    sums[1:] = values  # to add up in another type than that of the values is ten times slower
    return np.cumsum(sums, out=sums)
