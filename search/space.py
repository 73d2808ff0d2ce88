"""Spaces: functions from an Optuna trial to a candidate. Any function of that kind is a space; some wrap another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from optuna.trial import BaseTrial

from compress import Stage
from kd.loss import Loss, Objective, Term
from kd.losses import CrossEntropy
from students import Blueprint, Factors, stages


@dataclass(frozen=True)
class Candidate:
    """What a search judges.

    Attributes:
        blueprint: the student.
        objective: makes the losses that it learns by; None: those of the search.
        stages: what is done to it before it is judged.
    """

    blueprint: Blueprint
    objective: Callable[[], Objective] | None = None
    stages: tuple[Stage, ...] = ()


Space = Callable[[BaseTrial], Candidate]
Range = tuple[float, float]


def uniform(
    base: Blueprint, *, width: Range = (0.25, 1.0), depth: Range = (0.34, 1.0), step: float | None = None
) -> Space:
    """Students like `base`, width and depth each a factor from a range (lowest, highest), in steps or continuous."""

    def space(trial: BaseTrial) -> Candidate:
        wide = trial.suggest_float("width", *width, step=step)
        return Candidate(replace(base, width=wide, depth=trial.suggest_float("depth", *depth, step=step)))

    return space


def compound(base: Blueprint, *, factor: Range = (0.25, 1.0), step: float | None = None) -> Space:
    """Students like `base`, one factor on width and depth: what a user without a search would try."""

    def space(trial: BaseTrial) -> Candidate:
        both = trial.suggest_float("factor", *factor, step=step)
        return Candidate(replace(base, width=both, depth=both))

    return space


def per_stage(
    base: Blueprint, *, width: Range = (0.25, 1.0), depth: Range = (0.34, 1.0), step: float | None = None
) -> Space:
    """Students like `base`, a width and a depth for each stage of a family that has them (`students.stages`)."""
    counts = dict(zip(("width", "depth"), stages(base.name), strict=True))

    def space(trial: BaseTrial) -> Candidate:
        def factors(axis: str, bounds: Range) -> Factors:
            if counts[axis] == 1:
                return trial.suggest_float(axis, *bounds, step=step)
            return tuple(trial.suggest_float(f"{axis}_{n}", *bounds, step=step) for n in range(1, counts[axis] + 1))

        return Candidate(replace(base, width=factors("width", width), depth=factors("depth", depth)))

    return space


def any_of(spaces: Mapping[str, Space]) -> Space:
    """One of several spaces, by its name: such as a family each."""

    def space(trial: BaseTrial) -> Candidate:
        return spaces[str(trial.suggest_categorical("family", list(spaces)))](trial)

    return space


def at(space: Space, image_sizes: Sequence[int]) -> Space:
    """The students of `space`, each at one of several resolutions, to which it resizes what it sees."""

    def sized(trial: BaseTrial) -> Candidate:
        candidate, size = space(trial), int(trial.suggest_categorical("image_size", list(image_sizes)))
        return replace(candidate, blueprint=replace(candidate.blueprint, image_size=size, resize=True))

    return sized


def distilled(space: Space, losses: Mapping[str, Callable[[BaseTrial], Loss]], weight: Range = (0.1, 1.0)) -> Space:
    """The students of `space`, each with a loss of its own, which is weighed against the labels.

    Args:
        losses: by name, each from the trial, of which it may ask its temperature or whatever else it has.
        weight: range of the loss's share; cross-entropy with the labels has the rest.
    """

    def taught(trial: BaseTrial) -> Candidate:
        candidate = space(trial)
        name = str(trial.suggest_categorical("loss", list(losses)))
        share = trial.suggest_float("weight", *weight)
        losses[name](trial)  # asks all there is to ask now; each objective gets a loss of its own

        def objective() -> Objective:
            labels = Term(CrossEntropy(), 1 - share)
            return Objective({name: Term(losses[name](trial), share)} | ({"labels": labels} if share < 1 else {}))

        return replace(candidate, objective=objective)

    return taught


def compressed(space: Space, by: Callable[[BaseTrial], Sequence[Stage]]) -> Space:
    """The students of `space`, each judged after stages, which may ask the trial for ratios, ranks and bits."""

    def judged(trial: BaseTrial) -> Candidate:
        return replace(space(trial), stages=tuple(by(trial)))

    return judged
