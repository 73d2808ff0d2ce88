"""`Sparsify`: zeros in the place of single weights, at once or as training goes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, get_args

import torch.distributed as dist
from torch import nn

import students
from compress import masks
from compress.masks import Layer, Scope, Tensors
from compress.recover import lessons
from compress.stage import Artefact, Context, Report
from kd.batch import Batch, Demands, Facts, Outputs, Step
from kd.errors import InputError
from kd.fit import fit
from kd.loss import several
from kd.regimes import Regime

RAMP = 0.75  # of the steps of a training: from then on it has its sparsity
Method = Literal["magnitude", "random", "obd"]
Schedule = Literal["oneshot", "gradual", "dynamic"]


@dataclass(frozen=True)
class Sparsify:
    """Set the least important weights of convolutions and linear layers to zero.

    What comes out is a plain model with zeros in it: `students.save` stores them in fewer bytes, `Recover` keeps them,
    `Prune` and `Export` take them as they are; the factors that `LowRank` makes are dense.

    Attributes:
        sparsity: the share of these weights that goes, met to a weight; or one for each layer by its path, where other
            layers stay dense, and weights compete within theirs.
        method: what a weight is worth: its "magnitude", "obd" (what the loss would grow by, from calibration samples),
            or nothing that is known ("random").
        scope: whether the weights of all layers compete, or those of each.
        pattern: "n:m", such as "2:4", in the place of sparsity and scope: n of every m neighbours along the inputs
            stay. Layers whose inputs are no multiple of m are left dense.
        schedule: "oneshot": at once, without training. The others train as `Recover` does, and the share that is
            masked grows by a cubic over three quarters of the steps. "gradual": then masks are fixed (Zhu and Gupta
            2017). "dynamic": masked weights learn too, and may come back until the end (Lin et al. 2020).
        epochs, lr: of that training; lr None: that of the context's fit.
        every: optimiser steps from one choice of masks to the next.
        dense: paths of layers that are left alone.
    """

    sparsity: float | dict[str, float] = 0.9
    method: Method = "magnitude"
    scope: Scope = "global"
    pattern: str | None = None
    schedule: Schedule = "oneshot"
    epochs: int = 5
    lr: float | None = None
    every: int = 16
    dense: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shares = self.sparsity.values() if isinstance(self.sparsity, dict) else [self.sparsity]
        if not shares or not all(0 < share < 1 for share in shares):
            raise InputError("sparsify.sparsity", self.sparsity, "must be above 0 and below 1")
        if isinstance(self.sparsity, dict) and (self.dense or self.pattern):
            raise InputError("sparsify.sparsity", self.sparsity, "names its layers: no dense or pattern beside it")
        for name, kind in (("method", Method), ("scope", Scope), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"sparsify.{name}", getattr(self, name), f"must be one of {', '.join(get_args(kind))}")
        if self.pattern is not None:
            found = re.fullmatch(r"(\d+):(\d+)", self.pattern)
            if not found or not 0 < int(found[1]) < int(found[2]):
                raise InputError("sparsify.pattern", self.pattern, 'must be "n:m" with 0 < n < m, such as "2:4"')
        for name in ("epochs", "lr", "every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"sparsify.{name}", value, "must be above 0")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError for a model that is a file already, and for settings that leave no layer to mask."""
        if not isinstance(model, students.Classifier):
            raise InputError("stages", "sparsify", "must come before export: a file has no weights to mask")
        students.check_plain(model)
        made = copy.deepcopy(model)
        layers, odd = self._layers(made.net)
        choose = partial(self._choose, self._worth(model, context))
        notes: list[str] = []
        details: dict[str, Any] = {}
        if self.schedule == "oneshot":
            masks.hold(layers, choose(masks.weights(layers), self._end(masks.weights(layers))))
            masks.bake(made)
        else:
            end = self._end(masks.weights(layers))
            made, curve, untaught = learnt(self, made, layers, choose, (min(_zeros(layers), end), end), context)
            notes += untaught
            details["curve"] = curve
        details |= {"sparsity": _zeros(layers), "layers": {path: _zeros({path: layers[path]}) for path in layers}}
        return made.eval(), Report("sparsify", (*notes, *self._notes(details, odd), *masks.others(made.net)), details)

    def _notes(self, details: Mapping[str, Any], odd: list[str]) -> list[str]:
        notes = [
            f"{details['sparsity']:.1%} of the weights of {len(details['layers'])} layers are zero. Files are smaller, "
            "but no runtime used here is faster for it: they multiply by zeros as by anything else."
        ]
        if odd:
            notes.append(f"Left dense, because their inputs do not divide as {self.pattern}: {', '.join(odd)}.")
        if empty := [path for path, share in details["layers"].items() if share == 1]:
            notes.append(f"No weight is left in {', '.join(empty)}.")
        return notes

    @property
    def _groups(self) -> tuple[int, int] | None:
        """n and m of the pattern."""
        if self.pattern is None:
            return None
        kept, size = self.pattern.split(":")
        return int(kept), int(size)

    def _end(self, weights: Tensors) -> float:
        """The share of these weights that goes in the end."""
        if self._groups is not None:
            return 1 - self._groups[0] / self._groups[1]
        if not isinstance(self.sparsity, dict):
            return self.sparsity
        gone = sum(self.sparsity[path] * weight.numel() for path, weight in weights.items())
        return gone / sum(weight.numel() for weight in weights.values())

    def _layers(self, net: nn.Module) -> tuple[dict[str, Layer], list[str]]:
        """Those that are to have masks, and the paths of those that the pattern does not fit."""
        found = masks.layers(net)
        named = self.sparsity if isinstance(self.sparsity, dict) else self.dense
        for path in named:
            if path not in found:
                field = "dense" if named is self.dense else "sparsity"
                raise InputError(f"sparsify.{field}", path, "is no convolution or linear layer of this net")
        if isinstance(self.sparsity, dict):
            return {path: layer for path, layer in found.items() if path in self.sparsity}, []
        found = {path: layer for path, layer in found.items() if path not in self.dense}
        odd = [path for path, layer in found.items() if self._groups and layer.weight.shape[1] % self._groups[1]]
        if len(odd) == len(found):
            field, value = ("pattern", self.pattern) if odd else ("dense", self.dense)
            raise InputError(f"sparsify.{field}", value, "leaves every layer of this net dense")
        return {path: layer for path, layer in found.items() if path not in odd}, odd

    def _worth(self, model: students.Classifier, context: Context) -> Callable[[Tensors], Tensors]:
        """What scores weights, as they are at any moment of the training."""
        if self.method == "obd":
            return partial(masks.obd, curvature=masks.curvature(model, *context.labelled()))
        return partial(masks.random, seed=context.seed) if self.method == "random" else masks.magnitude

    def _choose(self, worth: Callable[[Tensors], Tensors], weights: Tensors, sparsity: float) -> Tensors:
        scores = worth(weights)
        if self._groups is not None:
            return masks.by_group(scores, sparsity, self._groups[1])
        if isinstance(self.sparsity, dict):
            part = sparsity / self._end(scores)  # of what each layer loses in the end
            shares = {path: part * share for path, share in self.sparsity.items()}
            return {path: masks.by_rank({path: scores[path]}, share)[path] for path, share in shares.items()}
        return masks.by_rank(scores, sparsity, self.scope)


