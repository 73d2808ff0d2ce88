"""Who learns from whom: `Supervised` and `Offline`, peers that learn `online`, nets that learn from themselves."""

from kd.regimes.offline import Offline
from kd.regimes.online.dml import DML
from kd.regimes.regime import Frozen, Guide, Regime
from kd.regimes.self_distillation.ps_kd import PSKD
from kd.regimes.supervised import Supervised

__all__ = ["DML", "PSKD", "Frozen", "Guide", "Offline", "Regime", "Supervised"]
