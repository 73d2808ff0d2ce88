"""`Repeat`: stages over and over, each round nearer to their target, such as to prune a little and to recover."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.artefact import load_artefact, save_artefact
from compress.cost import measure
from compress.stage import Artefact, Context, Report, Stage
from kd.checkpoint import digest, load_json, save_json
from kd.console import say
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.processes import processes

RECORD = "stage.json"


@dataclass(frozen=True)
class Repeat:
    """Go through stages again and again, such as `Repeat(5, (Prune(0.3), Recover(4)))`.

    In round i of k a stage of target t aims at t^(i/k), a share of what the model before the first stage costs, so that
    every round takes the same share of what is left. Each stage of each round is kept in the context's folder, where a
    run that was killed goes on; what was kept of another model or setting is thrown away.

    Attributes:
        rounds: how many.
        stages: what is done in each, one after the other, by import path.
    """

    rounds: int
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError("repeat.rounds", self.rounds, "must be 1 or more")
        if not self.stages:
            raise InputError("repeat.stages", "()", "name at least one, such as compress.Prune")
        if all(toward(stage, 0.5) is stage for stage in self.stages):
            names = ", ".join(map(_name, self.stages))
            raise InputError("repeat.stages", names, "one needs a target to come nearer to, such as compress.Prune")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError where a stage does."""
        if context.reference is None and isinstance(model, nn.Module):
            context = replace(context, reference=model)
        whole = measure(context.reference or model, context.data.facts.image_shape)
        rounds: list[dict[str, Any]] = []
        curve: list[dict[str, Any]] = []
        notes: list[str] = []
        for number in range(1, self.rounds + 1):
            reports = []
            for place, stage in enumerate(self.stages, 1):
                folder = context.folder / f"round-{number}" / f"{place:02d}-{_name(stage)}"
                say(f"round {number} of {self.rounds}: {_name(stage)}")
                model, report = _kept(toward(stage, number / self.rounds), model, replace(context, folder=folder))
                curve += report.details.pop("curve", ())
                reports.append(report)
            cost = measure(model, context.data.facts.image_shape)
            kept = {"macs": cost.macs / whole.macs, "nonzero": cost.nonzero / whole.nonzero}
            top1 = evaluate(model, context.data.evaluation("val")).top1
            rounds.append({"kept": kept, "top1": top1, "stages": list(map(asdict, reports))})
            notes.append(
                f"Round {number} of {self.rounds}: {kept['macs']:.0%} of the MACs and {kept['nonzero']:.0%} of the "
                f"parameters are left, {top1:.2f}% on validation."
            )
        notes += [note for report in reports for note in report.notes]
        epochs = [epoch | {"epoch": number} for number, epoch in enumerate(curve)]
        return model, Report("repeat", tuple(notes), {"rounds": rounds, "curve": epochs})


def toward(stage: Stage, share: float) -> Stage:
    """The stage a share of the way to its target, itself where it has none.

    What that means a stage says by a method of this name. Else a field `target` is the share of the cost that is kept.
    """
    if hasattr(stage, "toward"):
        aimed: Stage = stage.toward(share)
        return aimed
    if is_dataclass(stage) and any(field.name == "target" for field in fields(stage)):
        return replace(stage, target=stage.target**share)
    return stage


def _kept(stage: Stage, model: Artefact, context: Context) -> tuple[Artefact, Report]:
    """What `stage` makes of `model`: made once, then read from the context's folder."""
    folder, key = context.folder, _key(stage, model, context)
    with processes().main_process_first():
        if _read(folder).get("key") != key:
            shutil.rmtree(folder, ignore_errors=True)
            save_json(folder / RECORD, {"key": key})
    if "report" not in _read(folder):
        torch.manual_seed(context.seed)
        made, report = stage(model, context)
        save_artefact(made, folder)
        save_json(folder / RECORD, {"key": key, "report": asdict(report)})
    # also what was made just now is read, so that a run which was killed goes on with the very same
    told = _read(folder)["report"]
    return load_artefact(folder), Report(told["name"], tuple(told["notes"]), told["details"])


def _read(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    return load_json(path) if path.exists() else {}


def _key(stage: Stage, model: Artefact, context: Context) -> str:
    """A digest of what comes in and of what is done to it."""
    models = [model] if context.reference is None else [model, context.reference]
    tensors = [tensor for each in models for tensor in _tensors(each)]
    plan = getattr(model, "blueprint", "")
    return digest(tensors, f"{plan} {stage} {context.fit} {context.seed} {context.calibration}")


def _tensors(model: Artefact) -> list[Tensor]:
    if isinstance(model, nn.Module):
        return list(model.state_dict().values())
    return [torch.frombuffer(bytearray(model.path.read_bytes()), dtype=torch.uint8)]


def _name(stage: Stage) -> str:
    return type(stage).__name__.lower()
