"""Harm: what a net loses on validation when one layer alone is factorised; `compress.sensitivity` for channels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import students
from compress.lowrank.cp import Degenerate
from compress.lowrank.forms import factorise
from compress.lowrank.layers import Layer
from compress.lowrank.ranks import Choice
from compress.sensitivity import WORST, validation
from compress.stage import Context
from kd.evaluate import evaluate

SHARES = (0.75, 0.5, 0.25)  # of the cost of a layer, at which it is tried
_TIE = 1e-6  # nats for all the energy of a layer: of two cuts that were seen to do no harm, the lesser one


def harms(
    model: students.Classifier,
    layers: Sequence[Layer],
    options: Sequence[Sequence[Choice]],
    context: Context,
    images: int = 512,
) -> list[list[float]]:
    """For each choice of each layer, by how many nats the negative log-likelihood rises.

    It is measured at a few choices, on `images` validation images, and between them taken for a function of the energy
    that is lost, linear from one to the next, falling nowhere, whichever the method.
    """
    views = validation(context, images, model.mean.device)
    whole = evaluate(model, views).nll

    def rise(layer: Layer, choice: Choice) -> float:
        made = copy.deepcopy(model)
        factorise(made, layer, choice.method, choice.ranks)
        return min(WORST, evaluate(made, views).nll - whole)

    found = []
    for layer, choices in zip(layers, options, strict=True):
        curve = {0.0: 0.0}
        for choice in _tried(choices):
            try:
                curve[choice.lost] = rise(layer, choice)
            except Degenerate:  # it will not be made either
                continue
        found.append([_at(curve, choice.lost) + _TIE * choice.lost for choice in choices])
    return found


def _tried(choices: Sequence[Choice]) -> list[Choice]:
    """The ones nearest to `SHARES` of what the layer costs as it is."""
    whole, *others = choices
    near = (min(others, key=lambda choice: abs(choice.cost - share * whole.cost)) for share in SHARES if others)
    return list(dict.fromkeys(near))


def _at(curve: dict[float, float], lost: float) -> float:
    """The value at `lost` of the least curve through or above the points that never falls; its last slope goes on."""
    points, highest = [], 0.0
    for place, value in sorted(curve.items()):
        highest = max(highest, value)
        points.append((place, highest))
    slope = 0.0
    for (low, under), (high, over) in pairwise(points):
        slope = (over - under) / (high - low)
        if lost <= high:
            return under + slope * (lost - low)
    return points[-1][1] + slope * (lost - points[-1][0])
