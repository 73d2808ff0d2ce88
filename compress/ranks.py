"""Which layer is factorised at which rank, so that little is lost under one limit of cost for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

LEVELS = 48  # ranks that are tried along each mode of a layer


@dataclass(frozen=True)
class Choice:
    """One way to have a layer.

    Attributes:
        ranks: of its factors, one a mode; none where the layer stays as it is.
        cost: in the unit of the limit.
        lost: the share of the energy of its outputs that is lost, at most.
    """

    ranks: tuple[int, ...]
    cost: int
    lost: float


def choices(whole: int, energies: Sequence[Tensor], cost: Callable[..., int], least: int = 1) -> list[Choice]:
    """The ways to have a layer, the dearest first, less those that another beats in both cost and loss.

    Args:
        whole: the cost of the layer as it is: the first choice.
        energies: for each mode, (r,) energies of its directions, largest first.
        cost: of the factors at the given rank of each mode.
        least: the least rank.
    """
    lost = [_tails(energy) for energy in energies]
    floor = [min(least, len(energy)) for energy in energies]

    def levels(mode: int) -> list[int]:
        others = [floor[:mode], floor[mode + 1 :]]
        cheaper = [r for r in range(floor[mode], len(energies[mode]) + 1) if cost(*others[0], r, *others[1]) < whole]
        count = min(LEVELS, len(cheaper))
        return [cheaper[len(cheaper) * (i + 1) // count - 1] for i in range(count)] + cheaper[:1]

    found = [
        Choice(ranks, cost(*ranks), sum(tail[rank] for tail, rank in zip(lost, ranks, strict=True)))
        for ranks in product(*map(levels, range(len(energies))))
    ]
    front: list[Choice] = []
    for choice in sorted([*found, Choice((), whole, 0.0)], key=lambda choice: (choice.cost, choice.lost)):
        if choice.cost <= whole and (not front or choice.lost < front[-1].lost or not choice.ranks):
            front.append(choice)
    return front[::-1]


def allocate(layers: Sequence[Sequence[Choice]], limit: int) -> list[Choice]:
    """A choice for each layer, of little loss in sum, whose costs sum to `limit` at most; the cheapest if none do.

    One price of cost is found for all layers (Everett 1963), then the rest of the limit is spent where it gains most.
    """

    def at(price: float) -> list[Choice]:
        return [min(layer, key=lambda choice: choice.lost + price * choice.cost) for layer in layers]

    def total(chosen: Sequence[Choice]) -> int:
        return sum(choice.cost for choice in chosen)

    cheapest = [layer[-1] for layer in layers]
    if total(cheapest) >= limit:
        return cheapest
    low, high = 1e-24, 1e3
    for _ in range(64):
        price = (low * high) ** 0.5
        low, high = (low, price) if total(at(price)) <= limit else (price, high)
    chosen = at(high)
    return _spend(layers, chosen, limit - total(chosen))


def _spend(layers: Sequence[Sequence[Choice]], chosen: list[Choice], room: int) -> list[Choice]:
    """A single price skips choices between two that it finds equally good."""
    while True:
        moves = [
            ((now.lost - choice.lost) / (choice.cost - now.cost), place, choice)
            for place, (layer, now) in enumerate(zip(layers, chosen, strict=True))
            for choice in layer
            if now.cost < choice.cost <= now.cost + room
        ]
        if not moves:
            return chosen
        _, place, choice = max(moves, key=lambda move: move[0])
        room -= choice.cost - chosen[place].cost
        chosen[place] = choice


def _tails(energy: Tensor) -> list[float]:
    """The share of the energy that each rank from 0 on leaves out."""
    tails = energy.flip(0).cumsum(0).flip(0) / energy.sum().clamp(min=1e-300)
    return [*tails.tolist(), 0.0]
