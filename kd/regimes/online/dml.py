"""DML: peers learn from the labels and from each other. Zhang et al., Deep Mutual Learning, 2018."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd.batch import Batch, Facts, Outputs, Step
from kd.errors import InputError
from kd.losses.response.cross_entropy import cross_entropy
from kd.losses.response.kd import kd
from kd.regimes.regime import Regime
from kd.regimes.supervised import student_ports
from kd.tensors import expect


def dml(logits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """(peers,): for each peer, the mean over the others of T²·KL(p_other ‖ p_peer), without cross-entropy.

    `logits` holds (N, C) of two or more peers. Entry i has gradients to logits i only.
    """
    expect(len(logits) > 1, "two or more peers", *logits)
    peers = list(enumerate(logits))
    return torch.stack(
        [torch.stack([kd(own, other, temperature) for j, other in peers if j != i]).mean() for i, own in peers]
    )


class DML(Regime):
    """Trains two or more peers of any architecture; each descends cross-entropy plus its entry of `dml`.

    The peers are the candidates, "peer0", "peer1", ..., so the best of them is shipped.
    """

    def __init__(self, students: Sequence[nn.Module], temperature: float = 1.0) -> None:
        super().__init__()
        if len(students) < 2:
            raise InputError("DML.students", len(students), "needs two or more")
        if temperature <= 0:
            raise InputError("DML.temperature", temperature, "must be above 0")
        self.peers = nn.ModuleDict({f"peer{i}": student for i, student in enumerate(students)})
        self.temperature = temperature

    def bind(self, data: Facts) -> None:
        for peer in self.peers.values():
            student_ports(peer, data)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        logits = [peer(batch.x) for peer in self.peers.values()]
        with torch.autocast(batch.x.device.type, enabled=False):
            labels = torch.stack([cross_entropy(own, batch.y) for own in logits])
            mutual = dml(logits, self.temperature)
        parts = {f"{name}_cross_entropy": part for name, part in zip(self.peers, labels, strict=True)}
        parts |= {f"{name}_dml": part for name, part in zip(self.peers, mutual, strict=True)}
        return Step((labels + mutual).sum(), parts, logits[0].detach())

    def candidates(self) -> dict[str, nn.Module]:
        return dict(self.peers.items())
