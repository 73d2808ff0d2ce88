"""Who learns from whom: `Supervised`, `Offline` with its `Initial` phases, `online` peers, self-distillation."""

from kd.regimes.initial import Initial
from kd.regimes.offline import Offline
from kd.regimes.online.dml import DML
from kd.regimes.online.kdcl import KDCL
from kd.regimes.online.one import ONE
from kd.regimes.regime import Frozen, Guide, Regime
from kd.regimes.self_distillation.byot import BYOT
from kd.regimes.self_distillation.cs_kd import CSKD
from kd.regimes.self_distillation.dlb import DLB
from kd.regimes.self_distillation.ps_kd import PSKD
from kd.regimes.self_distillation.tf_kd import TfKD
from kd.regimes.self_distillation.uskd import USKD
from kd.regimes.supervised import Supervised

__all__ = [
    "BYOT",
    "CSKD",
    "DLB",
    "DML",
    "KDCL",
    "ONE",
    "PSKD",
    "USKD",
    "Frozen",
    "Guide",
    "Initial",
    "Offline",
    "Regime",
    "Supervised",
    "TfKD",
]
