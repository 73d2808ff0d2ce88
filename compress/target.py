"""The share of a model's cost that is to be kept: what `Prune` and `LowRank` aim at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import torch
from torch import nn

from compress.cost import macs
from compress.export import deployed
from compress.latency import latency
from kd.errors import InputError
from kd.evaluate import Predict

TOLERANCE = 0.03  # how far from its target a stage may end without saying why
Counted = Literal["macs", "params"]
By = Literal["macs", "params", "latency"]
Runtime = Literal["onnxruntime", "torch"]
KINDS: tuple[Counted, ...] = get_args(Counted)
Shape = tuple[int, int, int]


def check(stage: str, target: float, by: str, runtime: str) -> None:
    """Raises InputError for a share that is none, of no known cost, or of time on no known runtime."""
    if not 0 < target < 1:
        raise InputError(f"{stage}.target", target, "must be above 0 and below 1")
    for name, value, known in (("by", by, get_args(By)), ("runtime", runtime, get_args(Runtime))):
        if value not in known:
            raise InputError(f"{stage}.{name}", value, f"must be {' or '.join(known)}")


def cost_of(model: nn.Module, shape: Shape, by: str) -> int:
    """What one (C, H, W) image costs, or what the parameters count."""
    return macs(model, shape) if by == "macs" else sum(parameter.numel() for parameter in model.parameters())


def time_share(reference: nn.Module, shape: Shape, runtime: Runtime) -> Callable[[nn.Module], float]:
    """A function of a model: the time that it takes for an image, relative to the reference, measured in turns."""
    folder, x = TemporaryDirectory(), torch.rand(2, *shape)

    def form(model: nn.Module, name: str) -> Predict:
        return model if runtime == "torch" else deployed(model, x, Path(folder.name) / f"{name}.onnx")

    whole = form(reference, "reference")

    def time(model: nn.Module) -> float:
        models = {"model": form(model, "model"), "reference": whole}
        found = latency(models, shape, batches=(1,), repeats=20, seconds=2.0)
        return float(found["model"]["batch1"]["p50"] / found["reference"]["batch1"]["p50"])

    return time
