"""From a configuration to `Data`: open the source, divide it, decode it if it is small."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kd.batch import Facts
from kd.data.config import Augment, DataConfig, check, check_crop
from kd.data.counter import Stream
from kd.data.data import Data
from kd.data.images import Images, survey
from kd.data.source import open_source
from kd.data.split import InMemory, Split, Streamed, spread, stratified
from kd.data.table import Source, Table
from kd.errors import InputError

_TEST_FRACTION, _TEST_SEED = 0.25, 0
_MEMORY = 1 << 30  # bytes of pixels that are kept in memory unless the configuration says otherwise
_SAMPLE = 4096  # streamed images that mean and std are computed on


class Part(NamedTuple):
    """Rows of a table, in ascending order."""

    table: Table
    rows: Tensor

    @property
    def labels(self) -> Tensor:
        return self.table.labels[self.rows]

    def where(self, mask: Tensor) -> Part:
        return Part(self.table, self.rows[mask])


def load(config: DataConfig) -> Data:
    """Images are decoded at once, or one by one when they are read. Raises InputError for what a user can mend."""
    check(config)
    source = open_source(config)
    parts = _divide(source, config)
    form = survey(parts, config.image_size)
    augment = config.augment
    if augment is None:
        augment = Augment(crop=min(form.size) // 8, flip=config.source != "digits")
    check_crop(augment, form.size)
    bytes_ = sum(len(part.rows) for part in parts) * form.channels * form.size[0] * form.size[1]
    in_memory = bytes_ <= _MEMORY if config.in_memory is None else config.in_memory
    keep = InMemory if in_memory else Streamed
    train, val, test = (keep(Images(*part, form), config.workers) for part in parts)
    mean, std = _moments(train, torch.arange(len(train)) if in_memory else spread(len(train), _SAMPLE))
    facts = Facts(
        classes=len(source.names),
        names=source.names,
        channels=form.channels,
        image_size=form.size,
        mean=mean,
        std=std,
        labels=train.labels,
        soft_labels=augment.mixes,
    )
    return Data(config, augment, facts, train, val, test, _notes(source, config, parts), source.identity)


def _divide(source: Source, config: DataConfig) -> tuple[Part, Part, Part]:
    """Train, validation and test: stratified, and drawn from seeds only."""
    train = Part(source.train, torch.arange(len(source.train.labels)))
    if source.test is not None:
        test = Part(source.test, torch.arange(len(source.test.labels)))
    else:
        train, test = _hold_out(train, _TEST_FRACTION, _TEST_SEED, Stream.TEST, source.names)
    train, val = _hold_out(train, config.val_fraction, config.seed, Stream.VALIDATION, source.names)
    if config.train_size is not None:
        least, most = len(train.labels.unique()), len(train.rows)
        if not least <= config.train_size <= most:
            allowed = f"must be from {least}, one image a class, to {most}, what the other splits leave"
            raise InputError("data.train_size", config.train_size, allowed)
        train = train.where(stratified(train.labels, config.train_size, config.seed, Stream.SUBSET))
    return train, val, test


def _hold_out(part: Part, fraction: float, seed: int, stream: Stream, names: tuple[str, ...]) -> tuple[Part, Part]:
    """What stays and what is held out."""
    labels = part.labels
    count = max(round(fraction * len(labels)), len(labels.unique()))
    held = stratified(labels, count, seed, stream)
    for label in labels.unique().tolist():
        if held[labels == label].all():
            field = "source" if stream is Stream.TEST else "val_fraction"
            raise InputError(f"data.{field}", fraction, f"leaves no training image of the class {names[label]}")
    return part.where(~held), part.where(held)


def _moments(split: Split, positions: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of pixels in [0, 1]."""
    sums = torch.zeros(3, 1, dtype=torch.float64)  # of pixels, of their squares, of ones
    for pixels in split.read(positions.split(256)):
        x = pixels.transpose(0, 1).flatten(1)
        sums = sums + torch.stack([x.sum(1), x.int().square().sum(1), torch.full((len(x),), x.shape[1])])
    mean = sums[0] / sums[2] / 255
    variance = sums[1] / sums[2] / 255**2 - mean**2
    std = variance.clamp(min=1 / 255**2).sqrt()  # images of one colour must not divide by zero
    return tuple(mean.tolist()), tuple(std.tolist())


def _notes(source: Source, config: DataConfig, parts: tuple[Part, Part, Part]) -> tuple[str, ...]:
    train, _, test = (len(part.rows) for part in parts)
    notes = []
    if source.test is None:
        notes.append(f"the source has no test part: {test} of its images are held out as one, stratified")
    if config.train_size is not None:
        notes.append(f"training uses a stratified subset of {train} images")
    return tuple(notes)
