"""The one training loop: any regime, any data, any number of processes, exactly resumable."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kd.batch import Batch, Clock, Step, View
from kd.checkpoint import Checkpoints, Tree, atomic_write
from kd.console import progress, say
from kd.errors import DivergedError, InputError
from kd.evaluate import evaluate
from kd.loss import several
from kd.regimes.regime import Regime
from kd.settings import Fit, check_accelerator, make_accelerator, make_optimizer, make_scheduler

if TYPE_CHECKING:
    from accelerate import Accelerator

    from kd.data import Data


@dataclass
class History:
    """What happened: one dict an epoch (loss and parts, top-1 of each candidate in percent, rate, seconds), the best of
    them, and whether whoever was asked put an end to it."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    best_top1: float = -math.inf
    best_name: str = ""
    stopped: bool = False

    @property
    def seconds(self) -> float:
        return sum(epoch["seconds"] for epoch in self.epochs)

    @property
    def ranking(self) -> dict[str, float]:
        """Top-1 of each candidate in the epoch that was kept, best first."""
        best = self.epochs[self.best_epoch]
        scores = {name.removeprefix("top1_val_"): best[name] for name in best if name.startswith("top1_val_")}
        scores = scores or {self.best_name: self.best_top1}
        return dict(sorted(scores.items(), key=lambda item: -item[1]))


class _Run:
    """Everything that a checkpoint must hold, and how it gets there and back."""

    def __init__(self, regime: Regime, data: Data, config: Fit, accelerator: Accelerator, folder: Path | None) -> None:
        self.data, self.config, self.accelerator, self.folder = data, config, accelerator, folder
        self.regime = regime
        self.batches = data.steps(config.batch_size * accelerator.num_processes, regime.demands)
        self.steps = self.batches // config.accumulate
        if self.steps == 0:
            raise InputError("fit.accumulate", config.accumulate, f"an epoch has {self.batches} batches only")
        self.optimizer = make_optimizer(regime, config)
        self.scheduler = make_scheduler(self.optimizer, config, self.steps)
        self.history = History()
        self.best: Tree = None
        self.epoch, self.step = 0, 0  # the step is counted over the whole run
        self.sums: dict[str, Tensor] = {}  # of the losses of this epoch
        self.seconds, self._since = 0.0, time.perf_counter()  # spent on this epoch
        self.checkpoints = Checkpoints(folder / "checkpoints") if folder else None
        if config.channels_last:
            regime.to(memory_format=torch.channels_last)
        model = torch.compile(regime) if config.compile else regime
        self.model, self.optimizer = accelerator.prepare(model, self.optimizer)
        self.ema: Any = None
        if config.ema is not None:
            from timm.utils import ModelEmaV3

            self.ema = ModelEmaV3(regime, decay=config.ema, use_warmup=True)

    @property
    def shipped(self) -> Regime:
        """The regime whose candidates are validated and kept."""
        return self.regime if self.ema is None else self.ema.module

    def state(self) -> Tree:
        scaler = self.accelerator.scaler
        return {
            "config": json.dumps(asdict(self.config)),
            "world": self.accelerator.num_processes,
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "seconds": self.seconds,
            "regime": self.regime.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "history": asdict(self.history),
            "best": self.best,
        }

    def restore(self, state: Tree) -> None:
        for name, now in asdict(self.config).items():
            then = json.loads(state["config"]).get(name)
            if then != json.loads(json.dumps(now)):
                raise InputError(f"fit.{name}", now, f"the run at {self.folder} was started with {then}")
        if state["world"] != self.accelerator.num_processes:
            raise InputError(
                "num_processes", self.accelerator.num_processes, f"the run was started on {state['world']}"
            )
        try:
            self.regime.load_state_dict(state["regime"])
        except RuntimeError as error:
            raise InputError("checkpoint", str(self.folder), f"is of another model: {error}") from error
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.sums = {name: value.to(self.accelerator.device) for name, value in state["sums"].items()}
        self.history, self.best = History(**state["history"]), state["best"]
        self.scheduler.step_update(self.step)

    def save(self) -> None:
        if self.folder is None or self.checkpoints is None or not self.accelerator.is_main_process:
            return
        lines = "".join(json.dumps(epoch) + "\n" for epoch in self.history.epochs)
        atomic_write(self.folder / "metrics.jsonl", lines)
        self.checkpoints.save(self.step, self.state())

    def tick(self) -> None:
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now


