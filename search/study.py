"""The search: short distillations of candidates, chosen by Optuna, by any number of workers of which any may be killed.

Nothing that matters lives in memory. The study holds what is finished; a candidate in training has a folder of its own,
where `kd.fit` resumes; what is proposed is a function of the seed and of what is finished (`search.samplers.Seeded`).
Workers are processes that call `run` on the same folder. They take turns to look at the study and to decide; what they
decided on they train side by side, each under a lease (`search.storage`). A trial without a lease is dead: whoever
sees it first marks it failed and puts it back, and whoever takes that up goes on from its last checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from accelerate.utils import broadcast_object_list
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from compress.cost import macs
from compress.processor import processor
from kd.console import progress, say
from kd.data import Data
from kd.errors import DivergedError, InputError
from kd.fit import History
from kd.loss import Objective, several
from kd.processes import processes
from search.budget import Budget
from search.config import SearchConfig
from search.judge import DEPLOYED, Task
from search.result import TRIED, Record, Result, conclude, count, words
from search.rungs import goes_on
from search.samplers import QUESTION, Seeded, question
from search.space import Candidate, Space
from search.storage import Direction, Lease, open_study, turn
from students import Classifier
from teachers import AnyTeacher, Cached, Ensemble, Teacher

PROPOSALS = 20  # a trial, counting those that are too large or were seen before
RECORD, REPEATS, REACHED, DEATHS = "record", "repeats", "reached", "deaths"  # attributes of a trial
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def run(
    space: Space,
    data: Data,
    teacher: AnyTeacher,
    config: SearchConfig,
    folder: Path,
    objective: Callable[[], Objective],
    source: Classifier | None = None,
) -> Result:
    """Search `space` until enough candidates were distilled from `teacher`, and choose one; or go on, or lend a hand.

    Everything is judged on the validation split. `folder` gets the study and a folder a candidate; the same call
    resumes there, or joins the processes that are at it. Under `accelerate launch` all processes of one launch train
    a candidate together.

    Args:
        objective: makes the losses of a candidate that brings none.
        source: a larger net of the same family, whose weights candidates start from.

    Raises InputError where the folder holds another search, or no candidate keeps the budget.
    """
    task = Task(data, teacher, objective, config.fit, config.seed, source, config.zero_cost)
    return _Worker(space, task, config, folder).work()


@dataclass
class _Worker:
    space: Space
    task: Task
    config: SearchConfig
    folder: Path
    study: Any = field(init=False)
    budget: Budget = field(init=False)
    hand: tuple[Trial, Lease] | None = None  # the trial that this worker is at
    sketched: tuple[int, Record] | None = None

    def work(self) -> Result:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.budget = _absolute(self.config.budget, self.task.teacher, self.task.data)
        processes().wait_for_everyone()  # a launch whose processes do not meet takes no trial
        if processes().is_main_process:
            with turn(self.folder):
                directions: list[Direction] = [
                    "maximize" if goal == "top1" else "minimize" for goal in self.config.goals
                ]
                self.study = open_study(self.folder, self._identity(), directions, self.config.storage)
            self.study.sampler = Seeded(self.config.sampler, self.config.startup, self.config.seed)
        try:
            with progress("search", self.config.trials) as advance:
                shown = 0
                while (order := self._agreed()) != "done":
                    if isinstance(order, dict):
                        self._train(order)
                    else:
                        time.sleep(0.2)
                    tried = count(self._records(), *TRIED) if processes().is_main_process else 0
                    advance(tried - shown, "")
                    shown = tried
        except KeyboardInterrupt:
            if self.hand is not None:
                with turn(self.folder):
                    self._put_back(self.hand[0], deaths=0)  # wanted, so it is not held against it
            raise
        finally:
            if self.hand is not None:
                self.hand[1].release()
        records = _agreed_on(self._records() if processes().is_main_process else None)
        return conclude(records, self.config, self.budget)

    def _agreed(self) -> Record | str:
        """What to do next, as the first process decides: train this record, wait for other workers, or end."""
        return _agreed_on(self._next() if processes().is_main_process else None)

    def _next(self) -> Record | str:
        while True:
            with turn(self.folder):
                self._bury()
                records = self._records()
                running = self._running()
                if self.hand is None and (order := self._ended(records, len(running))):
                    return order
                trial = self.hand[0] if self.hand else self._ask()
                record = self._judge(trial, records)
                twins = {other.user_attrs[RECORD]["key"] for other in running if RECORD in other.user_attrs}
                if record["state"] == "new" and record["key"] in twins:
                    return "wait"  # another worker trains the same: this trial is answered when that is done
                trial.set_user_attr(RECORD, record)
                if record["state"] == "new":
                    return record
                self._tell(record)

    def _ended(self, records: list[Record], running: int) -> str:
        """What there is to do if no candidate is due: to wait, where others are not done, or "done"; else nothing."""
        config, tried = self.config, count(records, *TRIED)
        spent = sum(record["epochs"] or 0 for record in records if record["state"] in TRIED)
        enough = config.epochs is not None and spent >= config.epochs
        if tried >= config.trials or enough or len(records) >= PROPOSALS * config.trials:
            return "wait" if running else "done"
        coming = spent + running * config.fit.epochs
        return "wait" if tried + running >= config.trials or coming >= (config.epochs or coming + 1) else ""

    def _ask(self) -> Trial:
        trial = self.study.ask()
        trial.set_user_attr(QUESTION, question(self.study, trial))
        _ = trial.relative_params  # also of one whose values are given: NSGA counts it into a generation only then
        lease = Lease.take(self.folder, trial.number)
        assert lease is not None  # nobody else knows of it yet
        self.hand = trial, lease
        return trial

    def _judge(self, trial: Trial, records: list[Record]) -> Record:
        """What is known of a candidate before it is trained."""
        record: Record = {"state": "new", "top1": None, "epochs": None, "seconds": None, "rungs": {}}
        try:
            candidate = self.space(trial)
            record |= {"suggested": trial.params} | self._sketch(trial.number, candidate)
            twin = next((other for other in records if other["key"] == record["key"]), None)
            if twin is not None:
                state = "repeated" if twin["state"] in TRIED else twin["state"]
                return twin | {"state": state, "suggested": trial.params, "epochs": None, "seconds": None}
            if candidate.stages:  # what they will make of it is not known yet
                return record
            if self.budget.keeps(record) and self.config.figures & DEPLOYED:
                record |= self._deployed(candidate, record["net"])
        except InputError as error:
            if error.field.startswith("search."):
                raise
            return record | {"state": "refused", "suggested": trial.params, "why": str(error), "key": None}
        return record if self.budget.keeps(record) else record | {"state": "infeasible"}

    def _sketch(self, number: int, candidate: Candidate) -> Record:
        if self.sketched is None or self.sketched[0] != number:  # one that waits is asked about again and again
            self.sketched = number, self.task.sketch(candidate)
        return self.sketched[1]

    def _deployed(self, candidate: Candidate, net: str) -> Record:
        """Of the exported network; measured once a network and processor, for all that is decided on it to stand."""
        name = f"deployed {net} on {processor()[0]}"
        if name not in self.study.user_attrs:
            self.study.set_user_attr(name, self.task.deployed(candidate.blueprint, self.config.figures))
        found: Record = self.study.user_attrs[name]
        return found

    def _train(self, record: Record) -> None:
        candidate = self.space(FixedTrial(record["suggested"]))  # in every process of this worker
        folder = self.folder / "trials" / record["key"]
        stop = (lambda history: self._falls_behind(record, history)) if self.config.rungs else None
        label = f"candidate {words(record['suggested'])}"
        try:
            found = self.task.train(candidate, record["key"], self.config.figures, folder, label, stop)
            record |= found | {"state": "stopped" if found["stopped"] else "trained"}
        except DivergedError as error:
            say(str(error))
            record |= {"state": "diverged"}
        except Exception as error:
            # of several processes the others wait for this one: only the end of all of them helps. And where nothing
            # has been trained yet, it is not the candidate's fault.
            if several() or not count(self._records(), *TRIED):
                raise
            say(f"{label}: {error}")
            record |= {"state": "refused", "why": str(error)}
        if processes().is_main_process:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            self._tell(record)

    def _falls_behind(self, record: Record, history: History) -> bool:
        """Whether the epoch just ended is a rung, at which the candidate is not among the better."""
        assert self.hand is not None
        done = len(history.epochs)
        record["rungs"] = {
            str(rung): history.epochs[rung - 1]["top1_val"] for rung in self.config.rungs if rung <= done
        }
        self.hand[0].set_user_attr(RECORD, record)
        if done not in self.config.rungs:
            return False
        others = [trial.user_attrs.get(RECORD, {}) for trial in self.study.get_trials(deepcopy=False) if _counts(trial)]
        there = [
            other | {"top1": other["rungs"][str(done)]}
            for other in others
            if str(done) in other.get("rungs", {}) and other["key"] != record["key"]
        ]
        mine = record | {"top1": record["rungs"][str(done)]}
        return not goes_on(mine, there, self.config.reduction, self.config.goals)

    def _tell(self, record: Record) -> None:
        """End the trial at hand. What was not trained counts for the sampler too: as of no accuracy, and beyond limits.

        All but what could not be built are told as complete: Optuna's NSGA and GP samplers know no others.
        """
        assert self.hand is not None
        trial, lease = self.hand
        trial.set_user_attr(RECORD, record)  # before the state: a finished trial has its record
        if record["state"] == "refused":
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            figures = {name: record.get(name) for name in (*self.config.goals, *self.budget.limits)}
            figures["top1"] = figures.get("top1") or 0.0
            excess = self.budget.excess(figures)
            for limit in self.budget.limits:  # a sampler wants all of them of each trial
                trial.set_constraint(limit, excess.get(limit, max(excess.values(), default=0.0)))
            # of what was refused by one figure the others may be unknown: as bad as the worst that is known
            known = {name: [r[name] for r in self._records() if r.get(name) is not None] for name in figures}
            worst = {name: max(values, default=0.0) for name, values in known.items()}
            self.study.tell(trial, [worst[g] if figures[g] is None else figures[g] for g in self.config.goals])
        self.hand = None
        lease.release()
        self._report(record)

    def _bury(self) -> None:
        """Mark as failed every trial that nobody holds any more, and put it back to be tried again."""
        for trial in self._running():
            if lease := Lease.take(self.folder, trial.number):
                self._put_back(trial, deaths=1)
                lease.release()

    def _put_back(self, trial: Trial | FrozenTrial, deaths: int) -> None:
        """Mark it as failed, and put it back unless it died too often without a checkpoint more."""
        reached = self._reached(trial)
        deaths += trial.user_attrs.get(DEATHS, 0) if trial.user_attrs.get(REACHED) == reached else 0
        back = any(other.user_attrs.get(REPEATS) == trial.number for other in self.study.get_trials(deepcopy=False))
        if deaths > self.config.retries and not back:
            say(f"search: trial {trial.number} died {deaths} times and is given up")
        elif not back:  # before it is marked: a kill between the two loses nothing
            again = {QUESTION: question(self.study, trial), DEATHS: deaths, REACHED: reached, REPEATS: trial.number}
            self.study.enqueue_trial(trial.params, user_attrs=again)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def _reached(self, trial: Trial | FrozenTrial) -> str:
        """The name of its last checkpoint."""
        key = trial.user_attrs.get(RECORD, {}).get("key")
        return max(
            (file.name for file in (self.folder / "trials" / str(key) / "checkpoints").glob("step-*")), default=""
        )

    def _running(self) -> list[FrozenTrial]:
        """Those of other workers."""
        mine = self.hand[0].number if self.hand else -1
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [trial for trial in trials if trial.number != mine]

    def _records(self) -> list[Record]:
        finished = self.study.get_trials(deepcopy=False, states=FINISHED)
        finished.sort(key=lambda trial: (trial.user_attrs[QUESTION], trial.number))
        return [trial.user_attrs[RECORD] | {"number": number} for number, trial in enumerate(finished)]

    def _report(self, record: Record) -> None:
        tried = count(self._records(), *TRIED)
        if record["state"] == "refused":
            say(f"search {tried}/{self.config.trials}: {words(record['suggested'])}: {record['why']}")
            return
        size = f"{record['params'] / 1e3:.1f} k params, {record['macs'] / 1e6:.2f} M MACs"
        outcome = record["state"]
        if outcome in TRIED:
            outcome = f"{record['top1']:.2f}% in {record['seconds']:.1f} s" + ", stopped" * (outcome == "stopped")
        say(f"search {tried}/{self.config.trials}: {words(record['suggested'])}, {size}: {outcome}")

    def _identity(self) -> dict[str, Any]:
        """What a search may not change while it goes on; more trials may be asked for."""
        fields = asdict(self.config)
        fit = fields.pop("fit")
        free = ("trials", "epochs", "within", "retries", "storage")
        named = {name: value for name, value in fields.items() if name not in free}
        named |= {f"fit.{name}": value for name, value in fit.items()}
        identity = {f"search.{name}": value for name, value in named.items()}
        source = None if self.task.source is None else Teacher(self.task.source).identity()
        told = {"data": self.task.data.fingerprint(), "teacher": self.task.teacher.identity(), "source": source}
        return identity | told


def _agreed_on(said: Any) -> Any:
    """What the first process says, in all processes of this launch."""
    if processes().num_processes == 1:
        return said
    heard = [said]
    broadcast_object_list(heard)
    return heard[0]


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the rivals at a rung: those put back stand for those that died."""
    return trial.state in (*FINISHED, TrialState.RUNNING)


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
