"""The methods by name, each as its paper trains it: a loss with its weights, or a regime, in one phase or more.

Weights are those of the papers' CIFAR recipes. A warm-up of 20 of their 240 epochs, or a phase of 30, is the same share
of any schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from kd import losses, regimes
from kd.errors import InputError
from kd.loss import Loss, Objective, Term
from kd.losses import KD, CrossEntropy
from kd.phases import Phase
from kd.regimes import Guide, Initial, Offline, Regime, Supervised

Make = Callable[[], nn.Module]
_WARMUP, _INITIAL = 20 / 240, 30 / 240


@dataclass(frozen=True)
class Setting:
    """What a method has to work with.

    Attributes:
        student: makes a student with weights of its own.
        teacher: the guide.
        freeze: makes a guide of a net that was trained in an earlier phase.
        others: make further nets: the peers of DML and KDCL, by default one more student; TAKD's assistants in order.
    """

    student: Make
    teacher: Guide
    freeze: Callable[[nn.Module], Guide]
    others: tuple[Make, ...] = ()


@dataclass(frozen=True)
class Method:
    """How a student is trained by one method.

    Attributes:
        kind: the Loss or the Regime that it is about.
        phases: in a setting, for so many epochs of the student; the last phase ships it.
        paper: what it does and where it comes from, where the module of `kind` does not tell.
    """

    kind: type[Loss] | type[Regime]
    phases: Callable[[Setting, int], Iterator[Phase]]
    paper: str | None = None


def _single(kind: type[Loss] | type[Regime], regime: Callable[[Setting, int], Regime]) -> Method:
    """A method of one phase."""

    def phases(setting: Setting, epochs: int) -> Iterator[Phase]:
        yield Phase("student", regime(setting, epochs), epochs)

    return Method(kind, phases)


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
    return _single(
        kind,
        lambda setting, epochs: Offline(setting.student(), setting.teacher, _objective(terms, hard, warmup, epochs)),
    )


def own(terms: Mapping[str, Term]) -> Method:
    """A method of your own: losses with their weights, learnt from the teacher in one phase."""
    if not terms:
        raise InputError("own", "{}", "a method needs a loss or more")

    def regime(setting: Setting, epochs: int) -> Regime:
        return Offline(setting.student(), setting.teacher, Objective.fresh(terms))

    return _single(type(next(iter(terms.values())).loss), regime)


def _self(kind: type[Regime]) -> Method:
    """A regime of one student and no teacher."""
    return _single(kind, lambda setting, epochs: kind(setting.student()))


def _online(kind: type[Regime], **options: str) -> Method:
    """A regime of a student and its peers."""

    def regime(setting: Setting, epochs: int) -> Regime:
        peers = setting.student, *(setting.others or (setting.student,))
        return kind([make() for make in peers], **options)

    return _single(kind, regime)


def _one(setting: Setting, epochs: int) -> Regime:
    """Three branches, whose weight rises over the same share of the epochs as the authors' 80 of 300."""
    return regimes.ONE([setting.student() for _ in range(3)], ramp=round(epochs * 80 / 300))


def _initial(loss: Callable[[], Loss], weight: float) -> Method:
    """A loss of `weight` alone in an initial phase, the share of 30 of the 240 epochs; then cross-entropy alone."""
    kind = type(loss())

    def phases(setting: Setting, epochs: int) -> Iterator[Phase]:
        first = max(1, round(_INITIAL * epochs))
        if first == epochs:
            raise InputError("fit.epochs", epochs, f"{kind.__name__} trains in two phases and needs two or more")
        student = setting.student()
        yield Phase(
            "initial", Initial(student, setting.teacher, Objective({kind.__name__: Term(loss(), weight)})), first
        )
        yield Phase("student", Supervised(student), epochs - first)

    return Method(kind, phases)


def _ft(setting: Setting, epochs: int) -> Iterator[Phase]:
    paraphrase = losses.Paraphrase()
    first = max(1, round(_INITIAL * epochs))
    yield Phase("paraphraser", Initial(None, setting.teacher, Objective({"Paraphrase": Term(paraphrase)})), first)
    terms = {"FT": Term(losses.FT(paraphrase), 500.0), "CrossEntropy": Term(CrossEntropy())}
    yield Phase("student", Offline(setting.student(), setting.teacher, Objective(terms)), epochs)


def _tf_kd(setting: Setting, epochs: int) -> Iterator[Phase]:
    student, twin = setting.student(), setting.student()
    yield Phase("twin", Supervised(twin), epochs)
    yield Phase("student", regimes.TfKD(student, setting.freeze(twin), alpha=0.95, temperature=6.0), epochs)


def _takd(setting: Setting, epochs: int) -> Iterator[Phase]:
    if not setting.others:
        raise InputError("others", "[]", "TAKD needs one or more nets between teacher and student")
    teacher = setting.teacher
    for number, make in enumerate((*setting.others, setting.student), 1):
        net = make()
        name = "student" if number > len(setting.others) else f"assistant-{number}"
        yield Phase(name, Offline(net, teacher, _objective({"KD": (KD, 0.9)}, 0.1, 0.0, epochs)), epochs)
        teacher = setting.freeze(net)


_TAKD = (
    "TAKD: learn from the teacher through nets of sizes in between. "
    "Mirzadeh et al., Improved Knowledge Distillation via Teacher Assistant, 2020."
)

METHODS: dict[str, Method] = {
    "scratch": _self(Supervised),
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
    "FT": Method(losses.FT, _ft),
    "AB": _initial(losses.AB, 3e-3),
    "FSP": _initial(losses.FSP, 1.0),
    "VID": _offline(losses.VID),
    "OFD": _offline(losses.OFD, 1e-3),
    "ReviewKD": _offline(losses.ReviewKD, 0.6, warmup=_WARMUP),  # the weight of ResNet-20
    "SemCKD": _offline(losses.SemCKD, 400.0, kd=1.0),
    "CATKD": _offline(losses.CATKD, 0.7),  # the weight of ResNet-20
    "SimKD": _offline(losses.SimKD, hard=0.0),
    "MGD": _offline(losses.MGD, 0.3),  # 7e-5 times the 64x8x8 values of a CIFAR ResNet's last map
    "RKD": _offline(losses.RKD),
    "SP": _offline(losses.SP, 3000.0),
    "PKT": _offline(losses.PKT, 30000.0),
    "CC": _offline(losses.CC),  # no published weight is that of this formula
    "ICKD": _offline(losses.ICKD, 2.5),
    "CRD": _offline(losses.CRD, 0.8),
    "TAKD": Method(KD, _takd, _TAKD),
    "DML": _online(regimes.DML),
    "KDCL": _online(regimes.KDCL),
    "KDCL-min": _online(regimes.KDCL, method="min"),
    "ONE": _single(regimes.ONE, _one),
    "BYOT": _self(regimes.BYOT),
    "PSKD": _self(regimes.PSKD),
    "TfKD": _self(regimes.TfKD),
    "TfKD-self": Method(regimes.TfKD, _tf_kd),
    "CSKD": _self(regimes.CSKD),
    "DLB": _self(regimes.DLB),
    "USKD": _self(regimes.USKD),
}
