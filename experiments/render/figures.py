"""Numbers as people read them: three significant digits, decimal units, a dash where nothing is known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import wraps

MISSING = "–"

Form = Callable[[float | None], str]


def _or_missing(form: Callable[[float], str]) -> Form:
    @wraps(form)
    def shown(value: float | None) -> str:
        return MISSING if value is None else form(value)

    return shown


def _significant(value: float) -> str:
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    rounded = float(f"{value:.3g}")  # first, as 9.996 has a digit less before the point than 10.0
    decimals = 2 - math.floor(math.log10(abs(rounded))) if rounded else 0
    return f"{rounded:.{decimals}f}"


def _scaled(value: float, units: Sequence[str]) -> str:
    power = 0
    while value >= 999.5 and power < len(units) - 1:  # 999.6 would be shown as 1000
        value, power = value / 1000, power + 1
    return f"{_significant(value) if power else round(value)} {units[power]}".rstrip()


@_or_missing
def percent(value: float) -> str:
    """98.12, without the sign."""
    return f"{value:.2f}"


@_or_missing
def count(value: float) -> str:
    """40.8 M."""
    return _scaled(value, ("", "k", "M", "G", "T"))


@_or_missing
def size(value: float) -> str:
    """278 kB, of bytes; a kB is 1000 of them."""
    return _scaled(value, ("B", "kB", "MB", "GB"))


@_or_missing
def milliseconds(value: float) -> str:
    """0.312, without the unit."""
    return _significant(value)


@_or_missing
def times(value: float) -> str:
    """4.00×."""
    return f"{_significant(value)}×"


@_or_missing
def duration(value: float) -> str:
    """2 min 5 s, of seconds."""
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """97.41 ± 1.34: mean and standard deviation of a sample; the mean alone of one value."""
    if not values:
        return MISSING
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
