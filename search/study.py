"""The search: short distillations of candidates, chosen by Optuna, that a kill at any moment does not change.

Nothing that matters lives in memory. The journal holds what is finished; a candidate in training has a folder of its
own, where `kd.fit` resumes. What Optuna proposes is a function of the seed and of the finished trials: each question
gets a fresh sampler, seeded by how many are finished. So a trial that was cut off is asked again, proposes the same
candidate, and goes on from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from compress.cost import macs
from kd.console import progress, say
from kd.data import Data
from kd.errors import DivergedError, InputError
from kd.fit import fit
from kd.loss import Objective
from kd.regimes import Offline
from search.budget import Budget
from search.config import SAMPLERS, SearchConfig
from search.journal import alone, open_study
from search.pareto import Point, front, select
from search.space import Space
from students import Blueprint
from teachers import AnyTeacher, Cached, Ensemble, Teacher

PROPOSALS = 20  # a trial, counting those that are too large or were seen before
Record = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        trials: a dict for each finished trial: number, state ("trained", "repeated": the network of an earlier trial,
            "infeasible": beyond the budget, "diverged"), suggested (what the space drew), blueprint, key (of the
            network), width, depth, params, macs, top1 on validation in percent and seconds (None where not trained).
        front: those trained trials that no other dominates, by rising MACs.
        chosen: the Blueprint to go on with.
    """

    trials: list[dict[str, Any]]
    front: list[Point]
    chosen: Blueprint