def fit(
    regime: Regime,
    data: Data,
    config: Fit,
    folder: Path | None = None,
    accelerator: Accelerator | None = None,
    label: str = "training",
    stop: Callable[[History], bool] | None = None,
) -> History:
    """Train `regime` on `data` and leave it with the weights that were selected on validation, or, where it has no
    candidates, with the last.

    Args:
        folder: checkpoints, metrics.jsonl and tracker events go here, and a run that was killed resumes from here, bit
            for bit on one CPU process. None keeps nothing.
        accelerator: None makes one for `config`.
        stop: asked after each epoch, in the first process, whether to end here; asked again where a run resumes.

    Raises:
        InputError: a field of `config` that cannot be or that the accelerator was not made for, or a folder that holds
            another run.
        DivergedError: the loss became NaN or infinite; the last good checkpoint is kept.
    """
    accelerator = accelerator or make_accelerator(config, folder)
    check_accelerator(accelerator, config)
    torch.manual_seed(config.seed)
    regime.bind(replace(data.facts, batch_size=config.batch_size * accelerator.num_processes))
    if regime.demands.hard_labels and data.facts.soft_labels:
        raise InputError("data.augment", "mixup or cutmix", f"{type(regime).__name__} is defined for hard labels only")
    run = _Run(regime, data, config, accelerator, folder)
    state = run.checkpoints.latest() if run.checkpoints is not None else None
    if state is not None:
        run.restore(state)
        if run.epoch < config.epochs and not _stalled(run.history, config):
            say(f"{label}: resumes at epoch {run.epoch + 1} of {config.epochs}")
    with _tracking(run) as track, progress(label, config.epochs * run.steps, run.step) as advance:
        run.tick()
        run.seconds = 0.0 if state is None else state["seconds"]
        while run.epoch < config.epochs and not _stalled(run.history, config) and not _stopped(run, stop):
            for _ in _epoch(run):
                run.tick()
                advance(1, f"epoch {run.epoch + 1}/{config.epochs}")
                if config.checkpoint_steps and run.step % config.checkpoint_steps == 0 and run.step % run.steps:
                    _check(run)
                    run.save()
            record = _close_epoch(run)
            track(record)
            if accelerator.is_main_process:
                scores = " ".join(f"{name} {value:.2f}" for name, value in record.items() if name.startswith("top1"))
                say(f"{label}: epoch {run.epoch}/{config.epochs} loss {record['loss']:.4f} {scores}")
            run.save()
    regime.load_state_dict(run.best)
    return run.history


def _stalled(history: History, config: Fit) -> bool:
    return config.patience is not None and len(history.epochs) - 1 - history.best_epoch >= config.patience


def _stopped(run: _Run, stop: Callable[[History], bool] | None) -> bool:
    if stop is None or not run.history.epochs:
        return False
    said = run.accelerator.is_main_process and stop(run.history)
    if several():
        told = torch.tensor(float(said), device=run.accelerator.device)
        dist.broadcast(told, 0)
        said = bool(told)
    run.history.stopped = said
    return said


def _epoch(run: _Run) -> Iterator[None]:
    """Train for the rest of the current epoch; yields after every optimiser step."""
    config, accelerator = run.config, run.accelerator
    world, rank = accelerator.num_processes, accelerator.process_index
    first, last = (run.step - run.epoch * run.steps) * config.accumulate, run.steps * config.accumulate
    batches = run.data.batches(
        run.epoch,
        batch_size=config.batch_size * world,
        demands=run.regime.demands,
        seed=config.seed,
        rank=rank,
        world=world,
        start=first,
    )
    run.model.train()
    for number, views in zip(range(first, last), batches, strict=False):
        batch = Batch(_place(views, run), Clock(run.step, config.epochs * run.steps, run.epoch, config.epochs))
        # dropout is a pure function of (seed, place in the run, rank) too: nothing of it to restore
        torch.manual_seed(hash((config.seed, run.epoch, number, rank)) % 2**63)
        with accelerator.accumulate(run.model):
            with torch.no_grad(), accelerator.autocast():
                guides = run.regime.guide(batch)
            step: Step = run.model(batch, guides)
            accelerator.backward(step.loss)
            if accelerator.sync_gradients and config.clip is not None:
                accelerator.clip_grad_norm_(run.regime.parameters(), config.clip)
            run.optimizer.step()
            run.optimizer.zero_grad()
        for name, value in {"loss": step.loss, **step.parts}.items():
            run.sums[name] = run.sums.get(name, 0.0) + value.detach().double() / last
        # between optimiser steps that flag is still about the last of them
        if not (accelerator.sync_gradients and accelerator.optimizer_step_was_skipped):
            run.regime.after_step(batch, step)
        if not accelerator.sync_gradients:
            continue
        run.step += 1
        run.scheduler.step_update(run.step)
        if run.ema is not None:
            run.ema.update(run.regime, step=run.step)
        if run.step % 20 == 0:
            _check(run)
        yield


