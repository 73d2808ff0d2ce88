"""Which layer is factorised at which rank, so that little is lost under one limit of cost for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


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


def choices(whole: int, energy: Tensor, cost: Callable[..., int], least: int = 1) -> list[Choice]:
    """The ways to have a layer, the dearest first, less those that another beats in both cost and loss.

    The modes are cut to lose alike. Of all pairs of ranks, the ones that keep the most energy for their cost cut one
    mode hard and the other not at all, and were measured to keep fewer right answers.

    Args:
        whole: the cost of the layer as it is: the first choice.
        energy: one dimension a mode; factors at ranks (a, b, ...) keep the sum of energy[:a, :b, ...].
        cost: of the factors at the given rank of each mode.
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
        found.append(Choice(ranks, cost(*ranks), float(lost[tuple(rank - 1 for rank in ranks)])))
    front: list[Choice] = []
    for choice in sorted(found, key=lambda choice: (choice.cost, choice.lost)):
        if choice.cost < whole and (not front or choice.lost < front[-1].lost):
            front.append(choice)
    return [Choice((), whole, 0.0), *reversed(front)]


def _rank(lost: Sequence[float], limit: float, least: int) -> int:
    """The first rank at which no more than `limit` is lost, or all of them."""
    full = len(lost)
    return next((rank for rank in range(min(least, full), full) if lost[rank - 1] <= limit + 1e-12), full)


def allocate(layers: Sequence[Sequence[Choice]], limit: int) -> list[Choice]:
    """A choice for each layer, of little loss in sum, whose costs sum to `limit` at most; the cheapest if none do.

    One price of cost is found for all layers (Everett 1963), then the rest of the limit is spent where it gains most.
    """

    def at(price: float) -> list[Choice]:
        return [min(layer, key=lambda choice: choice.lost + price * choice.cost) for layer in layers]

    def total(chosen: Sequence[Choice]) -> int:
        return sum(choice.cost for choice in chosen)

    low, high = 1e-24, 1e3  # at the high one all is cheapest
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
