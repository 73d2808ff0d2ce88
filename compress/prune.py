"""`Prune`: a narrower net, by leaving out the channels that matter least."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

import students
from compress import channels
from compress.channels import Group, Removal
from compress.importance import IMPORTANCES, random
from compress.stage import Artefact, Context, Report
from compress.target import KINDS, TOLERANCE, By, Shape, check, cost_of
from kd.errors import InputError


@dataclass(frozen=True)
class Prune:
    """Take out channels until a share of the cost is left. All of them compete, by importance within their group.

    What is sliced is what would have been silenced: groups of channels where that does not hold are left whole.

    Attributes:
        target: the share of the reference's cost that is kept, met within 3 points where the net allows.
        by: which cost.
        importance: of a channel, see `compress.importance`.
        min_channels: how many each group keeps at least.
        round_to: groups keep a multiple of this many, or all.
    """

    target: float = 0.5
    by: By = "macs"
    importance: Literal["l2", "l1", "random", "bn"] = "l2"
    min_channels: int = 2
    round_to: int = 1

    def __post_init__(self) -> None:
        check("prune", self.target, self.by)
        if self.importance not in IMPORTANCES:
            raise InputError("prune.importance", self.importance, f"must be one of {', '.join(IMPORTANCES)}")
        for name in ("min_channels", "round_to"):
            if getattr(self, name) < 1:
                raise InputError(f"prune.{name}", getattr(self, name), "must be 1 or more")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError for a model that is a file already, and for a net that cannot be traced."""
        if not isinstance(model, students.Classifier):
            raise InputError("stages", "prune", "must come before export: a file has no channels to take out")
        plan = model.blueprint
        shape = (plan.in_chans, plan.image_size, plan.image_size)
        reference = context.reference or model
        x = _images(model, shape, context.seed)
        groups = _groups(model, x)
        able = channels.separable(model.net, x, groups)
        goal = self.target * cost_of(reference, shape, self.by)
        while True:
            removal = self._choose(model.net, able, goal, shape, context.seed)
            right = channels.sound(model.net, x, removal)
            if len(right) == len(removal):
                break
            able = [group for group in able if group not in removal or group in right]
        small = channels.sliced(model.net, removal)
        _retell(small)
        made = copy.deepcopy(model)
        students.edit(made, channels.changes(model.net, small), small.state_dict())
        kept = {by: cost_of(made, shape, by) / cost_of(reference, shape, by) for by in KINDS}
        whole = [group.name for group in groups if group not in able]
        widths = {group.name: group.channels - len(gone) for group, gone in removal.items()}
        details = {"kept_macs": kept["macs"], "kept_params": kept["params"], "groups": len(groups)}
        notes = self._notes(kept[self.by], whole, changed=bool(removal))
        return made.eval(), Report("prune", notes, details | {"whole": whole, "widths": widths})

    def _choose(self, net: nn.Module, groups: Sequence[Group], goal: float, shape: Shape, seed: int) -> Removal:
        """The removal whose cost comes nearest to `goal`, found by bisection on how many channels go."""
        ranking = self._ranking(net, groups, seed)

        def removal(count: int) -> Removal:
            weak: dict[Group, list[int]] = {}
            for group, channel in ranking[:count]:
                weak.setdefault(group, []).append(channel)
            gone = {group: group.channels - self._width(group, group.channels - len(weak[group])) for group in weak}
            return {group: weak[group][:most] for group, most in gone.items() if most}

        def cost(count: int) -> int:
            return cost_of(channels.sliced(net, removal(count)), shape, self.by)

        few, many = 0, len(ranking)
        if cost(few) <= goal or cost(many) >= goal:
            return removal(few if cost(few) <= goal else many)
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if cost(middle) <= goal else (middle, many)
        return removal(min((few, many), key=lambda count: abs(cost(count) - goal)))

    def _ranking(self, net: nn.Module, groups: Sequence[Group], seed: int) -> list[tuple[Group, int]]:
        """All channels, the least important ones first. Importances are 1 on average, so that groups compare."""
        ranked = []
        for place, group in enumerate(groups):
            weights = group.weights(net)
            judge = partial(random, seed=seed + place) if self.importance == "random" else IMPORTANCES[self.importance]
            scores = judge(weights)
            order = (scores / scores.mean().clamp(min=1e-12)).sort(stable=True)
            for rank, (score, channel) in enumerate(zip(order.values.tolist(), order.indices.tolist(), strict=True)):
                # where scores are equal, as in a fresh net, groups are to shrink alike
                ranked.append((score, rank / group.channels, place, channel))
        return [(groups[place], channel) for _, _, place, channel in sorted(ranked)]

    def _width(self, group: Group, wanted: int) -> int:
        """How many channels stay where `wanted` of them rank high enough."""
        width = max(wanted, self.min_channels)
        return min(group.channels, -(-width // self.round_to) * self.round_to)

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


def _groups(model: students.Classifier, x: Tensor) -> list[Group]:
    try:
        return channels.find(model.net, x[:1])
    except Exception as error:  # torch-pruning raises anything on nets that it does not follow
        why = f"torch-pruning cannot follow this net ({type(error).__name__}: {error})"
        raise InputError("stages", "prune", why) from error


def _retell(net: nn.Module) -> None:
    """timm's nets keep the width of their features in numbers of their own."""
    classifier = getattr(net, "get_classifier", nn.Identity)()
    features = getattr(classifier, "in_features", None)
    for name in ("num_features", "head_hidden_size"):
        if features is not None and name in vars(net):
            setattr(net, name, features)


def _images(model: students.Classifier, shape: Shape, seed: int) -> Tensor:
    """Noise: slicing has to be right for any image."""
    noise = torch.rand(4, *shape, generator=torch.Generator().manual_seed(seed))
    return model.normalize(noise.to(model.mean.device))