class Sparsifying(Regime):
    """Another regime, whose student loses weights as the clock goes.

    Args:
        layers: of the student, with masks.
        choose: masks for such weights and a sparsity.
        sparsity: at the start and at the end.
        every: steps from one choice to the next.
        on: whether to go on choosing once the end is reached.
    """

    def __init__(
        self,
        inner: Regime,
        layers: Mapping[str, Layer],
        choose: Callable[[Tensors, float], Tensors],
        sparsity: tuple[float, float],
        every: int,
        on: bool = False,
    ) -> None:
        super().__init__()
        self.inner = inner
        self._layers, self._choose, self._sparsity, self._every, self._on = layers, choose, sparsity, every, on

    @property
    def demands(self) -> Demands:  # type: ignore[override]  # of the other regime
        return self.inner.demands

    def bind(self, data: Facts) -> None:
        self.inner.bind(data)

    def guide(self, batch: Batch) -> tuple[Outputs, ...]:
        """Chooses masks too: here the clock is seen before the pass, and nothing is differentiated or compiled."""
        step, end = batch.clock.step, int(RAMP * (batch.clock.steps - 1))
        if step == end or (step % self._every == 0 and (step < end or self._on)):
            sparsity = masks.cubic(*self._sparsity, min(1, step / end) if end else 1)
            masks.move(self._layers, _agreed(self._choose(masks.weights(self._layers), sparsity)))
        return self.inner.guide(batch)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        return self.inner(batch, guides)

    def after_step(self, batch: Batch, step: Step) -> None:
        self.inner.after_step(batch, step)

    def candidates(self) -> dict[str, nn.Module]:
        return self.inner.candidates()


class Training(Protocol):
    """What a stage says of the training in which it masks weights: see `Sparsify`."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float | None: ...
    @property
    def every(self) -> int: ...


def learnt(
    stage: Training,
    model: students.Classifier,
    layers: Mapping[str, Layer],
    choose: Callable[[Tensors, float], Tensors],
    sparsity: tuple[float, float],
    context: Context,
) -> tuple[students.Classifier, list[dict[str, Any]], list[str]]:
    """What becomes of `model` as its layers lose weights, its epochs, and what is to be said of who taught it; see
    `Sparsifying` for the rest."""
    dynamic = stage.schedule == "dynamic"
    masks.hold(layers, choose(masks.weights(layers), sparsity[0]), feedback=dynamic)
    inner, untaught = lessons(model.requires_grad_(True), context)
    regime = Sparsifying(inner, layers, choose, sparsity, stage.every, dynamic)
    config = replace(context.fit, epochs=stage.epochs, lr=stage.lr or context.fit.lr, warmup_epochs=0)
    config = replace(config, select="last", patience=None)  # the epochs before it are less sparse
    label = type(stage).__name__.lower()
    history = fit(regime, context.data, config, context.folder, context.accelerator, label=label)
    shipped = regime.deploy()
    masks.bake(shipped)
    return students.adopt(shipped).eval(), history.epochs, untaught


def _agreed(chosen: Tensors) -> Tensors:
    """Those of the first process: what is seen in answers differs between processes, as statistics of norms do."""
    if not several():
        return chosen
    numbers = {path: mask.byte() for path, mask in chosen.items()}
    for number in numbers.values():
        dist.broadcast(number, 0)
    return {path: number.bool() for path, number in numbers.items()}


def _zeros(layers: Mapping[str, Layer]) -> float:
    """The share of the weights of layers that is zero."""
    weights = [layer.weight for layer in layers.values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
