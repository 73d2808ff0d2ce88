"""What a candidate is worth: its figures before it is trained, and after."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import compress
import students
from compress import Artefact, Context, Export, FileModel
from compress.cost import drawn
from kd.data import Data
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import Fit, History, fit
from kd.loss import Objective, several
from kd.processes import processes
from kd.regimes import Offline
from search.samplers import derived
from search.space import Candidate
from search.zero_cost import SCORES
from students import Blueprint
from teachers import AnyTeacher

DEPLOYED = {"file_bytes", "latency_ms"}
_SCORED = 64  # training images that zero-cost scores see
Figures = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What candidates learn, from whom, and how.

    Attributes:
        data, teacher: of all candidates.
        objective: makes the losses of a candidate that brings none.
        fit: the short training.
        seed: that of a candidate's weights is a function of it and of the candidate.
        source: a larger net of the same family, whose weights a candidate starts from; None: random ones.
        zero_cost: scores of the untrained candidate to note.
    """

    data: Data
    teacher: AnyTeacher
    objective: Callable[[], Objective]
    fit: Fit
    seed: int
    source: students.Classifier | None = None
    zero_cost: tuple[str, ...] = ()

    def sketch(self, candidate: Candidate) -> Figures:
        """blueprint, params, macs, and two keys: `net`, of the network, and `key`, of all that is done with it.

        Factors that round to the same channels and blocks make the same network, and so the same key.
        """
        plan = candidate.blueprint
        model, work = drawn(plan)
        shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
        net = _digest(replace(plan, width=1.0, depth=1.0), work, shapes)
        taught = "" if candidate.objective is None else _settings(candidate.objective())
        return {
            "blueprint": plan.to_json(),
            "width": plan.width,
            "depth": plan.depth,
            "params": sum(parameter.numel() for parameter in model.parameters()),
            "macs": work,
            "net": net,
            "key": net if not taught and not candidate.stages else _digest(net, taught, candidate.stages),
        }

    def deployed(self, plan: Blueprint, figures: set[str]) -> Figures:
        """Bytes and milliseconds of the exported network, as far as `figures` asks; weights do not matter."""
        with TemporaryDirectory() as folder:
            return self._of_file(Export().write(plan.build(), self.data, Path(folder) / "model.onnx"), figures)

    def train(
        self,
        candidate: Candidate,
        key: str,
        figures: set[str],
        folder: Path,
        label: str,
        stop: Callable[[History], bool] | None,
    ) -> Figures:
        """A short distillation, or the rest of it: top1 on validation, epochs, seconds, the zero-cost scores, and where
        there are stages the costs of what comes out of them. Leaves the artefact in `folder`, where it resumes."""
        if candidate.stages and several():
            raise InputError("num_processes", processes().num_processes, "candidates with stages take one process each")
        seed = derived(self.seed, key)
        objective = candidate.objective or self.objective
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = candidate.blueprint.build()
            if self.source is not None:
                students.inherit(student, self.source, "space.inherit")
            scores = self._scores(student)
            regime = Offline(student, self.teacher, objective())
        history = fit(regime, self.data, replace(self.fit, seed=seed), folder, label=label, stop=stop)
        found: Figures = {"top1": history.best_top1, "epochs": len(history.epochs), "seconds": history.seconds}
        found |= {"zero_cost": scores, "stopped": history.stopped}
        trained = students.adopt(regime.deploy(history.best_name)).eval()
        artefact: Artefact = trained
        if candidate.stages and not history.stopped:
            context = Context(self.data, self.teacher, folder, self.fit, objective, seed, reference=trained)
            for number, stage in enumerate(candidate.stages, 1):
                artefact, _ = stage(artefact, replace(context, folder=folder / f"stage-{number}"))
            found |= self._of_artefact(artefact, figures)
        if processes().is_main_process:
            compress.save_artefact(artefact, folder)
        return found

    def _scores(self, student: students.Classifier) -> dict[str, float | None]:
        """None where a score is not finite."""
        view = self.data.view(torch.arange(min(_SCORED, len(self.data.train))), 0)
        found = {name: SCORES[name](student, view, self.teacher) for name in self.zero_cost}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}

    def _of_artefact(self, artefact: Artefact, figures: set[str]) -> Figures:
        cost = asdict(compress.measure(artefact, self.data.facts.image_shape))
        found = {"top1": evaluate(artefact, self.data.evaluation("val")).top1} | {
            n: cost[n] for n in ("params", "macs")
        }
        if not figures & DEPLOYED:
            return found
        if isinstance(artefact, FileModel):
            return found | self._of_file(artefact, figures)
        with TemporaryDirectory() as folder:
            return found | self._of_file(Export().write(artefact, self.data, Path(folder) / "model.onnx"), figures)

    def _of_file(self, file: FileModel, figures: set[str]) -> Figures:
        found: Figures = {"file_bytes": file.path.stat().st_size}
        if "latency_ms" in figures:
            times = compress.latency({"it": file}, self.data.facts.image_shape, batches=(1,), seconds=1.0)
            found["latency_ms"] = times["it"]["batch1"]["p50"]
        return found


def _settings(objective: Objective) -> str:
    """All that tells two objectives apart: classes, weights, and the plain values that their losses hold."""
    plain = (bool, int, float, str, tuple, type(None))
    parts = [
        (name, type(part).__qualname__, {k: v for k, v in vars(part).items() if k[0] != "_" and isinstance(v, plain)})
        for name, part in objective.named_modules()
    ]
    return repr((parts, objective.weights))


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
