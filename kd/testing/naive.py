"""Loops over Python floats, for references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

Plane = list[list[float]]  # [row][column]
Image = list[Plane]  # [channel][row][column]


def naive_log_softmax(row: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Log-softmax of one row, in Python floats."""
    top = max(row)
    total = sum(math.exp((value - top) / temperature) for value in row)
    return [(value - top) / temperature - math.log(total) for value in row]


def naive_targets(y: Tensor, classes: int) -> list[list[float]]:
    """Hard or soft labels as rows of probabilities."""
    if y.dim() == 2:
        return y.tolist()
    return [[float(c == label) for c in range(classes)] for label in y.tolist()]


def naive_mse(ours: Any, theirs: Any) -> float:
    """Mean squared difference of two nested lists of numbers."""
    if not isinstance(ours, list):
        return (ours - theirs) ** 2
    return sum(naive_mse(a, b) for a, b in zip(ours, theirs, strict=True)) / len(ours)


def naive_pool(plane: Plane, size: Sequence[int]) -> Plane:
    """Adaptive average pooling of one plane to (height, width)."""

    def cells(length: int, count: int) -> list[range]:
        return [range(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]

    rows, columns = cells(len(plane), size[0]), cells(len(plane[0]), size[1])
    return [[sum(plane[y][x] for y in r for x in c) / len(r) / len(c) for c in columns] for r in rows]


def naive_pooled(images: Sequence[Image], size: Sequence[int]) -> list[Image]:
    """`naive_pool` of every channel of every image."""
    return [[naive_pool(plane, size) for plane in image] for image in images]


def naive_convolution(layer: nn.Conv2d, image: Image) -> Image:
    """One image through a convolution that keeps its size."""
    weight, rows, columns = layer.weight.tolist(), range(len(image[0])), range(len(image[0][0]))
    bias = [0.0] * len(weight) if layer.bias is None else layer.bias.tolist()
    reach = layer.kernel_size[0] // 2
    result = [[[value for _ in columns] for _ in rows] for value in bias]
    for b, kernels in enumerate(weight):
        for a, kernel in enumerate(kernels):
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    for y in rows:
                        for x in columns:
                            if y + i in rows and x + j in columns:
                                result[b][y][x] += kernel[i + reach][j + reach] * image[a][y + i][x + j]
    return result


def naive_norm(layer: nn.BatchNorm2d, images: Sequence[Image]) -> list[Image]:
    """Images through a BatchNorm in training: by the statistics of the batch."""
    result: list[Image] = [[] for _ in images]
    for channel, (scale, shift) in enumerate(zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)):
        values = [value for image in images for row in image[channel] for value in row]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + layer.eps)
        for image, new in zip(images, result, strict=True):
            new.append([[scale * (x - mean) / deviation + shift for x in row] for row in image[channel]])
    return result


def naive_connector(connector: nn.Sequential, images: Sequence[Image]) -> list[Image]:
    """Images through a convolution and its BatchNorm."""
    convolution, norm = connector
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return naive_norm(norm, [naive_convolution(convolution, image) for image in images])
