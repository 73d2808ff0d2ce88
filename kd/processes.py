"""The processes of this run, as accelerate sees them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import PartialState


def on_cpu() -> bool:
    """Whether to leave accelerators alone: there is none, or `accelerate launch --cpu` asked for it."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return asked or not torch.accelerator.is_available()


def processes() -> PartialState:
    """accelerate's state. Made first without its `cpu`, it would take several processes on the CPU for one."""
    from accelerate import PartialState

    return PartialState(cpu=on_cpu())
