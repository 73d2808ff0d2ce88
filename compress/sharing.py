"""Shared weights: a layer whose weights take few values, which stay equal through any training, taps included.

Like `compress.masks`, a parametrisation while a model trains, and plain weights in an artefact.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compress import masks

MOST = 256  # values of a layer that count as shared: what eight bits tell apart


class Shared(nn.Module):
    """A weight made of few values: the parameter below it are those, (k,), none of them 0.

    The gradient of a value is the mean of those of its weights (Han et al., Deep Compression, 2016, section 3.3, sum
    them): so all of them together move as the projection of a step of each, and learning rates mean what they mean
    elsewhere.

    Args:
        index: shaped like the weight, int32: 0 for weights that are 0, i for the i-th value.
    """

    index: Tensor
    share: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.register_buffer("share", 1 / index.flatten().bincount()[1:].clamp(min=1), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        scaled = values * self.share.to(values.dtype)
        values = values.detach() + (scaled - scaled.detach())
        table = torch.cat([values.new_zeros(1), values])
        return table.index_select(0, self.index.flatten()).view(self.index.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The (k,) values of a weight."""
        values = weight.new_empty(len(self.share) + 1)
        values[self.index.flatten().long()] = weight.flatten()
        return values[1:].clone()


def shared(weight: Tensor) -> Tensor | None:
    """The index of `Shared` for a weight that takes few values but 0, some of them more than once; None for others."""
    flat = weight.detach().flatten()
    there = flat != 0
    if len(flat[there][: 8 * MOST].unique()) > MOST:  # most are told by a few of them
        return None
    values, numbers = flat[there].unique(return_inverse=True)
    if not 0 < len(values) < min(MOST + 1, len(numbers)):
        return None
    index = torch.zeros_like(flat, dtype=torch.int32)
    index[there] = (numbers + 1).to(torch.int32)
    return index.view(weight.shape)


def hold(net: nn.Module) -> None:
    """Keep weights equal that are equal now, and those at 0 that are 0, in layers whose weights are shared; until
    `compress.masks.bake`."""
    for layer in masks.layers(net).values():
        if (index := shared(layer.weight)) is not None:
            parametrize.register_parametrization(layer, "weight", Shared(index))
