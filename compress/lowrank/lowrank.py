"""`LowRank`: replace layers by products of thinner ones, where that lowers the cost, under one budget for the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn

import students
from compress.exporter import FEW
from compress.exporter import TOLERANCE as ALIKE
from compress.lowrank.cp import Degenerate
from compress.lowrank.forms import FORMS, factors, put
from compress.lowrank.harm import harms
from compress.lowrank.layers import Layer, factorisable, look
from compress.lowrank.ranks import Choice, allocate, choices, front, sufficient
from compress.reparameterize import reparameterized
from compress.stage import Artefact, Context, Report
from compress.target import KINDS, TOLERANCE, By, Runtime, check, cost_of, time_share
from kd.errors import InputError
from kd.evaluate import inference

Method = Literal["auto", "svd", "tucker", "cp", "spatial"]
Ranks = Literal["budget", "sensitivity", "energy", "evbmf"]


Made = tuple[students.Classifier, dict[str, Any]]
_TRIES = 7  # halves the share of MACs to a hundredth


@dataclass(frozen=True)
class LowRank:
    """Factorise linear layers and convolutions, whichever way loses least for what it costs.

    Grouped convolutions are left alone, and so is what would be no cheaper.

    Attributes:
        target: the share of the incoming model's cost that is kept, met within 3 points where the ranks allow.
        by: which cost; "latency" is measured, for one image and one thread, and met by a share of "macs".
        runtime: on which latency is measured; onnxruntime runs the file that the net would become.
        method: one of them, several, or "auto" for all. "svd" is for linear layers and 1 x 1 convolutions. The others
            are for k x k: "tucker" is 1 x 1, k x k, 1 x 1; "cp" is 1 x 1, depthwise k x k, 1 x 1; "spatial" is k x 1,
            1 x k.
        ranks: "budget": those that lose least energy in all at the target. "sensitivity": alike, by the loss on
            validation where one layer alone is factorised. "energy": each layer keeps the share `energy` of its own,
            whatever the target. "evbmf": of those the ones that EVBMF does not take for noise.
        energy: what each layer keeps at least where `ranks` is "energy" or "evbmf".
        whiten: weigh errors by the second moments of activations on calibration images.
        min_rank: the least rank of a factor.
    """

    target: float = 0.5
    by: By = "macs"
    method: Method | tuple[Method, ...] = "auto"
    ranks: Ranks = "budget"
    energy: float = 0.9
    whiten: bool = True
    min_rank: int = 1
    runtime: Runtime = "onnxruntime"

    def __post_init__(self) -> None:
        check("lowrank", self.target, self.by, self.runtime)
        if not self._methods or not set(self._methods) <= set(get_args(Method)):
            raise InputError("lowrank.method", self.method, f"must be among {', '.join(get_args(Method))}")
        if self.ranks not in get_args(Ranks):
            raise InputError("lowrank.ranks", self.ranks, f"must be one of {', '.join(get_args(Ranks))}")
        if self.by == "latency" and self.ranks not in ("budget", "sensitivity"):
            raise InputError("lowrank.by", self.by, f'needs ranks that meet a target, not those of "{self.ranks}"')
        if not 0 < self.energy <= 1:
            raise InputError("lowrank.energy", self.energy, "must be above 0, and 1 or below")
        if self.min_rank < 1:
            raise InputError("lowrank.min_rank", self.min_rank, "must be 1 or more")

    def toward(self, share: float) -> LowRank:
        """Itself: the target is a share of what comes in, so that `Repeat` takes that share anew in each round."""
        return self

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError for a model that is a file, does not take the images, or whose logits are not finite."""
        if not isinstance(model, students.Classifier):
            raise InputError("stages", "lowrank", "must come before export: a file has no layers to factorise")
        images = context.images().to(model.mean.device)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        counted = replace(self, by="macs") if self.by == "latency" else self
        seen = look(model, images, self.whiten)
        layers = [layer for layer in seen if self._forms(layer)]
        left = sorted({path for path, _ in factorisable(model.net)} - {layer.path for layer in seen})
        choose = counted._chooser(model, layers, cost_of(model, shape, counted.by), context)

        def factorised(target: float) -> Made:
            chosen, refused = choose(target)
            made = copy.deepcopy(model)
            told = {}
            for layer, (choice, weights) in zip(layers, chosen, strict=True):
                if choice.ranks:
                    put(made, layer, choice.method, choice.ranks, weights)
                    told[layer.path] = {"method": choice.method, "rank": list(choice.ranks), "lost": choice.lost}
            kept = {f"kept_{by}": cost_of(made, shape, by) / cost_of(model, shape, by) for by in KINDS}
            return made.eval(), kept | {"layers": told, "degenerate": refused, "left": left}

        if self.by == "latency":
            whole = dict.fromkeys((f"kept_{by}" for by in (*KINDS, self.by)), 1.0)
            unchanged = copy.deepcopy(model).eval(), whole | {"layers": {}, "degenerate": [], "left": left}
            made, details = self._timed(factorised, time_share(model, shape, self.runtime), unchanged)
        else:
            made, details = factorised(self.target)
        notes = self._notes(details[f"kept_{self.by}"], details)
        deployed = _deployed(model, made, images[:FEW], counted.by)
        if deployed > details[f"kept_{counted.by}"] + TOLERANCE:
            details["deployed"] = deployed
            why = "branches of which one has factors do not become one layer"
            notes += (f"Exported, {deployed:.0%} of the {counted.by} are kept: {why}.",)
        return made, Report("lowrank", notes, details)

    def _timed(self, factorised: Callable[[float], Made], time: Callable[[nn.Module], float], unchanged: Made) -> Made:
        """Of the nets at a few shares of the multiply-accumulates, and the unchanged one, that whose time is nearest to
        the target."""
        low, high = 0.0, 1.0
        tried = [unchanged]
        miss = lambda made: abs(made[1]["kept_latency"] - self.target)  # noqa: E731
        while len(tried) <= _TRIES and miss(tried[-1]) > TOLERANCE / 3:
            middle = (low + high) / 2
            made, details = factorised(middle)
            share = time(made)
            tried.append((made, details | {"kept_latency": share}))
            low, high = (low, middle) if share > self.target else (middle, high)
        return min(tried, key=miss)

    @property
    def _methods(self) -> tuple[str, ...]:
        return (self.method,) if isinstance(self.method, str) else tuple(self.method)

    def _forms(self, layer: Layer) -> list[str]:
        """The methods that may make something of a layer."""
        return [name for name, form in FORMS.items() if form.suits(layer) and {name, "auto"} & set(self._methods)]

    def _chooser(
        self, model: students.Classifier, layers: Sequence[Layer], whole: int, context: Context
    ) -> Callable[[float], tuple[list[tuple[Choice, Sequence[Tensor]]], list[str]]]:
        """A function of the target: a choice for each layer and what it makes, and the layers whose CP was degenerate:
        without it, all is chosen anew."""
        judge = partial(harms, model, context=context) if self.ranks == "sensitivity" else None
        every = [self._options(layer, self._forms(layer)) for layer in layers]
        harm = judge(layers, every) if judge else None
        made: dict[tuple[str, Choice], Sequence[Tensor]] = {}

        def choose(target: float) -> tuple[list[tuple[Choice, Sequence[Tensor]]], list[str]]:
            options, costs = list(every), list(harm) if harm else None
            refused: list[str] = []
            while True:
                found = self._allocated(layers, options, costs, whole, target)
                before = len(refused)
                for place, (layer, choice) in enumerate(zip(layers, found, strict=True)):
                    try:
                        if choice.ranks and (layer.path, choice) not in made:
                            made[layer.path, choice] = factors(layer, choice.method, choice.ranks)
                    except Degenerate:
                        refused.append(layer.path)
                        options[place] = self._options(layer, [name for name in self._forms(layer) if name != "cp"])
                        if judge and costs:
                            costs[place] = judge([layer], [options[place]])[0]
                if len(refused) == before:
                    pairs = zip(layers, found, strict=True)
                    return [(choice, made.get((layer.path, choice), ())) for layer, choice in pairs], refused

        return choose

    def _options(self, layer: Layer, methods: Sequence[str]) -> list[Choice]:
        """The ways to have a layer that are worth their cost, the one as it is first."""
        found: list[Choice] = []
        for name in methods:
            cost = partial(_cost, layer, name, self.by)
            found += choices(FORMS[name].energy(layer), cost, self.min_rank, name)
        whole = layer.module.weight.numel() * (layer.outputs if self.by == "macs" else 1)
        return front(whole, found)

    def _allocated(
        self,
        layers: Sequence[Layer],
        options: Sequence[Sequence[Choice]],
        costs: Sequence[Sequence[float]] | None,
        whole: int,
        target: float,
    ) -> list[Choice]:
        if self.ranks in ("energy", "evbmf"):
            hints = [self._hints(layer) if self.ranks == "evbmf" else {} for layer in layers]
            return [sufficient(option, self.energy, hint) for option, hint in zip(options, hints, strict=True)]
        rest = whole - sum(option[0].cost for option in options)  # what is not up for choice
        return allocate(options, int(target * whole) - rest, costs)

    def _hints(self, layer: Layer) -> dict[str, tuple[int, ...]]:
        return {name: FORMS[name].hint(layer) for name in self._forms(layer)}

    def _notes(self, kept: float, details: dict[str, Any]) -> tuple[str, ...]:
        told, refused, left = details["layers"], details["degenerate"], details["left"]
        notes = []
        if refused:
            notes.append(f"CP was degenerate, components that grow and cancel each other, in {', '.join(refused)}.")
        if left:
            notes.append(f"Whole, since the net reads them by itself, or not at all: {len(left)} layers, as {left[0]}.")
        if not told:
            names = " or ".join(self._methods)
            why = f"No layer has a form by {names} that is cheaper and keeps what is asked for"
            if self.by == "latency":
                why = f"None of {_TRIES} nets that were tried comes nearer to {self.target:.0%} of the time"
            return (*notes, f"{why}: the model is unchanged.")
        worst = max(told, key=lambda path: told[path]["lost"])
        mean = sum(layer["lost"] for layer in told.values()) / len(told)
        of = "outputs" if self.whiten else "weights"
        notes.append(
            f"{len(told)} layers are factorised, at a loss of up to {mean:.0%} of the energy of their {of} on average, "
            f"{told[worst]['lost']:.0%} in {worst}."
        )
        if self.ranks in ("budget", "sensitivity") and abs(kept - self.target) > TOLERANCE:
            floor = f"every factor is at rank {self.min_rank}, the other layers do not factorise or gain nothing"
            why = floor if kept > self.target else "the ranks of its layers allow no closer"
            if self.by == "latency":
                why = f"no share of the macs came closer in {_TRIES} tries"
            notes.append(f"{kept:.0%} of the {self.by} are kept instead of {self.target:.0%}: {why}.")
        return tuple(notes)


def _deployed(model: nn.Module, made: nn.Module, x: Tensor, by: By) -> float:
    """The share of the cost that is kept where both are as they are exported, their branches made one layer."""
    shape = (x.shape[1], x.shape[2], x.shape[3])
    with inference(model), inference(made):
        before, after = (cost_of(reparameterized(each, x, ALIKE)[0], shape, by) for each in (model, made))
    return after / before


def _cost(layer: Layer, method: str, by: By, ranks: tuple[int, ...]) -> int:
    return sum(part.weights * (part.positions if by == "macs" else 1) for part in FORMS[method].row(layer, ranks))
