"""The meta device, where shapes alone are computed: what is slow there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def swift_recurrence() -> Iterator[None]:
    """LSTMs on the meta device as the matrix products that they are, all steps at once: torch takes them one by one."""
    slow: Any = nn.LSTM.forward

    def forward(self: nn.LSTM, x: Any, *states: Any) -> Any:
        if not isinstance(x, Tensor) or x.device.type != "meta" or self.proj_size:
            return slow(self, x, *states)
        for first in range(0, len(self.all_weights), 1 + self.bidirectional):
            made = []
            for inputs, recurrent, *_ in self.all_weights[first : first + 1 + self.bidirectional]:
                state = x.new_empty(*x.shape[:-1], self.hidden_size)
                made.append((x @ inputs.mT + state @ recurrent.mT)[..., : self.hidden_size])
            x = made[0].new_empty(*x.shape[:-1], len(made) * self.hidden_size)
        return x, None

    nn.LSTM.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.LSTM.forward = slow  # type: ignore[method-assign]
