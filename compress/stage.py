"""What a stage is: it takes an artefact and a context, and hands back an artefact and a report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from compress.file_model import FileModel
from kd.data import Data
from kd.errors import InputError
from kd.fit import Fit
from kd.loss import Objective
from kd.regimes import Guide

Artefact = nn.Module | FileModel
"""What flows through the stages: a `students.Classifier` until `Export` or its like makes it a file that runs."""


@dataclass(frozen=True)
class Context:
    """What a stage may use beside the model.

    Attributes:
        data: calibration reads its training split, decisions its validation split, nothing its test split.
        teacher: whom recovery learns from (one, an ensemble, stored answers); None: from the reference.
        folder: where the stage may write; it goes on there after a kill.
        fit: how a stage trains, if it does.
        objective: makes a fresh objective for each training.
        seed: of whatever a stage draws.
        reference: the model before the first stage, which targets are relative to; None: the model that comes in.
        calibration: how many training images are shown to a stage that looks at activations or gradients.
        accelerator: of the run, where there is one.
    """

    data: Data
    teacher: Guide | None
    folder: Path
    fit: Fit
    objective: Callable[[], Objective]
    seed: int = 0
    reference: nn.Module | None = None
    calibration: int = 256
    accelerator: Accelerator | None = None

    def images(self) -> Tensor:
        """(n, C, H, W) unaugmented training images in [0, 1], drawn by the seed, n = `calibration` or all there are.

        Raises InputError where that is none.
        """
        return self.labelled()[0]

    def labelled(self) -> tuple[Tensor, Tensor]:
        """`images()` and their (n,) labels."""
        train = self.data.train
        count = min(self.calibration, len(train))
        if count < 1:
            raise InputError("calibration", count, "at least one training image is needed")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
        return torch.cat(list(train.read([order[:count]]))).float() / 255, train.labels[order[:count]]


@dataclass(frozen=True)
class Report:
    """What a stage has to say.

    Attributes:
        name: of the stage.
        notes: sentences that a reader needs, above all where something became worse.
        details: figures for whoever asks, as JSON.
    """

    name: str
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


class Stage(Protocol):
    """A step of compression, as a frozen dataclass whose fields are its settings.

    Recipes name stages by import path, and jsonargparse recognises them by this signature, annotations included.
    """

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]: ...


def check_logits(logits: Tensor, data: Data, model: str) -> None:
    """Raises InputError for what `model` answered unless it is (N, classes), finite and about the data's classes."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        told = f"of {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"with a {type(logits).__name__}"
        raise InputError("model", model, f"answers {told}, where logits of (N, classes) are asked for")
    if logits.shape[1] != data.facts.classes:
        raise InputError("model", model, f"knows {logits.shape[1]} classes, the data has {data.facts.classes}")
    if not logits.isfinite().all():
        raise InputError("model", model, "gives NaN or infinite logits")
