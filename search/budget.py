"""`Budget`: what a student may cost."""

from __future__ import annotations

from dataclasses import dataclass

from kd.errors import InputError


@dataclass(frozen=True)
class Budget:
    """Limits on the size of a student; None sets no limit.

    Attributes:
        params: number of parameters.
        macs: multiply-accumulates an image.
        params_share, macs_share: the same as shares of the teacher's, above 0.
    """

    params: int | None = None
    macs: int | None = None
    params_share: float | None = None
    macs_share: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"search.budget.{name}", value, "must be a number above 0")

    @property
    def limited(self) -> bool:
        return any(value is not None for value in vars(self).values())

    @property
    def relative(self) -> bool:
        return self.params_share is not None or self.macs_share is not None

    def absolute(self, params: int, macs: int) -> Budget:
        """The same budget without shares, for a teacher of this size; of a limit and a share the tighter counts."""
        return Budget(_tighter(self.params, self.params_share, params), _tighter(self.macs, self.macs_share, macs))

    def excess(self, params: int, macs: int) -> dict[str, float]:
        """By how much each limit is exceeded, as a share of the limit; 0 or less where it is kept."""
        limits = {"params": (params, self.params), "macs": (macs, self.macs)}
        return {name: size / limit - 1 for name, (size, limit) in limits.items() if limit is not None}

    def keeps(self, params: int, macs: int) -> bool:
        return all(value <= 0 for value in self.excess(params, macs).values())


def _tighter(limit: int | None, share: float | None, whole: int) -> int | None:
    limits = [value for value in (limit, None if share is None else max(1, int(share * whole))) if value is not None]
    return min(limits, default=None)
