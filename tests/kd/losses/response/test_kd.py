from __future__ import annotations

import math

import pytest
import torch

from kd.errors import InputError
from kd.functional import kd
from kd.losses import KD
from kd.testing import LossContract, naive_log_softmax


class TestKD(LossContract):
    perfect = 0.0
    temperature = 4.0

    def make(self):
        return KD(self.temperature)

    def reference(self, loss, student, teacher, batch):
        total = 0.0
        for ours, theirs in zip(student.logits.tolist(), teacher.logits.tolist(), strict=True):
            ours, theirs = naive_log_softmax(ours, self.temperature), naive_log_softmax(theirs, self.temperature)
            for log_q, log_p in zip(ours, theirs, strict=True):
                total += math.exp(log_p) * (log_p - log_q)
        return self.temperature**2 * total / len(student.logits)


class TestKDUntempered(TestKD):
    temperature = 1.0


def test_the_papers_temperature_is_the_default():
    assert KD().temperature == 4.0


def test_a_larger_batch_of_the_same_rows_changes_nothing():
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(kd(student.repeat(4, 1), teacher.repeat(4, 1)), kd(student, teacher))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_of_zero_or_less_is_refused(temperature):
    with pytest.raises(InputError, match=r"KD\.temperature"):
        KD(temperature)
