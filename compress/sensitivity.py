"""Sensitivity: what a net loses on validation when channels of one group alone are silenced, and a ranking by it.

Li et al., Pruning Filters for Efficient ConvNets, 2017, section 3.2, measure layers so, one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

import students
from compress.channels import Group, silenced
from compress.stage import Context
from kd.batch import View
from kd.errors import InputError
from kd.evaluate import evaluate

Orders = Mapping[Group, Sequence[int]]
"""For each group its channels, the least important first."""

_BATCH = 256
WORST = 1e6  # nats: of answers that are not finite


@dataclass(frozen=True)
class Drop:
    """What became worse on validation: points of accuracy lost, nats of negative log-likelihood gained."""

    top1: float
    nll: float


Curves = Mapping[str, Mapping[float, Drop]]
"""By the name of a group and the share of its channels that is silenced."""


def sensitivity(
    model: students.Classifier,
    orders: Orders,
    context: Context,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
    images: int = 512,
) -> dict[str, dict[float, Drop]]:
    """The drops where those shares of each group are silenced, the least important channels, all others left alone.

    They are measured on `images` validation images, drawn by the context's seed, or on all there are.
    Raises InputError for a share that is none.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise InputError("sensitivity.shares", share, "must be above 0, and 1 or below")
    views = validation(context, images, model.mean.device)
    whole = evaluate(model, views)

    def drop(group: Group, count: int) -> Drop:
        net = silenced(model.net, {group: orders[group][:count]})
        found = evaluate(students.Classifier(net, model.blueprint).to(model.mean.device), views)
        return Drop(whole.top1 - found.top1, found.nll - whole.nll)

    curves: dict[str, dict[float, Drop]] = {}
    for group, order in orders.items():
        counts = {share: _count(share, len(order)) for share in shares}
        drops = {count: drop(group, count) for count in set(counts.values())}
        curves[group.name] = {share: drops[count] for share, count in counts.items()}
    return curves


def ranked(curves: Curves, orders: Orders, costs: Mapping[Group, float] | None = None) -> list[tuple[Group, int]]:
    """All channels, the least harmful ones first, those of a group in their order.

    The harm of a channel is the rise of the likelihood's curve there, made convex: so whatever number goes, all groups
    have come to the same loss a channel, or a unit of cost where `costs` says what a channel of each group costs.
    """
    entries = []
    for place, (group, order) in enumerate(orders.items()):
        cost = 1.0 if costs is None else costs[group]
        for rank, harm in enumerate(_harms(curves[group.name], len(order))):
            # where harms are equal, as where nothing is lost, groups are to shrink alike
            entries.append((harm / cost, rank / len(order), place, rank))
    groups = list(orders)
    return [(groups[place], orders[groups[place]][rank]) for _, _, place, rank in sorted(entries)]


def _harms(curve: Mapping[float, Drop], channels: int) -> list[float]:
    """(channels,) nats that the first, second, ... channel costs, never falling: slopes of the greatest convex curve
    below the measured one. The last slope goes on where nothing was measured."""
    # this order of min and max takes what is not a number for the worst
    losses = {_count(share, channels): max(0.0, min(WORST, drop.nll)) for share, drop in curve.items()}
    blocks: list[tuple[int, float]] = []  # channels and what they cost together
    for (few, low), (many, high) in pairwise(sorted({0: 0.0, **losses}.items())):
        width, rise = many - few, high - low
        while blocks and blocks[-1][1] / blocks[-1][0] > rise / width:
            before = blocks.pop()
            width, rise = width + before[0], rise + before[1]
        blocks.append((width, rise))
    harms = [rise / width for width, rise in blocks for _ in range(width)]
    return harms + harms[-1:] * (channels - len(harms))


def _count(share: float, channels: int) -> int:
    return max(1, round(share * channels))


def validation(context: Context, images: int, device: torch.device) -> list[View]:
    split = context.data.val
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(context.seed))[:images]
    batches = order.split(_BATCH)
    pixels = split.read(batches)
    return [
        View(found.float().to(device) / 255, split.labels[index], index, -1)
        for index, found in zip(batches, pixels, strict=True)
    ]
