"""Undecoded images with labels, wherever they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

Encoded = bytes | str | np.ndarray  # a file's content, its path, or (H, W) grey pixels


class Table(Protocol):
    """One part of a source. It crosses process borders."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    def fetch(self, rows: list[int]) -> Sequence[Encoded]: ...

    def title(self, row: int) -> str:
        """The words that name a row to a user."""


@dataclass(frozen=True)
class Source:
    """All that a source gives.

    Attributes:
        test: None where the source has none: a part of train is then held out.
        names: of the classes.
        identity: changes where the content does.
    """

    train: Table
    test: Table | None
    names: tuple[str, ...]
    identity: str
