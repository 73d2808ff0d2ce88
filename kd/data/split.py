"""Stratified splits, and the images of one split: in memory or streamed, and read alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kd.console import progress
from kd.data.counter import permutation
from kd.data.images import Images
from kd.errors import InputError

_CHUNK = 1 << 22  # bytes that one worker hands over at a time while a split is decoded as a whole
_WORTH_WORKERS = 1 << 24  # bytes of pixels below which starting workers takes longer than decoding


class Split(Protocol):
    """Images and labels of train, val or test.

    Attributes:
        labels: (N,) int64.
    """

    labels: Tensor

    def __len__(self) -> int: ...

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """For each tensor of n positions, (n, C, H, W) uint8. Raises InputError that names an unusable image."""


class Streamed:
    """Decodes what is asked for, in `workers` processes."""

    def __init__(self, images: Images, workers: int) -> None:
        self.images, self.workers = images, workers
        self.labels = images.table.labels[images.rows]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        loader = DataLoader(
            self.images,
            batch_sampler=(batch.tolist() for batch in batches),
            num_workers=self.workers,
            collate_fn=_same,
            generator=torch.Generator(),  # else each loader takes a number from the global one
        )
        for pixels in loader:
            if isinstance(pixels, InputError):
                raise pixels
            yield pixels


class InMemory:
    """Decodes everything once."""

    def __init__(self, images: Images, workers: int) -> None:
        self.labels = images.table.labels[images.rows]
        form = images.form
        self.pixels = torch.empty(len(images), form.channels, *form.size, dtype=torch.uint8)
        chunks = torch.arange(len(images)).split(max(1, _CHUNK // self.pixels[0].numel()))
        stream = Streamed(images, workers if self.pixels.numel() > _WORTH_WORKERS else 0)
        with progress("decoding images", len(images)) as advance:
            for chunk, pixels in zip(chunks, stream.read(chunks), strict=True):
                self.pixels[chunk] = pixels
                advance(len(chunk), "")

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            yield self.pixels[batch]


def stratified(labels: Tensor, count: int, *key: int) -> Tensor:
    """(N,) mask of `count` samples drawn by the key: classes in proportion, at least one of each that there is."""
    size = labels.bincount()
    quota = _quota(size, count)
    order = permutation(len(labels), *key)
    grouped = order[labels[order].argsort(stable=True)]
    start = size.cumsum(0) - size
    place = torch.empty_like(order)
    place[grouped] = torch.arange(len(order))
    return place - start[labels] < quota[labels]


def spread(size: int, count: int) -> Tensor:
    """At most `count` positions, evenly over range(size)."""
    return torch.arange(min(size, count)) * size // min(size, count)


def _quota(size: Tensor, count: int) -> Tensor:
    """How many to take of each class: the nearest whole numbers to proportional that add up to `count`."""
    exact = size.double() * count / size.sum()
    quota = torch.minimum(exact.floor().long().clamp(min=1), size)
    while missing := count - int(quota.sum()):
        step = 1 if missing > 0 else -1
        gap = ((exact - quota) * step).masked_fill((quota + step < 1) | (quota + step > size), -torch.inf)
        quota[gap.argmax()] += step
    return quota


def _same(batch: Any) -> Any:
    return batch
