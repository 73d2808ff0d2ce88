from __future__ import annotations

import pytest
import torch

from kd.batch import Batch, Clock, Outputs, View
from kd.errors import InputError
from kd.losses import CrossEntropy
from kd.losses.response.cross_entropy import cross_entropy
from kd.testing import LossContract, naive_log_softmax, naive_targets


class TestCrossEntropy(LossContract):
    smoothing = 0.0

    def make(self):
        return CrossEntropy(self.smoothing)

    def reference(self, loss, student, teacher, batch):
        total, classes = 0.0, student.logits.shape[1]
        for row, target in zip(student.logits.tolist(), naive_targets(batch.y, classes), strict=True):
            for log_probability, label in zip(naive_log_softmax(row), target, strict=True):
                total -= ((1 - self.smoothing) * label + self.smoothing / classes) * log_probability
        return total / len(student.logits)


class TestCrossEntropySmoothed(TestCrossEntropy):
    smoothing = 0.1


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_outside_its_range_is_refused(smoothing):
    with pytest.raises(InputError, match=r"CrossEntropy\.smoothing"):
        CrossEntropy(smoothing)


def test_wrong_shapes_are_told():
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 2\)"):
        cross_entropy(torch.randn(4, 3), torch.rand(4, 2))


def test_views_add_up():
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    views = tuple(View(torch.empty(0), torch.tensor(y), torch.arange(4), 0) for y in ([0, 1, 2, 0], [2, 1, 0, 0]))
    student = Outputs(first, others=(Outputs(second),))
    found = CrossEntropy()(student, student, Batch(views, Clock(0, 1, 0, 1)))
    assert found.item() == pytest.approx(
        sum(cross_entropy(x, v.y).item() for x, v in zip((first, second), views, strict=False))
    )
