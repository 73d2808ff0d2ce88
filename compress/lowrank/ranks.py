"""Which layer is factorised at which rank, so that little is lost under one limit of cost for all."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """One way to have a layer.

    Attributes:
        ranks: of its factors, one a mode; none where the layer stays as it is.
        cost: in the unit of the limit.
        lost: the share of the energy of its outputs that is lost, at most or about.
        method: that makes the factors.
    """

    ranks: tuple[int, ...]
    cost: int
    lost: float
    method: str = ""


def choices(energy: Tensor, cost: Callable[[tuple[int, ...]], int], least: int = 1, method: str = "") -> list[Choice]:
    """Ways of one method to have a layer.

    The modes are cut to lose alike. Of all pairs of ranks, the ones that keep the most energy for their cost cut one
    mode hard and the other not at all, and were measured to keep fewer right answers.

    Args:
        energy: one dimension a mode; factors at ranks (a, b, ...) keep the sum of energy[:a, :b, ...].
        cost: of the factors at the given ranks.
        least: the least rank.
    """
    kept = energy.double() / max(float(energy.sum()), 1e-300)
    total = kept.sum()  # 1, or 0 where there is nothing to lose
    for mode in range(energy.dim()):
        kept = kept.cumsum(mode)
    lost = (total - kept).clamp(min=0)
    alone = [lost.movedim(mode, 0).reshape(size, -1)[:, -1].tolist() for mode, size in enumerate(energy.shape)]
    found = []
    for limit in alone[0][min(least, len(alone[0])) - 1 :]:
        ranks = tuple(_rank(losses, limit, least) for losses in alone)
        found.append(Choice(ranks, cost(ranks), float(lost[tuple(rank - 1 for rank in ranks)]), method))
    return found


def front(whole: int, found: Iterable[Choice]) -> list[Choice]:
    """The layer as it is, which costs `whole`, then the choices that are cheaper, the dearest first, less those that
    another one beats in both cost and loss."""
    best: list[Choice] = []
    for choice in sorted(found, key=lambda choice: (choice.cost, choice.lost)):
        if choice.cost < whole and (not best or choice.lost < best[-1].lost):
            best.append(choice)
    return [Choice((), whole, 0.0), *reversed(best)]


def _rank(lost: Sequence[float], limit: float, least: int) -> int:
    """The first rank at which no more than `limit` is lost, or all of them."""
    full = len(lost)
    return min(full, bisect_left(lost, -limit - 1e-12, lo=min(least, full) - 1, key=lambda value: -value) + 1)


def sufficient(options: Sequence[Choice], energy: float, hints: Mapping[str, Sequence[int]] | None = None) -> Choice:
    """The cheapest of the choices of one layer that loses no more than 1 - `energy` of it.

    Args:
        hints: by method, the ranks below which its choices are left out.
    """
    enough = [
        choice
        for choice in options
        if choice.lost <= 1 - energy + 1e-12
        and all(rank >= hint for rank, hint in zip(choice.ranks, (hints or {}).get(choice.method, ()), strict=False))
    ]
    return min(enough, key=lambda choice: choice.cost)


def allocate(
    layers: Sequence[Sequence[Choice]], limit: int, harms: Sequence[Sequence[float]] | None = None
) -> list[Choice]:
    """A choice for each layer, of little harm in sum, whose costs sum to `limit` at most; the cheapest if none do.

    One price of cost is found for all layers (Everett 1963), then the rest of the limit is spent where it gains most.

    Args:
        harms: of each choice; None: what it loses.
    """
    if harms is None:
        harms = [[choice.lost for choice in layer] for layer in layers]
    tables = [
        [_Priced(harm, choice.cost, choice) for harm, choice in zip(*both, strict=True)]
        for both in zip(harms, layers, strict=True)
    ]

    def at(price: float) -> list[_Priced]:
        return [min(table, key=lambda entry: entry.harm + price * entry.cost) for table in tables]

    def total(chosen: Sequence[_Priced]) -> int:
        return sum(entry.cost for entry in chosen)

    low, high = 1e-24, 1e3  # at the high one all is cheapest
    for _ in range(64):
        price = (low * high) ** 0.5
        low, high = (low, price) if total(at(price)) <= limit else (price, high)
    chosen = at(high)
    return [entry.choice for entry in _spent(tables, chosen, limit - total(chosen))]


class _Priced(NamedTuple):
    harm: float
    cost: int
    choice: Choice


def _spent(tables: Sequence[Sequence[_Priced]], chosen: list[_Priced], room: int) -> list[_Priced]:
    """A single price skips choices between two that it finds equally good."""
    while True:
        moves = [
            ((now.harm - other.harm) / (other.cost - now.cost), place, other)
            for place, (table, now) in enumerate(zip(tables, chosen, strict=True))
            for other in table
            if now.cost < other.cost <= now.cost + room and other.harm < now.harm
        ]
        if not moves:
            return chosen
        _, place, best = max(moves, key=lambda move: move[0])
        room -= best.cost - chosen[place].cost
        chosen[place] = best
