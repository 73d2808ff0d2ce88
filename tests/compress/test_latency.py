from __future__ import annotations

import json
import time

import pytest
import torch
from torch import nn

from compress import latency
from kd.errors import InputError


class Fake:
    """Takes `seconds` for a batch and writes its name down."""

    def __init__(self, name: str, seconds: float, log: list[tuple[str, int]]) -> None:
        self.name, self.seconds, self.log = name, seconds, log

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append((self.name, len(x)))
        time.sleep(self.seconds)
        return x


def test_models_take_turns_within_one_run():
    log: list[tuple[str, int]] = []
    found = latency({name: Fake(name, 0.002, log) for name in "abc"}, (1, 2, 2), batches=(1, 4), repeats=5, seconds=0)

    assert len(log) % 6 == 0
    assert len(log) >= 2 * 3 * 5
    rounds = [log[start : start + 3] for start in range(0, len(log), 3)]
    for number, turn in enumerate(rounds):
        batch = 1 if number < len(rounds) // 2 else 4
        assert sorted(turn) == [("a", batch), ("b", batch), ("c", batch)]
    assert len({tuple(turn) for turn in rounds}) > 2, "none is always behind the same other"
    assert list(found) == ["a", "b", "c"]


def test_median_and_tail_in_milliseconds_without_the_warm_up():
    log: list[tuple[str, int]] = []
    slow = Fake("slow", 0.02, log)

    class FirstIsSlow(Fake):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            self.seconds = 0.2 if not self.log else 0.0  # compilation, say
            return super().__call__(x)

    found = latency({"slow": slow, "quick": FirstIsSlow("quick", 0, [])}, (1, 2, 2), batches=(1,), seconds=0)
    assert 20 <= found["slow"]["batch1"]["p50"] <= found["slow"]["batch1"]["p95"] < 100
    assert found["quick"]["batch1"]["p95"] < 20


def test_more_rounds_while_there_is_time_but_no_more_than_that():
    log: list[tuple[str, int]] = []
    start = time.perf_counter()
    latency({"a": Fake("a", 0.005, log), "b": Fake("b", 0.005, log)}, (1, 2, 2), repeats=2, seconds=0.6)
    assert 0.6 <= time.perf_counter() - start < 1.2
    assert len(log) > 2 * 2 * 10


def test_each_on_its_own_runtime_and_left_as_it_was(exported, trained):
    threads = torch.get_num_threads()
    seen: list[int] = []

    class Watch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            assert not self.training
            assert not torch.is_grad_enabled()
            return x

    watch = Watch().train()
    found = latency({"file": exported, "module": trained, "watch": watch}, (1, 8, 8), (1, 2), 2, threads + 1, 0)
    assert [found[name]["runtime"] for name in ("file", "module", "watch")] == ["onnxruntime", "torch", "torch"]
    assert json.loads(json.dumps(found)) == found
    assert set(found["file"]) == {"runtime", "threads", "batch1", "batch2"}
    assert set(seen) == {threads + 1}
    assert torch.get_num_threads() == threads
    assert watch.training


@pytest.mark.parametrize("settings", [{"repeats": 0}, {"threads": 0}, {"batches": (0,)}, {"batches": ()}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(InputError, match="must be 1 or more"):
        latency({"a": nn.Identity()}, (1, 2, 2), **settings)
