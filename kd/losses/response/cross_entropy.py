"""Cross-entropy with the labels: what every student learns from, teacher or none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd.batch import Batch, Outputs
from kd.errors import InputError
from kd.loss import Loss
from kd.tensors import expect, widen


def cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Batch mean of the cross-entropy of (N, C) logits with (N,) integer or (N, C) soft labels."""
    logits = widen(logits)
    fits = logits.dim() == 2 and target.shape in (logits.shape, logits.shape[:1])
    expect(fits, "(N, C) logits and a target of (N,) or (N, C)", logits, target)
    return F.cross_entropy(logits, target.to(logits.dtype) if target.dim() == 2 else target, label_smoothing=smoothing)


class CrossEntropy(Loss):
    """Cross-entropy with the labels, hard or soft, summed over the views that the student saw.

    `smoothing` moves that share of each label to all classes evenly.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise InputError("CrossEntropy.smoothing", smoothing, "must be 0 or above, and below 1")
        self.smoothing = smoothing

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        views = zip((student, *student.others), batch.views, strict=False)
        return torch.stack([cross_entropy(seen.logits, view.y, self.smoothing) for seen, view in views]).sum()
