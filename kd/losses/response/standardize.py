"""LSKD: compare logits by their shape, not by their level and spread. Sun et al., Logit Standardization in Knowledge
Distillation, 2024."""

from __future__ import annotations

from torch import Tensor, nn

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.tensors import expect, widen


def standardize(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """(N, C) logits less their mean, divided by eps + their unbiased standard deviation, over C > 1 classes."""
    expect(logits.dim() == 2 and logits.shape[1] > 1, "(N, C) logits of two or more classes", logits)
    logits = widen(logits)
    return (logits - logits.mean(1, keepdim=True)) / (eps + logits.std(1, keepdim=True))


class Standardized(Loss):
    """Any loss on logits, of standardised logits on both sides.

    In the paper `Standardized(KD(2.0))` with weight 9 beside 0.1 of cross-entropy, and DKD with 9 times its alpha and
    beta. The logits of exits (a `loss.exits` of nn.Sequential each, as OFA builds them) are standardised too.
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    @property
    def needs(self) -> Needs:  # type: ignore[override]  # what the loss needs
        return self.loss.needs

    @property
    def asks(self) -> Needs:
        return self.loss.asks

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.loss.bind(student, teacher, data)
        exits = getattr(self.loss, "exits", ())
        if self.needs.embedding or (self.needs.stages and not exits):
            raise InputError("Standardized.loss", type(self.loss).__name__, "must be a loss on logits")
        for head in exits:
            head.append(_Standardize())

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return self.loss(_standardized(student), _standardized(teacher), batch)

    def after_step(self, batch: Batch) -> None:
        self.loss.after_step(batch)

    def deployed(self, student: nn.Module) -> nn.Module:
        return self.loss.deployed(student)


class _Standardize(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return standardize(logits)


def _standardized(outputs: Outputs) -> Outputs:
    return outputs._replace(logits=standardize(outputs.logits), others=tuple(map(_standardized, outputs.others)))
