"""The methods by name, each as its paper trains it: a loss with its weights, or a regime.

Weights are those of the papers' CIFAR recipes. A warm-up of 20 of their 240 epochs is the same share of any schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from kd.loss import Loss, Objective, Term
from kd.losses import (
    AT,
    CTKD,
    DIST,
    DKD,
    KD,
    MLKD,
    NKD,
    NST,
    OFA,
    OFD,
    RKD,
    VID,
    CrossEntropy,
    FitNet,
    Standardized,
)
from kd.regimes import DML, PSKD, Guide, Offline, Regime, Supervised

Make = Callable[[], nn.Module]
_WARMUP = 20 / 240


@dataclass(frozen=True)
class Method:
    """How a student is trained by one method.

    Attributes:
        kind: the Loss or the Regime that it is about.
        regime: from a maker of students (as many as it needs), a teacher and the number of epochs.
    """

    kind: type[Loss] | type[Regime]
    regime: Callable[[Make, Guide, int], Regime]


def _objective(
    terms: Mapping[str, tuple[Callable[[], Loss], float]], hard: float, warmup: float, epochs: int
) -> Objective:
    rising = round(warmup * epochs)
    made = {name: Term(loss(), weight, rising) for name, (loss, weight) in terms.items()}
    return Objective(made | ({"CrossEntropy": Term(CrossEntropy(), hard)} if hard else {}))


def _offline(
    loss: Callable[[], Loss], weight: float = 1.0, hard: float = 1.0, kd: float = 0.0, warmup: float = 0.0
) -> Method:
    """A loss of `weight` that rises over the share `warmup` of the epochs, beside `hard`·CE and `kd`·KD."""
    kind = type(loss())
    terms = {kind.__name__: (loss, weight)} | ({"KD": (KD, kd)} if kd else {})

    def regime(make: Make, teacher: Guide, epochs: int) -> Regime:
        return Offline(make(), teacher, _objective(terms, hard, warmup, epochs))

    return Method(kind, regime)


METHODS: dict[str, Method] = {
    "scratch": Method(Supervised, lambda make, teacher, epochs: Supervised(make())),
    "KD": _offline(KD, 0.9, hard=0.1),
    "DKD": _offline(DKD, warmup=_WARMUP),
    "DIST": _offline(DIST, 2.0),
    "LSKD": _offline(lambda: Standardized(KD(2.0)), 9.0, hard=0.1),
    "NKD": _offline(NKD),
    "OFA": _offline(OFA),
    "MLKD": _offline(MLKD, 0.9, hard=0.1),
    "CTKD": _offline(CTKD, 0.9, hard=0.1),
    "FitNet": _offline(FitNet, 100.0),
    "AT": _offline(AT, 1000.0),
    "NST": _offline(NST, 50.0),
    "VID": _offline(VID),
    "OFD": _offline(OFD, 1e-3),
    "RKD": _offline(RKD),
    "DML": Method(DML, lambda make, teacher, epochs: DML([make(), make()])),
    "PSKD": Method(PSKD, lambda make, teacher, epochs: PSKD(make())),
}
