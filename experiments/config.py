"""The sections that several commands share. A recipe is the YAML of one command's configuration."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

import search
from compress import Stage
from kd.data import Data
from kd.errors import InputError
from kd.fit import Fit
from kd.loss import Loss, Objective, Term
from kd.losses import CrossEntropy
from search import Range, Space
from students import Blueprint

Normalize = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class TeacherConfig:
    """The large model. Without a source it is trained here.

    Attributes:
        source: a timm or torchvision name (pretrained), a .safetensors or weights-only checkpoint, a model folder or a
            run folder. A list of several makes an ensemble. Nothing: train `architecture` on the data.
        weighting: of an ensemble: the "mean" of its logits, or by each teacher's "confidence" in the label.
        architecture: the net that is trained here, or whose weights a bare file holds.
        normalize: mean and standard deviation a channel, which a bare file does not tell; None: those of the data.
        image_size: the resolution at which a source works, where it is not its own.
        width, depth: scale of the architecture that is trained here.
        fit: how it is trained here.
    """

    source: tuple[str, ...] | str | None = None
    weighting: Literal["mean", "confidence"] = "mean"
    architecture: str | None = None
    normalize: Normalize | None = None
    image_size: int | None = None
    width: float = 1.0
    depth: float = 1.0
    fit: Fit = Fit()

    def __post_init__(self) -> None:
        if not isinstance(self.source, tuple) and self.weighting != "mean":
            raise InputError("teacher.weighting", self.weighting, "is for a list of sources")

    @property
    def sources(self) -> tuple[str, ...]:
        """None, one or several."""
        return self.source if isinstance(self.source, tuple) else (self.source,) * (self.source is not None)


@dataclass(frozen=True)
class StudentConfig:
    """The small model.

    Attributes:
        name: a timm name, one of the CIFAR zoo (cifar_resnet20, ...) or of torchvision (tv_mobilenet_v3_small, ...).
        width, depth: scale of its channels and of the blocks of its stages.
    """

    name: str = "cifar_resnet20"
    width: float = 1.0
    depth: float = 1.0


KINDS = {"uniform": search.uniform, "stages": search.per_stage, "compound": search.compound}


@dataclass(frozen=True)
class SpaceConfig:
    """What a search chooses from.

    Attributes:
        name: family of the students, or several to choose from.
        kind: "uniform" (a width and a depth), "stages" (one of each for every stage), "compound" (one factor on both),
            or the import path of a function
            (base: Blueprint) -> search.Space, which may choose anything else, such as losses and stages.
        width, depth: ranges of the factors, lowest and highest; "compound" takes that of the width.
        step: of the factors; None: continuous.
        image_sizes: resolutions to choose from; none: that of the data.
        stages: what is done to each candidate before it is judged, by import path.
        inherit: where candidates have their first weights from: "teacher", or the folder of a larger model of the
            family; None: random ones.
    """

    name: tuple[str, ...] | str = "cifar_resnet20"
    kind: str = "uniform"
    width: Range = (0.25, 1.0)
    depth: Range = (0.34, 1.0)
    step: float | None = None
    image_sizes: tuple[int, ...] = ()
    stages: list[Stage] = field(default_factory=list)
    inherit: str | None = None

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            low, high = getattr(self, name)
            if not 0 < low <= high < float("inf"):
                raise InputError(
                    f"space.{name}", (low, high), "must be a lowest and a highest factor, above 0, in order"
                )
        if self.step is not None and not self.step > 0:
            raise InputError("space.step", self.step, "must be above 0")
        if not self.name:
            raise InputError("space.name", self.name, "name at least one family")

    def build(self, data: Data) -> Space:
        """The space, whose ends were seen to build. Raises InputError where they do not."""
        names = (self.name,) if isinstance(self.name, str) else self.name
        bases = {name: blueprint(name, 1.0, 1.0, data) for name in names}
        spaces = {name: self._of(base) for name, base in bases.items()}
        space = search.any_of(spaces) if len(spaces) > 1 else spaces[names[0]]
        if self.image_sizes:
            space = search.at(space, self.image_sizes)
        return search.compressed(space, lambda trial: self.stages) if self.stages else space

    def _of(self, base: Blueprint) -> Space:
        if self.kind not in KINDS:
            return _imported(self.kind)(base)
        for wide, deep in zip(self.width, self.width if self.kind == "compound" else self.depth, strict=True):
            replace(base, width=wide, depth=deep).build("meta")
        ranges = {"factor": self.width} if self.kind == "compound" else {"width": self.width, "depth": self.depth}
        return KINDS[self.kind](base, step=self.step, **ranges)


def _imported(path: str) -> Callable[[Blueprint], Space]:
    """Raises InputError where there is nothing to call at this import path."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            "space.kind", path, f"is none of {', '.join(KINDS)}, nor can it be imported: {error}"
        ) from error
    return found


@dataclass(frozen=True)
class ObjectiveConfig:
    """How the loss is weighed against the labels.

    Attributes:
        weight: of the distillation loss.
        warmup: epochs over which that weight rises to its full value.
        hard: weight of cross-entropy with the labels; 0 leaves it out.
        smoothing: label smoothing of that cross-entropy.
        terms: further losses by name, each with its weight and warm-up.
    """

    weight: float = 0.9
    warmup: int = 0
    hard: float = 0.1
    smoothing: float = 0.0
    terms: dict[str, Term] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("weight", "warmup", "hard"):
            if getattr(self, name) < 0:
                raise InputError(f"objective.{name}", getattr(self, name), "must be 0 or above")

    def build(self, loss: Loss) -> Callable[[], Objective]:
        """A function that makes a fresh objective (losses are bound to one pair of models)."""
        terms = {type(loss).__name__: Term(loss, self.weight, self.warmup), **self.terms}
        if self.hard:
            terms["CrossEntropy"] = Term(CrossEntropy(self.smoothing), self.hard)
        return lambda: Objective.fresh(terms)


def blueprint(name: str, width: float, depth: float, data: Data) -> Blueprint:
    """The net for this data: its classes, its channels and size, normalised by its statistics."""
    facts = data.facts
    height, breadth = facts.image_size
    if height != breadth:
        raise InputError("data.image_size", f"{height}x{breadth}", "images must be square: set data.image_size")
    return Blueprint(
        name,
        num_classes=facts.classes,
        in_chans=facts.channels,
        image_size=height,
        width=width,
        depth=depth,
        normalize=(facts.mean, facts.std),
    )


def seeded(fit: Fit, seed: int) -> Fit:
    """`fit` under the run's seed; torch is seeded too, for the weights that are about to be drawn."""
    torch.manual_seed(seed)
    return replace(fit, seed=seed)