def _place(views: tuple[View, ...], run: _Run) -> tuple[View, ...]:
    device = run.accelerator.device
    layout = torch.channels_last if run.config.channels_last else torch.contiguous_format
    return tuple(
        View(view.x.to(device).contiguous(memory_format=layout), view.y.to(device), view.index.to(device), view.draw)
        for view in views
    )


def _check(run: _Run) -> None:
    """Raise where a loss of this epoch (then their sum) or a weight is not finite; seldom, for it waits for the device.

    Weights go first where a finite loss has an infinite gradient, and no such checkpoint may be written.
    """
    weights = torch.nn.utils.get_total_norm(p.detach() for p in run.regime.parameters())
    if not torch.isfinite(run.sums["loss"] + weights):
        raise _diverged(run, "the loss or a weight")


def _diverged(run: _Run, what: str) -> DivergedError:
    kept = f"; the last good checkpoint is kept in {run.folder}" if run.folder else ""
    where = f"epoch {run.epoch + 1}, by step {run.step}"
    return DivergedError(f"{what} became NaN or infinite in {where}: lower fit.lr or set fit.clip{kept}")


def _close_epoch(run: _Run) -> dict[str, Any]:
    """Validate every candidate, remember the best weights, and move on to the next epoch."""
    _check(run)
    history, candidates = run.history, run.shipped.candidates()
    means = run.accelerator.reduce(torch.stack(list(run.sums.values())), "mean").tolist()
    _agree(candidates.values() or (run.shipped,))
    record: dict[str, Any] = {"epoch": run.epoch, "lr": run.optimizer.param_groups[0]["lr"]}
    record |= dict(zip(run.sums, means, strict=True))
    scores = {name: _validate(candidate, run) for name, candidate in candidates.items()}
    name = max(scores, key=lambda key: scores[key], default="")
    top1 = scores.get(name, -math.inf)
    if scores:
        record["top1_val"] = top1
    record |= {f"top1_val_{key}": score for key, score in scores.items() if len(scores) > 1}
    if top1 > history.best_top1 or run.config.select == "last" or not scores:
        history.best_top1, history.best_epoch, history.best_name = top1, run.epoch, name
        run.best = {key: value.detach().cpu().clone() for key, value in run.shipped.state_dict().items()}
    run.tick()
    record["seconds"] = run.seconds
    history.epochs.append(record)
    run.epoch, run.sums, run.seconds = run.epoch + 1, {}, 0.0
    return record


def _agree(candidates: Iterable[nn.Module]) -> None:
    """Of several processes each has its own BatchNorm statistics: those of the first are kept, so all are scored by
    them."""
    if several():
        for buffer in chain.from_iterable(candidate.buffers() for candidate in candidates):
            dist.broadcast(buffer, 0)


def _validate(candidate: nn.Module, run: _Run) -> float:
    accelerator = run.accelerator
    views = run.data.evaluation("val", rank=accelerator.process_index, world=accelerator.num_processes)
    metrics = evaluate(candidate, (_place((view,), run)[0] for view in views))
    if not math.isfinite(metrics.nll):
        raise _diverged(run, "the answers on validation")
    return metrics.top1


@contextmanager
def _tracking(run: _Run) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Hands epochs to accelerate's trackers; to none where nothing is kept."""
    accelerator = run.accelerator
    if run.folder is None or not run.config.trackers:
        yield lambda record: None
        return
    accelerator.init_trackers("events")
    try:
        yield lambda record: accelerator.log(record, step=record["epoch"])
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
