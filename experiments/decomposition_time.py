"""How long a convolution's factors take to find, and what they lose, beside tensorly's, on one processor.

Example: python -m experiments.decomposition_time --channels '[256]' --rounds 1
The kernels are 3 x 3, drawn, with directions that matter less and less, as in a trained one; nothing is whitened, which
tensorly cannot. Ranks are those at which the factors have a share of the kernel's parameters.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from statistics import median

import torch
from torch import Tensor

from compress.lowrank.cp import SWEEPS, cp
from compress.lowrank.decompose import tucker
from experiments import cli
from experiments.render.markdown import table
from experiments.sweep import Row
from experiments.untrained import tell
from kd.errors import InputError

CP, TUCKER = "CP", "Tucker-2"
_FALL = 1.5  # decades from the first direction of a mode to its last


@dataclass(frozen=True)
class TimeConfig:
    """Decompose and time.

    Attributes:
        channels: inputs of a convolution, and as many outputs.
        shares: of its parameters, that the factors have.
        rounds: each of them runs every decomposition once; the median counts.
        json: a file that the figures are kept in, too; None: none.
    """

    channels: tuple[int, ...] = (256, 512)
    shares: tuple[float, ...] = (0.25, 0.5)
    rounds: int = 3
    json: str | None = None

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 2:
            raise InputError("channels", list(self.channels), "must be 2 or more, of each")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise InputError("shares", list(self.shares), "must be above 0 and below 1, each")
        for channels in self.channels:
            for share in self.shares:
                if min(ranks(channels, share).values()) < 1:
                    raise InputError("shares", share, f"leaves no rank to a kernel of {channels} channels")
        if self.rounds < 1:
            raise InputError("rounds", self.rounds, "must be 1 or more")


def measure(config: TimeConfig) -> list[Row]:
    """A row for each kernel, share and method: seconds of processor time on one thread and the lost share of energy."""
    torch.set_num_threads(1)
    rows = []
    for channels in config.channels:
        weight = kernel(channels)
        for share in config.shares:
            for method, rank in ranks(channels, share).items():
                spent, lost = defaultdict[str, list[float]](list), dict[str, float]()
                for _ in range(config.rounds):
                    for whose, made in _ways(weight, method, rank).items():
                        begun = time.process_time()
                        found = made()
                        spent[whose].append(time.process_time() - begun)
                        lost[whose] = float((found - weight).square().sum() / weight.square().sum())
                seconds = {whose: median(times) for whose, times in spent.items()}
                row = {"channels": channels, "share": share, "method": method, "rank": rank}
                rows.append(row | {"seconds": seconds, "lost": lost})
    return rows


def kernel(channels: int) -> Tensor:
    """(channels, channels, 3, 3)."""
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, channels, 3, 3, generator=draws, dtype=torch.float64)
    fall = torch.logspace(0, -_FALL, channels, dtype=torch.float64)
    turns = (torch.linalg.qr(torch.randn(channels, channels, generator=draws, dtype=torch.float64)).Q for _ in "oi")
    outer, inner = (turn * fall for turn in turns)
    return torch.einsum("rskl,or,is->oikl", weight, outer, inner).float()


def ranks(channels: int, share: float) -> dict[str, int]:
    """By method, of a 3 x 3 kernel: CP has r (2 channels + 9) parameters, Tucker-2 9 r² + 2 r channels."""
    limit = share * 9 * channels**2
    return {CP: int(limit / (2 * channels + 9)), TUCKER: int((sqrt(channels**2 + 9 * limit) - channels) / 9)}


def _ways(weight: Tensor, method: str, rank: int) -> dict[str, Callable[[], Tensor]]:
    """The kernel made of its factors again, by whose they are; what of tensorly stops by itself is not stopped."""
    import tensorly
    from tensorly.decomposition import parafac, partial_tucker

    def ours() -> Tensor:
        if method == CP:
            first, middle, last = cp(weight, rank)
            return torch.einsum("or,rkl,ri->oikl", last, middle[:, 0], first)
        first, middle, last = tucker(weight, (rank, rank))
        return torch.einsum("rskl,or,si->oikl", middle, last, first)

    def theirs() -> Tensor:
        with tensorly.backend_context("pytorch"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fewer singular vectors than components
            if method == CP:
                found = parafac(weight.flatten(2), rank, init="svd", n_iter_max=SWEEPS, tol=0, random_state=0)
                return tensorly.cp_to_tensor(found).reshape(weight.shape)
            (core, factors), _ = partial_tucker(weight, [rank, rank], modes=[0, 1])
            return tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])

    return {"ours": ours, "tensorly": theirs}


def render(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        kind = [
            f"{row['channels']} × {row['channels']} × 3 × 3",
            f"{row['share']:.0%}",
            row["method"],
            str(row["rank"]),
        ]
        times, lost = (tuple(row[fact][whose] for whose in ("ours", "tensorly")) for fact in ("seconds", "lost"))
        lines.append([*kind, *(f"{time:.2f}" for time in times), f"{times[1] / times[0]:.1f}×"])
        lines[-1] += [f"{share:.2%}" for share in lost]
    head = ("kernel", "parameters", "method", "rank", "s", "tensorly, s", "faster", "energy lost", "tensorly")
    return table(head, lines)


def main(config: TimeConfig, _: str) -> None:
    tell("decomposition_time", config.json, partial(measure, config), render)


if __name__ == "__main__":
    sys.exit(cli.run("decomposition_time", TimeConfig, main))