def run(
    space: Space,
    data: Data,
    teacher: AnyTeacher,
    config: SearchConfig,
    folder: Path,
    objective: Callable[[], Objective],
) -> Result:
    """Search `space` until `config.trials` networks were distilled from `teacher`, and choose one; or go on doing so.

    Everything is judged on the validation split. `folder` gets Optuna's journal and a folder a candidate; the same
    call resumes there. `objective` makes the losses of a candidate.

    Raises InputError where the folder holds another search or is in use, or no candidate keeps the budget.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    budget = _absolute(config.budget, teacher, data)
    with alone(folder):
        study = open_study(folder, _identity(config, data, teacher))
        records = _records(study)
        with progress("search", config.trials, _count(records, "trained")) as advance:
            while _count(records, "trained") < config.trials and len(records) < PROPOSALS * config.trials:
                trial = _ask(study, config, len(records))
                record = _judge(trial, space(trial), records, budget)
                if record["state"] == "new":
                    record |= _train(record, data, teacher, config, folder, objective)
                _tell(study, trial, record)
                records.append({"number": len(records), **record})
                _report(records, config.trials)
                advance(int(record["state"] == "trained"), "")
                shutil.rmtree(folder / "trials" / record["key"] / "checkpoints", ignore_errors=True)
    return _result(records, config, budget)


def _ask(study: optuna.Study, config: SearchConfig, finished: int) -> optuna.Trial:
    study.sampler = SAMPLERS[config.sampler](_seed(config.seed, finished), config.startup)
    return study.ask()


def _judge(trial: optuna.Trial, blueprint: Blueprint, records: list[Record], budget: Budget) -> Record:
    """What is known of a candidate before it is trained."""
    model = blueprint.build(device="meta")
    params = sum(parameter.numel() for parameter in model.parameters())
    size = blueprint.image_size
    record: Record = {
        "suggested": trial.params,
        "blueprint": blueprint.to_json(),
        "width": blueprint.width,
        "depth": blueprint.depth,
        "params": params,
        "macs": macs(model, (blueprint.in_chans, size, size)),
        "top1": None,
        "seconds": None,
    }
    # factors that round to the same channels and blocks make the same network
    shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
    unscaled = replace(blueprint, width=1.0, depth=1.0)
    record["key"] = hashlib.sha256(repr((unscaled, record["macs"], shapes)).encode()).hexdigest()[:16]
    excess = budget.excess(params, record["macs"])
    for limit, value in excess.items():
        trial.set_constraint(limit, value)
    if any(value > 0 for value in excess.values()):
        return record | {"state": "infeasible"}
    twin = next((other for other in records if other["key"] == record["key"]), None)
    if twin is not None:
        state = "repeated" if twin["top1"] is not None else twin["state"]
        return record | {"state": state, "top1": twin["top1"]}
    return record | {"state": "new"}


def _train(
    record: Record,
    data: Data,
    teacher: AnyTeacher,
    config: SearchConfig,
    folder: Path,
    objective: Callable[[], Objective],
) -> Record:
    """The state, accuracy and seconds of one short distillation, or of the rest of it."""
    seed = _seed(config.seed, record["key"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        regime = Offline(Blueprint.from_json(record["blueprint"]).build(), teacher, objective())
    try:
        short = replace(config.fit, seed=seed)
        history = fit(regime, data, short, folder / "trials" / record["key"], label=f"candidate {_words(record)}")
    except DivergedError as error:
        say(str(error))
        return {"state": "diverged"}
    return {"state": "trained", "top1": history.best_top1, "seconds": history.seconds}


def _tell(study: optuna.Study, trial: optuna.Trial, record: Record) -> None:
    trial.set_user_attr("record", record)  # before the state: a finished trial has its record
    if record["top1"] is None:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, [record["top1"], record["macs"]])


def _records(study: optuna.Study) -> list[Record]:
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [{"number": number, **trial.user_attrs["record"]} for number, trial in enumerate(finished)]


def _count(records: list[Record], state: str) -> int:
    return sum(record["state"] == state for record in records)


def _result(records: list[Record], config: SearchConfig, budget: Budget) -> Result:
    points = [record for record in records if record["state"] == "trained"]
    if not points and _count(records, "diverged"):
        raise DivergedError("no candidate of the search could be trained: lower search.fit.lr")
    if not points:
        least = min(records, key=lambda record: sum(max(v, 0) for v in _excess(record, budget)))
        found = f"the nearest of {len(records)} candidates has {least['params']} params and {least['macs']} MACs"
        limits = f"params {budget.params}, macs {budget.macs}"
        raise InputError("search.budget", limits, f"no candidate keeps it: {found}")
    if len(points) < config.trials:
        say(f"search: the space offered {len(points)} different networks in {len(records)} proposals")
    chosen = select(points, budget, config.within)
    return Result(records, front(points), Blueprint.from_json(chosen["blueprint"]))


def _excess(record: Record, budget: Budget) -> list[float]:
    return list(budget.excess(record["params"], record["macs"]).values())


def _report(records: list[Record], wanted: int) -> None:
    record = records[-1]
    size = f"{record['params'] / 1e3:.1f} k params, {record['macs'] / 1e6:.2f} M MACs"
    if record["state"] == "trained":
        outcome = f"{record['top1']:.2f}% in {record['seconds']:.1f} s"
    else:
        outcome = record["state"]
    say(f"search {_count(records, 'trained')}/{wanted}: {_words(record)}, {size}: {outcome}")


def _words(record: Record) -> str:
    values = record["suggested"].items()
    return " ".join(f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in values)


def _identity(config: SearchConfig, data: Data, teacher: AnyTeacher) -> dict[str, Any]:
    """What a search may not change while it goes on; more trials may be asked for."""
    fields = asdict(config)
    fit = fields.pop("fit")
    named = {name: value for name, value in fields.items() if name not in ("trials", "within")}
    named |= {f"fit.{name}": value for name, value in fit.items()}
    identity = {f"search.{name}": value for name, value in named.items()}
    return identity | {"data": data.fingerprint(), "teacher": teacher.identity()}


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4])


def _absolute(budget: Budget, teacher: AnyTeacher, data: Data) -> Budget:
    """Shares of the teacher as numbers; what it sees are the data's images, at its own resolution."""
    if not budget.relative:
        return budget
    members = _members(teacher)
    params = sum(parameter.numel() for member in members for parameter in member.model.parameters())
    return budget.absolute(params, sum(macs(member.model, _shape(member, data)) for member in members))


def _members(teacher: AnyTeacher) -> tuple[Teacher, ...]:
    if isinstance(teacher, Cached):
        return _members(teacher.teacher)
    return teacher.teachers if isinstance(teacher, Ensemble) else (teacher,)


def _shape(teacher: Teacher, data: Data) -> tuple[int, int, int]:
    height, width = data.facts.image_size
    return teacher.channels or data.facts.channels, teacher.image_size or height, teacher.image_size or width
