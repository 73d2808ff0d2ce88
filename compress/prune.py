"""`Prune`: a narrower net, by leaving out the channels that matter least."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

import students
from compress import channels, masks
from compress.channels import Group, Removal
from compress.importance import IMPORTANCES, Reduction
from compress.reparameterize import plain
from compress.sensitivity import ranked, sensitivity
from compress.sparsify import Schedule, learnt
from compress.stage import Artefact, Context, Report
from compress.target import KINDS, TOLERANCE, By, Runtime, check
from compress.traced import Traced, readers, taken_out
from kd.errors import InputError
from students.edits import fill

Scope = Literal["global", "layer", "sensitivity"]


@dataclass(frozen=True)
class Prune:
    """Take out channels until a share of the cost is left.

    What is sliced is what would have been silenced: groups of channels where that does not hold are left whole.

    Attributes:
        target: the share of the reference's cost that is kept, met within 3 points where the net allows.
        by: which cost; "latency" is measured, for one image and one thread.
        runtime: on which latency is measured; onnxruntime runs the file that the net would become.
        importance: of a channel, see `compress.importance`.
        reduction: how what several layers say of a channel is put together.
        scope: which channels go first. "global": of all channels the least important ones, where importances are 1 on
            average within each group. "layer": every group loses the same share. "sensitivity": groups lose what does
            the least harm on validation, see `compress.sensitivity`.
        min_channels: how many each group keeps at least.
        round_to: layers keep a multiple of this many channels, or all: 8 is what runtimes compute at once.
        schedule: "oneshot": without training; in rounds with `Recover` between them, by `Repeat`. The others train as
            `Recover` does, from the teacher or else the reference, while channels are masked, by a cubic, over three
            quarters of the steps. "gradual": masked channels learn no more (Zhu and Gupta 2017). "dynamic": they learn
            too, and may come back until the end (Lin et al. 2020).
        epochs, lr: of that training; lr None: that of the context's fit.
        every: optimiser steps from one choice of channels to the next.
    """

    target: float = 0.5
    by: By = "macs"
    importance: str = "l2"
    reduction: Reduction = "sum"
    scope: Scope = "global"
    min_channels: int = 2
    round_to: int = 8
    runtime: Runtime = "onnxruntime"
    schedule: Schedule = "oneshot"
    epochs: int = 5
    lr: float | None = None
    every: int = 16

    def __post_init__(self) -> None:
        check("prune", self.target, self.by, self.runtime)
        choices = {"importance": IMPORTANCES, "reduction": get_args(Reduction), "scope": get_args(Scope)}
        choices |= {"schedule": get_args(Schedule)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"prune.{name}", getattr(self, name), f"must be one of {', '.join(known)}")
        for name in ("min_channels", "round_to", "epochs", "every"):
            if getattr(self, name) < 1:
                raise InputError(f"prune.{name}", getattr(self, name), "must be 1 or more")
        if self.lr is not None and not self.lr > 0:
            raise InputError("prune.lr", self.lr, "must be above 0")
        for name, slow in (("by", "latency"), ("scope", "sensitivity")):
            if self.schedule != "oneshot" and getattr(self, name) == slow:
                raise InputError(f"prune.{name}", slow, f"takes too long to be measured over and over, {self.schedule}")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError for a model that is a file already."""
        if not isinstance(model, students.Classifier):
            raise InputError("stages", "prune", "must come before export: a file has no channels to take out")
        reference = context.reference or model
        model, standardised = plain(model)
        traced = Traced(model, context.seed)
        trained: dict[str, Any] = {}
        if self.schedule == "oneshot":
            removal = self.removal(traced, reference, context)
        else:
            model, trained = self._trained(traced, reference, replace(context, reference=reference))
            silent = traced.of(model).silent()
            removal = {group: silent[group] for group in channels.sound(model.net, traced.x, silent)}
        made = taken_out(model, removal)
        kept = {by: traced.share(by, reference, self.runtime)(removal) for by in dict.fromkeys((*KINDS, self.by))}
        whole = [group.name for group in traced.channels.groups if group not in traced.able]
        widths = {group.name: group.channels - len(gone) for group, gone in removal.items()}
        details = {f"kept_{by}": share for by, share in kept.items()} | {"groups": len(traced.channels.groups)}
        details |= trained
        notes = self._notes(kept[self.by], whole, changed=bool(removal))
        if standardised:
            told = f"{len(standardised)} weight-standardised convolutions became plain ones, which answer alike"
            notes += (f"{told}: a standardised weight depends on every channel.",)
        return made.eval(), Report("prune", notes, details | {"whole": whole, "widths": widths})

    def _trained(
        self, traced: Traced, reference: nn.Module, context: Context
    ) -> tuple[students.Classifier, dict[str, Any]]:
        """The model with channels masked as it learns, their weights zero in the end."""
        made = copy.deepcopy(traced.model)
        net, layers = made.net, masks.layers(made.net)
        read = {axis.path for group in traced.able for axis in readers(group, layers)}
        layers = {path: layer for path, layer in layers.items() if f"{path}.weight" in read}

        def choose(_: masks.Tensors, gone: float) -> dict[str, Tensor]:
            now = traced.of(copy.deepcopy(traced.model))
            fill(now.model.net, masks.below(net))
            ranking = self.ranking(now, context) if gone else []
            return now.masks(self._nearest(now, reference, ranking, 1 - gone), layers)

        made, curve, _ = learnt(self, made, layers, choose, (0.0, 1 - self.target), context)
        return made, {"curve": curve}

    def removal(self, traced: Traced, reference: nn.Module, context: Context) -> Removal:
        """What goes, so that the cost comes nearest to the target."""
        ranking = self.ranking(traced, context)
        while True:
            removal = self._nearest(
                traced, reference, [pair for pair in ranking if pair[0] in traced.able], self.target
            )
            right = channels.sound(traced.model.net, traced.x, removal)
            if len(right) == len(removal):
                return removal
            traced.able = [group for group in traced.able if group not in removal or group in right]

    def ranking(self, traced: Traced, context: Context) -> list[tuple[Group, int]]:
        """All channels that can go, in the order in which they go."""
        judge = IMPORTANCES[self.importance]
        values = judge.entries(traced.model, context)
        scores: dict[Group, Tensor] = {}
        for group in traced.able:
            rows = group.rows(values)
            found = judge.channels(rows, self.reduction) if rows else torch.ones(group.channels)
            mean = 1.0 if judge.compares else float(found.mean())
            # a fresh net's mute branches say nothing of their channels
            scores[group] = found / mean if mean > 0 else torch.ones(group.channels)
        orders = {group: found.argsort(stable=True).tolist() for group, found in scores.items()}
        if self.scope == "sensitivity":
            by = "params" if self.by == "params" else "macs"
            whole = traced.channels.cost(by, {})
            costs = {group: float(max(1, whole - traced.channels.cost(by, {group: [0]}))) for group in orders}
            return ranked(sensitivity(traced.model, orders, context), orders, costs)
        entries = []
        for place, (group, order) in enumerate(orders.items()):
            for rank, channel in enumerate(order):
                # where scores are equal, as in a fresh net, groups are to shrink alike
                part = rank / group.channels
                score = float(scores[group][channel]) if self.scope == "global" else part
                entries.append((score, part, place, channel))
        return [(traced.able[place], channel) for _, _, place, channel in sorted(entries)]

    def _nearest(
        self, traced: Traced, reference: nn.Module, ranking: Sequence[tuple[Group, int]], target: float
    ) -> Removal:
        """By bisection on how many channels of the ranking go."""

        def removal(count: int) -> Removal:
            weak: dict[Group, list[int]] = {}
            for group, channel in ranking[:count]:
                weak.setdefault(group, []).append(channel)
            gone = {group: group.channels - self._width(group, group.channels - len(weak[group])) for group in weak}
            return {group: weak[group][:most] for group, most in gone.items() if most}

        share = traced.share(self.by, reference, self.runtime)
        few, many = 0, len(ranking)
        if (none := share({})) <= target or (all_ := share(removal(many))) >= target:
            return removal(few if none <= target else many)
        shares = {few: none, many: all_}
        while many - few > 1 and (self.by != "latency" or min(_misses(shares, target)) > TOLERANCE / 3):
            middle = (few + many) // 2
            shares[middle] = share(removal(middle))
            few, many = (few, middle) if shares[middle] <= target else (middle, many)
        return removal(min(shares, key=lambda count: abs(shares[count] - target)))

    def _width(self, group: Group, wanted: int) -> int:
        """How many channels stay where `wanted` of them rank high enough."""
        width, step = max(wanted, self.min_channels), self.round_to // math.gcd(self.round_to, group.thickness)
        return min(group.channels, -(-width // step) * step)

    def _notes(self, kept: float, whole: Sequence[str], changed: bool) -> tuple[str, ...]:
        notes = []
        if whole:
            notes.append(f"Left whole, because slicing there would change answers: {', '.join(whole)}.")
        if abs(kept - self.target) > TOLERANCE:
            multiple = f" in multiples of {self.round_to}" if self.round_to > 1 else ""
            floor = f"every group keeps {self.min_channels} channels or more{multiple}"
            if whole:
                floor += f", {len(whole)} groups all of theirs"
            steps = f"groups change{multiple or ' a channel at a time'}" if changed else "it came in no larger"
            why = floor if kept > self.target else steps
            notes.append(f"{kept:.0%} of the {self.by} are kept instead of {self.target:.0%}: {why}.")
        return tuple(notes)


def _misses(shares: dict[int, float], target: float) -> list[float]:
    return [abs(share - target) for share in shares.values()]
