"""Ranges of activations, from what flows for some images: minimum and maximum, percentile, entropy, squared error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.quantize.net import Net
from kd.errors import InputError

BINS = 2048
LEVELS = 255  # steps of an unsigned byte
PERCENTILE = 99.99
_SAMPLES = 1 << 14  # values of one tensor and image, at most, that its histogram is made of
_ENDS = 128  # candidates for an end of a range

Range = tuple[float, float]


@dataclass(frozen=True)
class Histogram:
    """Of the values of one tensor.

    Attributes:
        low, high: between which all values and zero lie.
        counts: (bins,) values that are not zero, in equal bins from low to high.
        zeros: values that are zero, as half of those behind a ReLU are: any range holds them exactly.
    """

    low: float
    high: float
    counts: np.ndarray
    zeros: int

    @property
    def edges(self) -> np.ndarray:
        return np.linspace(self.low, self.high, len(self.counts) + 1)


def histograms(net: Net, names: Sequence[str], images: Tensor, bins: int = BINS) -> dict[str, Histogram]:
    """Look twice at all images: for the ends of each tensor, then for what lies between them."""
    found = ends(net, names, images)
    counts = {name: torch.zeros(bins) for name in names}
    zeros = dict.fromkeys(names, 0)
    for arrays in net.flow(names, images):
        for name, array in arrays.items():
            low, high = found[name]
            step = max(1, array[0].numel() // _SAMPLES) | 1  # odd, so that no column of an image is passed over
            values = array.flatten()[::step] if array[0].numel() > _SAMPLES else array.flatten()
            some = values[values != 0]
            zeros[name] += len(values) - len(some)
            if low < high:
                counts[name] += torch.histc(some, bins, low, high)
    return {name: Histogram(*found[name], counts[name].double().numpy(), zeros[name]) for name in names}


def ends(net: Net, names: Sequence[str], images: Tensor) -> dict[str, Range]:
    """The least and the largest value of each tensor, and zero between them.

    Raises InputError (field `quantize.mode`) where a tensor is infinite, as masks of attention may be.
    """
    found = dict.fromkeys(names, (0.0, 0.0))
    for arrays in net.flow(names, images):
        for name, array in arrays.items():
            low, high = (float(end) for end in array.aminmax())
            if not np.isfinite([low, high]).all():
                raise InputError("quantize.mode", "static", f"{name} is infinite or NaN: no integers stand for that")
            found[name] = min(found[name][0], low), max(found[name][1], high)
    return found


def minmax(found: Histogram) -> Range:
    return found.low, found.high


def percentile(found: Histogram, share: float = PERCENTILE) -> Range:
    """What holds the middle `share` percent of all values."""
    edges, counts = found.edges, found.counts.copy()
    counts[min(int(np.searchsorted(edges, 0, "right")) - 1, len(counts) - 1)] += found.zeros
    sums = np.concatenate([[0], counts.cumsum()])
    tail = (100 - share) / 200 * sums[-1]
    low, high = edges[np.searchsorted(sums, tail, "right") - 1], edges[np.searchsorted(sums, sums[-1] - tail, "left")]
    return min(float(low), 0.0), max(float(high), 0.0)


def mse(found: Histogram) -> Range:
    """The range whose rounding and clipping together make the least squared error.

    Values within it are off by a uniform error of one step, a 12th of its square on average; those outside by their
    distance from its end (Banner et al., Post training 4-bit quantization, 2019, eq. 5). Zero is off by nothing.
    """
    middles = (found.edges[:-1] + found.edges[1:]) / 2
    lows, highs = _candidates(found)
    below = np.array([(found.counts * np.clip(low - middles, 0, None) ** 2).sum() for low in lows])
    above = np.array([(found.counts * np.clip(middles - high, 0, None) ** 2).sum() for high in highs])
    sums = np.concatenate([[0], found.counts.cumsum()])
    within = np.interp(highs, found.edges, sums)[None] - np.interp(lows, found.edges, sums)[:, None]
    steps = (highs[None] - lows[:, None]) / LEVELS
    errors = below[:, None] + above[None] + within * steps**2 / 12
    low, high = np.unravel_index(errors.argmin(), errors.shape)
    return float(lows[low]), float(highs[high])


def entropy(found: Histogram) -> Range:
    """The range that loses the least information: its ends at most as far from zero as a threshold.

    The threshold is the one of which the distribution, what is outside put into the outermost bins, differs least, by
    Kullback and Leibler, from itself in as many levels as a byte has (Migacz, 8-bit inference with TensorRT, 2017).
    """
    if not found.counts.any():
        return found.low, found.high
    edges, far = found.edges, max(-found.low, found.high)
    best, least = (found.low, found.high), np.inf
    for threshold in np.linspace(far / _ENDS, far, _ENDS):
        inside = (edges[1:] > -threshold) & (edges[:-1] < threshold)
        first, last = np.flatnonzero(inside)[[0, -1]]
        if last - first < LEVELS:  # no coarser in levels than in bins
            continue
        plain = found.counts[first : last + 1]
        clipped = plain.copy()
        clipped[0] += found.counts[:first].sum()
        clipped[-1] += found.counts[last + 1 :].sum()
        lost = _divergence(clipped, _merged(plain))
        if lost < least:
            best, least = (max(found.low, -threshold), min(found.high, threshold)), lost
    return float(best[0]), float(best[1])


def _candidates(found: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """Ends of ranges that hold zero: (lows,) and (highs,)."""
    shares = np.arange(1, _ENDS + 1) / _ENDS
    return (found.low * shares if found.low else np.zeros(1)), (found.high * shares if found.high else np.zeros(1))


def _merged(counts: np.ndarray) -> np.ndarray:
    """As many counts, those of a level spread alike over its bins that are not empty."""
    level = np.arange(len(counts)) * (LEVELS + 1) // len(counts)
    there = counts > 0
    sums, bins = np.bincount(level, counts), np.bincount(level, there)
    return np.where(there, (sums / np.maximum(bins, 1))[level], 0)


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Kullback's and Leibler's, of two histograms, in nats; a bin that q lacks counts as if it held a little."""
    if not p.sum() or not q.sum():
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    there = p > 0
    return float((p[there] * np.log(p[there] / np.maximum(q[there], 1e-9))).sum())


RANGES: dict[str, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def ranges(net: Net, names: Sequence[str], images: Tensor, how: str) -> dict[str, Range]:
    """A range for each tensor by one of RANGES."""
    if how == "minmax":  # needs one look only
        return ends(net, names, images)
    return {name: RANGES[how](found) for name, found in histograms(net, names, images).items()}
