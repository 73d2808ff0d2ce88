"""`Fit`: how a regime is trained, and the optimiser, the schedule and the accelerator that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import torch

from kd.errors import InputError
from kd.processes import on_cpu
from kd.regimes.regime import Regime

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Fit:
    """How a regime is trained.

    Attributes:
        epochs: passes over the training split.
        batch_size: images a process and step; the whole batch is this times the number of processes.
        optimizer: a name of timm's optimiser factory (sgd, adamw, lamb, ...).
        lr, momentum, weight_decay: of the optimiser. Norms and biases are not decayed.
        scheduler: "cosine", "tanh", "poly" (power 0.9) or "multistep" of timm, or "none": constant.
        warmup_epochs: linear warm-up of the learning rate from a hundredth of it.
        milestones: the epochs at which "multistep" multiplies the rate by a tenth.
        min_lr: where cosine, tanh and poly end.
        precision: "no" (float32), "fp16" with loss scaling (not on the CPU), or "bf16" autocast.
        accumulate: batches whose gradients are added up before an optimiser step; an epoch drops those left over.
        clip: largest norm of the gradient; None leaves it alone.
        ema: decay of an exponential moving average of the weights, which is then what is validated and kept.
        channels_last: memory layout of models and images.
        compile: run the regime through torch.compile.
        select: keep the weights of the "best" epoch on validation, or of the "last".
        patience: stop after this many epochs without a better one, where the best is selected; None never does.
        checkpoint_steps: also write a checkpoint every so many steps within an epoch; None writes one an epoch.
        trackers: names of accelerate's trackers, beside metrics.jsonl.
        seed: of weights drawn in training, dropout and the order of the samples.
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    scheduler: Literal["cosine", "tanh", "poly", "multistep", "none"] = "cosine"
    warmup_epochs: int = 0
    milestones: tuple[int, ...] = ()
    min_lr: float = 0.0
    precision: Literal["no", "fp16", "bf16"] = "no"
    accumulate: int = 1
    clip: float | None = None
    ema: float | None = None
    channels_last: bool = False
    compile: bool = False
    select: Literal["best", "last"] = "best"
    patience: int | None = None
    checkpoint_steps: int | None = None
    trackers: tuple[str, ...] = ("tensorboard",)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Fit).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise InputError(f"fit.{name}", getattr(self, name), f"must be one of: {', '.join(get_args(kind))}")
        for name in ("epochs", "batch_size", "accumulate", "patience", "checkpoint_steps", "lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"fit.{name}", value, "must be above 0")
        for name in ("warmup_epochs", "weight_decay", "momentum", "min_lr"):
            if getattr(self, name) < 0:
                raise InputError(f"fit.{name}", getattr(self, name), "must be 0 or above")
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError("fit.ema", self.ema, "must lie between 0 and 1")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise InputError("fit.warmup_epochs", self.warmup_epochs, f"must be below fit.epochs ({self.epochs})")
        if self.precision == "fp16" and on_cpu():  # accelerate would train in float32 without a word
            raise InputError("fit.precision", self.precision, "cannot be had on the CPU: use bf16 or no")
        if self.patience is not None and self.select == "last":
            raise InputError("fit.patience", self.patience, 'needs fit.select "best": the last epoch is always kept')
        for name in self.trackers:
            if name != "tensorboard":  # comes with us
                _check_tracker(name)


def make_accelerator(config: Fit, folder: Path | None = None) -> Accelerator:
    """An Accelerator for one fit of this configuration, in a process that may have had one for another before."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    AcceleratorState._reset_state()  # precision is global to accelerate; the process group outlives this
    try:
        return Accelerator(
            cpu=on_cpu(),
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulate,
            log_with=list(config.trackers) if folder and config.trackers else None,
            project_dir=folder,
            # DDP must not overwrite the banks of a rank with those of rank 0
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except ValueError as error:
        raise InputError("fit.precision", config.precision, f"cannot be had here: {error}") from error


def check_accelerator(accelerator: Accelerator, config: Fit) -> None:
    """Raise InputError where it was made for another configuration."""
    made = {"precision": accelerator.mixed_precision, "accumulate": accelerator.gradient_accumulation_steps}
    for name, value in made.items():
        if value != getattr(config, name):
            raise InputError(f"fit.{name}", getattr(config, name), f"the accelerator was made for {value}")


def _check_tracker(name: str) -> None:
    """accelerate itself would go on without one that is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise InputError("fit.trackers", name, f"unknown; known: {', '.join(LOGGER_TYPE_TO_CLASS)}")
    if name not in map(str, get_available_trackers()):
        raise InputError("fit.trackers", name, f"is not installed: pip install {name}")


def make_optimizer(regime: Regime, config: Fit) -> torch.optim.Optimizer:
    """timm's, of all that trains. Raises InputError for one that is not there, or not with these values."""
    from timm.optim import create_optimizer_v2, list_optimizers

    if config.optimizer not in list_optimizers():
        known = ", ".join(map(str, list_optimizers()))
        raise InputError("fit.optimizer", config.optimizer, f"unknown; known: {known}")
    try:
        optimizer = create_optimizer_v2(
            regime, config.optimizer, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
    except (ValueError, AssertionError) as error:  # the latter where it is of a library or device that is not here
        raise InputError("fit.optimizer", config.optimizer, f"cannot be had with these values: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise InputError("fit.optimizer", config.optimizer, "needs second derivatives, which are not computed here")
    return optimizer


def make_scheduler(optimizer: torch.optim.Optimizer, config: Fit, steps: int) -> Any:
    """timm's schedule, counted in optimiser steps."""
    from timm.scheduler import create_scheduler_v2

    scheduler, _ = create_scheduler_v2(
        optimizer,
        "constant" if config.scheduler == "none" else config.scheduler,  # timm's "none" knows no warm-up
        num_epochs=config.epochs - config.warmup_epochs,
        decay_rate=0.9 if config.scheduler == "poly" else 0.1,  # timm's name for the power too
        decay_milestones=[epoch - config.warmup_epochs for epoch in config.milestones],
        min_lr=config.min_lr,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.lr / 100,
        warmup_prefix=True,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return scheduler
