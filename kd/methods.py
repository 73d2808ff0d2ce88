"""The methods by name, each as its paper trains it: a loss with its weights, or a regime.

Weights are those of the papers' CIFAR recipes. A warm-up of 20 of their 240 epochs is the same share of any schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from kd import losses, regimes
from kd.loss import Loss, Objective, Term
from kd.losses import KD, CrossEntropy
from kd.regimes import Guide, Offline, Regime, Supervised

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


def _alone(kind: type[Regime], students: int = 1) -> Method:
    """A regime of so many students and no teacher."""

    def regime(make: Make, teacher: Guide, epochs: int) -> Regime:
        made = [make() for _ in range(students)]
        return kind(made[0] if students == 1 else made)

    return Method(kind, regime)


def _one(make: Make, teacher: Guide, epochs: int) -> Regime:
    """Three branches, whose weight rises over the same share of the epochs as the authors' 80 of 300."""
    return regimes.ONE([make() for _ in range(3)], ramp=round(epochs * 80 / 300))


# AB, FSP and FT train in phases, and SimKD ships another net than its student: these four are not here yet.
METHODS: dict[str, Method] = {
    "scratch": Method(Supervised, lambda make, teacher, epochs: Supervised(make())),
    "KD": _offline(KD, 0.9, hard=0.1),
    "DKD": _offline(losses.DKD, warmup=_WARMUP),
    "DIST": _offline(losses.DIST, 2.0),
    "LSKD": _offline(lambda: losses.Standardized(KD(2.0)), 9.0, hard=0.1),
    "NKD": _offline(losses.NKD),
    "OFA": _offline(losses.OFA),
    "MLKD": _offline(losses.MLKD, 0.9, hard=0.1),
    "CTKD": _offline(losses.CTKD, 0.9, hard=0.1),
    "FitNet": _offline(losses.FitNet, 100.0),
    "AT": _offline(losses.AT, 1000.0),
    "NST": _offline(losses.NST, 50.0),
    "VID": _offline(losses.VID),
    "OFD": _offline(losses.OFD, 1e-3),
    "ReviewKD": _offline(losses.ReviewKD, 0.6, warmup=_WARMUP),  # the weight of ResNet-20
    "SemCKD": _offline(losses.SemCKD, 400.0, kd=1.0),
    "CATKD": _offline(losses.CATKD, 0.7),  # the weight of ResNet-20
    "MGD": _offline(losses.MGD, 0.3),  # 7e-5 times the 64x8x8 values of a CIFAR ResNet's last map
    "RKD": _offline(losses.RKD),
    "SP": _offline(losses.SP, 3000.0),
    "PKT": _offline(losses.PKT, 30000.0),
    "CC": _offline(losses.CC),  # no published weight is that of this formula
    "ICKD": _offline(losses.ICKD, 2.5),
    "CRD": _offline(losses.CRD, 0.8),
    "DML": _alone(regimes.DML, 2),
    "KDCL": _alone(regimes.KDCL, 2),
    "ONE": Method(regimes.ONE, _one),
    "BYOT": _alone(regimes.BYOT),
    "PSKD": _alone(regimes.PSKD),
    "TfKD": _alone(regimes.TfKD),
    "CSKD": _alone(regimes.CSKD),
    "DLB": _alone(regimes.DLB),
    "USKD": _alone(regimes.USKD),
}
