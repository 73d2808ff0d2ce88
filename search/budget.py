"""`Budget`: what a student may cost, and how good it must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kd.errors import InputError


@dataclass(frozen=True)
class Budget:
    """Limits on a student; None sets no limit.

    Attributes:
        params: number of parameters.
        macs: multiply-accumulates an image.
        file_bytes: of the exported file.
        latency_ms: milliseconds an image on the deployed runtime, one thread.
        top1: the least accuracy on validation, percent.
        params_share, macs_share: params and macs as shares of the teacher's, above 0.
    """

    params: int | None = None
    macs: int | None = None
    file_bytes: int | None = None
    latency_ms: float | None = None
    top1: float | None = None
    params_share: float | None = None
    macs_share: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"search.budget.{name}", value, "must be a number above 0")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, shares aside, by the figure that they are about."""
        return {name: v for name, v in vars(self).items() if v is not None and not name.endswith("_share")}

    @property
    def relative(self) -> bool:
        return self.params_share is not None or self.macs_share is not None

    def absolute(self, params: int, macs: int) -> Budget:
        """The same budget without shares, for a teacher of this size; of a limit and a share the tighter counts."""
        tight = _tighter(self.params, self.params_share, params), _tighter(self.macs, self.macs_share, macs)
        return Budget(*tight, self.file_bytes, self.latency_ms, self.top1)

    def excess(self, point: Mapping[str, Any]) -> dict[str, float]:
        """By how much each limit is exceeded, as a share of the limit; 0 or less where it is kept.

        Limits on figures that `point` lacks (they are None or not there) are left out.
        """
        known = {name: limit for name, limit in self.limits.items() if point.get(name) is not None}
        shares = {name: point[name] / limit - 1 for name, limit in known.items()}
        return {name: -share if name == "top1" else share for name, share in shares.items()}

    def keeps(self, point: Mapping[str, Any]) -> bool:
        return all(value <= 0 for value in self.excess(point).values())


def _tighter(limit: int | None, share: float | None, whole: int) -> int | None:
    limits = [value for value in (limit, None if share is None else max(1, int(share * whole))) if value is not None]
    return min(limits, default=None)
