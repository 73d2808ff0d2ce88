"""KDCL: peers that each see a view of their own learn from what they know together. Guo et al., Online Knowledge
Distillation via Collaborative Learning, 2020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kd.batch import Batch, Demands, Facts, Outputs, Step
from kd.errors import InputError
from kd.losses.response.cross_entropy import cross_entropy
from kd.losses.response.kd import kd
from kd.regimes.regime import Regime
from kd.regimes.supervised import student_ports
from kd.tensors import expect, widen

Method = Literal["mean", "min"]


def kdcl_ensemble(logits: Sequence[Tensor], target: Tensor, method: Method = "mean") -> Tensor:
    """(N, C) logits of the ensemble of one or more nets' (N, C) logits, without gradients.

    "mean": the mean of the logits, whatever the `target`. "min": each class's least of z - z_y over the nets, so that
    the class y itself has 0; `target` is y and must be (N,) integer.
    """
    if method not in get_args(Method):
        raise ValueError(f"expected a method of {get_args(Method)}, got {method!r}")
    fits = len(logits) > 0 and logits[0].dim() == 2 and all(own.shape == logits[0].shape for own in logits)
    expect(fits, "(N, C) logits of one or more nets alike", *logits)
    nets = torch.stack([widen(own.detach()) for own in logits])
    if method == "mean":
        expect(target.shape in (nets[0].shape, nets[0].shape[:1]), "a target of (N,) or (N, C)", nets[0], target)
        return nets.mean(0)
    expect(target.shape == nets[0].shape[:1], "a target of (N,): hard labels only", nets[0], target)
    return (nets - nets.gather(2, target.expand(len(nets), -1)[..., None])).amin(0)


class KDCL(Regime):
    """Trains two or more peers of any architecture, each on its own view of the samples: each descends
    (1 - alpha)·CE + alpha·T²·KL to `kdcl_ensemble`.

    The peers are the candidates, "peer0", "peer1", ... Under mixup and CutMix the views of a sample would be mixed with
    different partners, and an ensemble over views would know no label: they are refused. All is a mean over samples, so
    that processes gather nothing.
    """

    def __init__(
        self, students: Sequence[nn.Module], method: Method = "mean", alpha: float = 0.5, temperature: float = 4.0
    ) -> None:
        super().__init__()
        if len(students) < 2:
            raise InputError("KDCL.students", len(students), "needs two or more")
        if method not in get_args(Method):
            raise InputError("KDCL.method", method, f"must be one of {', '.join(get_args(Method))}")
        if not 0 <= alpha <= 1:
            raise InputError("KDCL.alpha", alpha, "must lie between 0 and 1")
        if temperature <= 0:
            raise InputError("KDCL.temperature", temperature, "must be above 0")
        self.peers = nn.ModuleDict({f"peer{i}": student for i, student in enumerate(students)})
        self.method, self.alpha, self.temperature = method, alpha, temperature
        self.demands = Demands(views=len(students), hard_labels=True)

    def bind(self, data: Facts) -> None:
        for peer in self.peers.values():
            student_ports(peer, data)

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        logits = [peer(view.x) for peer, view in zip(self.peers.values(), batch.views, strict=True)]
        with torch.autocast(batch.x.device.type, enabled=False):
            ensemble = kdcl_ensemble(logits, batch.y, self.method)
            labels = torch.stack([cross_entropy(own, batch.y) for own in logits])
            together = torch.stack([kd(own, ensemble, self.temperature) for own in logits])
        parts = {f"{name}_cross_entropy": part for name, part in zip(self.peers, labels, strict=True)}
        parts |= {f"{name}_kdcl": part for name, part in zip(self.peers, together, strict=True)}
        loss = ((1 - self.alpha) * labels + self.alpha * together).sum()
        return Step(loss, parts, logits[0].detach())

    def candidates(self) -> dict[str, nn.Module]:
        return dict(self.peers.items())
