"""Who learns from whom: `Supervised` and `Offline`, peers that learn `online`, nets that learn from themselves."""

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
    "Offline",
    "Regime",
    "Supervised",
    "TfKD",
]
