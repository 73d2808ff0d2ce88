"""Time per batch, measured so that models can be compared: all of them in turns, in one run."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.file_model import FileModel
from kd.errors import InputError
from kd.evaluate import Predict, inference

_WARM_UP = 3  # rounds that are not counted: first runs allocate and fill caches


def latency(
    models: Mapping[str, Predict],
    image_shape: tuple[int, int, int],
    batches: Sequence[int] = (1, 32),
    repeats: int = 10,
    threads: int = 1,
    seconds: float = 8.0,
) -> dict[str, dict[str, Any]]:
    """Median and 95th percentile of the milliseconds that each model takes for a batch of (C, H, W) images.

    The models take turns, round after round, each time in another order, so that whatever else the machine does and
    whatever ran before meets all alike. Each runs on its own runtime: a file on that which it is for, anything else on
    torch; to compare runtimes, give a model in both forms.

    Args:
        models: by name.
        batches: the batch sizes.
        repeats: fewest rounds a batch size, which may take longer than `seconds`.
        threads: of each runtime.
        seconds: about how long it takes in all; more rounds are made while there is time.

    Returns:
        A JSON-able {name: {"runtime": ..., "threads": ..., "batch1": {"p50": ms, "p95": ms}, "batch32": ...}}.
    """
    for field, value in (("repeats", repeats), ("threads", threads), ("batch", min(batches, default=0))):
        if value < 1:
            raise InputError(f"latency.{field}", value, "must be 1 or more")
    found: dict[str, dict[str, Any]] = {
        name: {"runtime": getattr(model, "runtime", "torch"), "threads": threads} for name, model in models.items()
    }
    ready = {name: model.on(threads) if isinstance(model, FileModel) else model for name, model in models.items()}
    with torch_threads(threads), ExitStack() as stack:
        for model in models.values():
            stack.enter_context(inference(model))
        for batch in batches:
            x = torch.rand(batch, *image_shape, generator=torch.Generator().manual_seed(0))
            calls = {name: _call(model, x) for name, model in ready.items()}
            for name, times in _take_turns(calls, repeats, seconds / len(batches)).items():
                p50, p95 = np.percentile(times, [50, 95])
                found[name][f"batch{batch}"] = {"p50": 1e3 * float(p50), "p95": 1e3 * float(p95)}
    return found


def _call(model: Predict, x: Tensor) -> Callable[[], object]:
    """What is timed: the runtime's own call, its input at hand."""
    if isinstance(model, FileModel):
        return model.ready(x)
    return lambda: model(x)


def _take_turns(calls: Mapping[str, Callable[[], object]], repeats: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, round by round, until there are `repeats` rounds and `seconds` are over."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, draws = list(calls.items()), random.Random(0)
    start, rounds = time.perf_counter(), -_WARM_UP
    while rounds < repeats or time.perf_counter() - start < seconds:
        draws.shuffle(order)  # a large model leaves cold caches to the one behind it
        for name, call in order:
            before = time.perf_counter()
            call()
            elapsed = time.perf_counter() - before
            if rounds >= 0:
                times[name].append(elapsed)
        rounds += 1
    return times


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch computes with so many, and with as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
