"""Loops over Python floats, for references."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    """One image through a convolution with a square kernel."""
    weight, height, width = layer.weight.tolist(), len(image[0]), len(image[0][0])
    bias = [0.0] * len(weight) if layer.bias is None else layer.bias.tolist()
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    rows, columns = (range((length + 2 * padding - kernel) // stride + 1) for length in (height, width))
    result = [[[value for _ in columns] for _ in rows] for value in bias]
    for b, kernels in enumerate(weight):
        first = b // (len(weight) // layer.groups) * len(kernels)  # of the channels that its group sees
        for source, taps in zip(image[first:], kernels, strict=False):
            for i in range(kernel):
                for j in range(kernel):
                    for r in rows:
                        for c in columns:
                            y, x = stride * r - padding + i, stride * c - padding + j
                            if 0 <= y < height and 0 <= x < width:
                                result[b][r][c] += taps[i][j] * source[y][x]
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


def naive_net(layers: Iterable[nn.Module], images: Sequence[Image]) -> list[Image]:
    """Images through convolutions, BatchNorms in training and ReLUs, one after the other."""
    images = list(images)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            images = [naive_convolution(layer, image) for image in images]
        elif isinstance(layer, nn.BatchNorm2d):
            images = naive_norm(layer, images)
        else:
            assert isinstance(layer, nn.ReLU)
            images = [[[[max(x, 0.0) for x in row] for row in plane] for plane in image] for image in images]
    return images
