"""Spaces: functions from an Optuna trial to the Blueprint of a candidate. Any function of that kind is a space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import optuna

from students import Blueprint

Space = Callable[[optuna.Trial], Blueprint]
Range = tuple[float, float]


def uniform(base: Blueprint, *, width: Range = (0.25, 1.0), depth: Range = (0.34, 1.0)) -> Space:
    """Students like `base`, width and depth each a factor from a range (lowest, highest)."""

    def space(trial: optuna.Trial) -> Blueprint:
        return replace(base, width=trial.suggest_float("width", *width), depth=trial.suggest_float("depth", *depth))

    return space
