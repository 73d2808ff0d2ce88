"""A method is a short list of phases, each a fit of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kd.data import Data
from kd.fit import Fit, History, fit
from kd.regimes.regime import Regime


@dataclass(frozen=True)
class Phase:
    """What trains in one phase, under a name that tells it from the others, and for how many epochs."""

    name: str
    regime: Regime
    epochs: int


def train(
    phases: Iterable[Phase], data: Data, config: Fit, folder: Path | None = None, label: str = "training"
) -> list[tuple[Regime, History]]:
    """Fit one phase after the other, the last of which ships; each is asked for when those before it have trained.

    Random weights that are drawn for a phase are those of `config.seed`, whatever trained before: so a run that was
    killed between two phases goes on bit for bit, and the students of several methods start alike.

    Args:
        config: of all phases, but for their epochs: warm-up and milestones keep their share of these.
        folder: each phase keeps its own below it, by its name, and resumes from there.
    """
    waiting = iter(phases)
    trained: list[tuple[Regime, History]] = []
    while True:
        torch.manual_seed(config.seed)
        phase = next(waiting, None)
        if phase is None:
            return trained
        share = phase.epochs / config.epochs
        schedule = replace(
            config,
            epochs=phase.epochs,
            warmup_epochs=min(round(config.warmup_epochs * share), phase.epochs - 1),
            milestones=tuple(round(epoch * share) for epoch in config.milestones),
        )
        place = folder / phase.name if folder else None
        trained.append((phase.regime, fit(phase.regime, data, schedule, place, label=f"{label} {phase.name}")))
