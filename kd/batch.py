"""The tuples that flow through the engine: plain NamedTuples, so that they cross collectives and `torch.compile`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor


class View(NamedTuple):
    """One augmented look at some samples.

    Attributes:
        x: (N, C, H, W) float images in [0, 1]; every model normalises for itself.
        y: (N,) integer labels, or (N, classes) probabilities under mixup and CutMix.
        index: (N,) positions in the training set.
        draw: which augmentation was drawn. The pixels of sample i are a pure function of (seed, draw, i).
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # rather the field's name than tuple.index
    draw: int


class Clock(NamedTuple):
    """Where training stands: optimiser steps and epochs done, and of how many."""

    step: int
    steps: int
    epoch: int
    epochs: int


class Batch(NamedTuple):
    """The views of one batch (as many as the regime demands) and the clock."""

    views: tuple[View, ...]
    clock: Clock

    @property
    def x(self) -> Tensor:
        return self.views[0].x

    @property
    def y(self) -> Tensor:
        return self.views[0].y

    @property
    def index(self) -> Tensor:  # type: ignore[override]
        return self.views[0].index


class Outputs(NamedTuple):
    """What a model says about one view.

    Attributes:
        logits: (N, classes).
        embedding: (N, D) input of the classifier, where a loss needs it.
        stages: one (N, C, H, W) map a stage, first to last, where a loss needs any; tokens come as maps.
        extra: whatever else a teacher or regime hands on, by name.
        before: those maps before their last activation, where a loss needs them.
        others: the same about the further views of the batch.
    """

    logits: Tensor
    embedding: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    extra: dict[str, Tensor] = {}  # noqa: RUF012 - never written to
    before: tuple[Tensor, ...] = ()
    others: tuple[Outputs, ...] = ()


class Step(NamedTuple):
    """The outcome of one forward pass of a regime: the loss to descend, its named unweighted parts, the logits."""

    loss: Tensor
    parts: dict[str, Tensor]
    logits: Tensor


@dataclass(frozen=True)
class Needs:
    """What a loss reads of a model.

    Attributes:
        embedding: the pooled embedding.
        stages: indices of the stage maps that are read, negative ones from the end. All come where any is needed.
        gathered: the loss relates samples to each other, so under several processes it must see the whole batch:
            outputs and batch arrive gathered from all ranks, with gradients.
        hard_labels: the formula has no meaning for soft labels, so mixup and CutMix are refused before training.
        before: stage maps are also read as they are before their last activation.
        views: how many views of a sample are looked at.
        strong: the last of them is strongly augmented.
        classifier: the weight of a linear classifier, (classes, D), is read too, as `extra["classifier"]`.
        final: the map whose average over space is the embedding is read too, as `extra["final"]`, (N, D, H, W).
        scales: the scales of all norms are read too, as `extra["scales"]`, (K,).
    """

    embedding: bool = False
    stages: tuple[int, ...] = ()
    gathered: bool = False
    hard_labels: bool = False
    before: bool = False
    views: int = 1
    strong: bool = False
    classifier: bool = False
    final: bool = False
    scales: bool = False

    @property
    def maps(self) -> bool:
        """Whether any map is read."""
        return bool(self.stages) or self.final

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            self.embedding or other.embedding,
            tuple(dict.fromkeys(self.stages + other.stages)),
            self.gathered or other.gathered,
            self.hard_labels or other.hard_labels,
            self.before or other.before,
            max(self.views, other.views),
            self.strong or other.strong,
            self.classifier or other.classifier,
            self.final or other.final,
            self.scales or other.scales,
        )


class Place(NamedTuple):
    """Where a stage map is found: what a module says at one of its calls.

    Attributes:
        module: its path.
        call: which of its calls in one pass, from 0.
        grid: (H, W) of the map.
        channels_last: whether the module says (N, H, W, C), or (N, tokens, C).
    """

    module: str
    call: int
    grid: tuple[int, int]
    channels_last: bool

    def map(self, output: Tensor) -> Tensor:
        """(N, C, H, W) of what the module said."""
        if output.dim() == 3:
            output = output[:, -math.prod(self.grid) :].unflatten(1, self.grid)
        return output.permute(0, 3, 1, 2) if self.channels_last else output


@dataclass(frozen=True)
class Ports:
    """The shapes that a model offers, known before training.

    Attributes:
        classes: number of logits.
        embedding: D of the (N, D) embedding.
        stages: (C, H, W) of each stage map, first to last.
        norms: weight and bias, (C,) each, of the BatchNorm that each stage map comes from; None where there is none.
        classifier: weight (classes, D) and bias (classes,) of a linear classifier; None where it is another.
        final: (D, H, W) of the map whose average over space is the embedding; None where there is none (class tokens, a
            norm after the pooling). It may come after the last stage: a norm, or a convolution that widens it.
        last: where the last stage map is found; None where timm's protocol tells the stages.
        scales: number of scales of all norms.
    """

    classes: int
    embedding: int
    stages: tuple[tuple[int, int, int], ...]
    norms: tuple[tuple[Tensor, Tensor] | None, ...] = field(default=(), compare=False, repr=False)
    classifier: tuple[Tensor, Tensor] | None = field(default=None, compare=False, repr=False)
    final: tuple[int, int, int] | None = field(default=None, compare=False, repr=False)
    last: Place | None = field(default=None, compare=False, repr=False)
    scales: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True)
class Demands:
    """What a regime asks of the data.

    Attributes:
        views: how many views a batch carries, each with its own draw.
        strong: the last view is strongly augmented.
        hard_labels: labels must be integers, so mixup and CutMix are refused before training.
        order: how an epoch's samples come. "shuffled": each once. "pairs": the second half of a batch are other samples
            of the classes of the first half, one by one. "overlap": the first half of a batch is the second half of the
            batch before. Under several processes these halves are those of each rank.
    """

    views: int = 1
    strong: bool = False
    hard_labels: bool = False
    order: Literal["shuffled", "pairs", "overlap"] = "shuffled"


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before training.

    Attributes:
        classes, names: number and names of the classes.
        channels, image_size: of an image; image_size is (height, width).
        mean, std: of the training split, a value a channel, pixels in [0, 1].
        labels: (size,) integer labels of the training split, by index.
        soft_labels: whether batches carry (N, classes) probabilities (mixup, CutMix).
        batch_size: of the whole batch, over all processes; None where it is not known yet.
    """

    classes: int
    names: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: Tensor = field(repr=False)
    soft_labels: bool = False
    batch_size: int | None = None

    @property
    def size(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, *self.image_size
