"""Contracts that a `Loss` or a `Regime` must keep, as pytest classes to inherit: for ours and for yours.

class TestCosine(LossContract):
    perfect = 0.0

    def make(self):
        return Cosine()

    def reference(self, loss, student, teacher, batch):
        ...  # naive loops over floats
"""

import pytest

pytest.register_assert_rewrite("kd.testing.loss_contract", "kd.testing.regime_contract")

from kd.testing.batch_norm import GatheredBatchNorm, gathered  # noqa: E402
from kd.testing.graph import trained_by  # noqa: E402
from kd.testing.loss_contract import LossContract  # noqa: E402
from kd.testing.naive import (  # noqa: E402
    naive_convolution,
    naive_log_softmax,
    naive_mse,
    naive_net,
    naive_norm,
    naive_pool,
    naive_pooled,
    naive_targets,
)
from kd.testing.regime_contract import RegimeContract  # noqa: E402
from kd.testing.tiny import TinyTeacher, tiny_batch, tiny_facts, tiny_net  # noqa: E402

__all__ = [
    "GatheredBatchNorm",
    "LossContract",
    "RegimeContract",
    "TinyTeacher",
    "gathered",
    "naive_convolution",
    "naive_log_softmax",
    "naive_mse",
    "naive_net",
    "naive_norm",
    "naive_pool",
    "naive_pooled",
    "naive_targets",
    "tiny_batch",
    "tiny_facts",
    "tiny_net",
    "trained_by",
]
