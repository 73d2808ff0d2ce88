"""ReviewKD: each level of the teacher is learned from all deeper levels of the student. Chen et al., Distilling
Knowledge via Knowledge Review, 2021."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Batch, Facts, Outputs, Ports
from kd.loss import Loss
from kd.losses.feature.maps import last_stages, pooled, same_size, stage_needs
from kd.tensors import expect

_WIDEST = 512


def hcl(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean of mean squared differences of (N, C, H, W) maps: as they are, average-pooled to 4x4, 2x2 and 1x1.

    The weights are 1, ½, ¼, ⅛. A size that is not below H is left out, and the weight halves at the sizes used only. Of
    maps of unequal size the larger one is average-pooled to the smaller before.
    """
    fits = student.dim() == teacher.dim() == 4 and student.shape[:2] == teacher.shape[:2]
    expect(fits, "(N, C, H, W) maps of the same N samples and C channels", student, teacher)
    ours, theirs = same_size(student, teacher)
    total, weight, weights = F.mse_loss(ours, theirs), 1.0, 1.0
    for size in (4, 2, 1):
        if size < ours.shape[2]:
            weight /= 2
            weights += weight
            total = total + weight * F.mse_loss(pooled(ours, (size, size)), pooled(theirs, (size, size)))
    return total / weights


class ReviewKD(Loss):
    """The sum of `hcl` over levels: stages, the last three of both nets by default, and the embedding as a 1x1 map.

    From the embedding up, each level of the student is fused with what the deeper one hands on, at the resolution of
    the student, then brought to that of the teacher (nearest neighbours both times) and handed on in turn; the fusions
    train along. In the paper on maps before their activation where a net has them, beside cross-entropy, with a weight
    that rises over 20 epochs to 0.6 (ResNet-20), 5 (ResNet-8x4, WRN-16-2) or 8 (ShuffleNetV2).
    """

    def __init__(self, stages: Sequence[int] | None = None) -> None:
        super().__init__()
        self.stages, self.needs = stages, replace(stage_needs("ReviewKD", stages), embedding=True)

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.stages = self.stages or last_stages(3, student, teacher)
        middle = min(_WIDEST, student.embedding)
        widths = [(student.stages[i][0], teacher.stages[i][0]) for i in self.stages]
        fusions = [_Fusion(ours, middle, theirs) for ours, theirs in widths]
        self.fusions = nn.ModuleList([*fusions, _Fusion(student.embedding, middle, teacher.embedding, deepest=True)])

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        levels = zip(self.fusions, self._levels(student), self._levels(teacher), strict=True)
        losses, handed_on = [], None
        for fusion, ours, theirs in reversed(list(levels)):
            handed_on, predicted = fusion(ours, handed_on, theirs.shape[2:])
            losses.append(hcl(predicted, theirs))
        return torch.stack(losses).sum()

    def _levels(self, outputs: Outputs) -> list[Tensor]:
        assert self.stages is not None
        assert outputs.embedding is not None
        return [*(outputs.stages[i] for i in self.stages), outputs.embedding[:, :, None, None]]


class _Fusion(nn.Module):
    """The paper's attention-based fusion: of a map of `source` channels and one of `middle`, to `target` channels.

    Gives the fused map, of `middle` channels, and what it predicts of the teacher's. The deepest one has but one map.
    """

    def __init__(self, source: int, middle: int, target: int, deepest: bool = False) -> None:
        super().__init__()
        self.narrow = _convolution(source, middle, 1)
        self.attention = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        self.predict = _convolution(middle, target, 3)

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        x = self.narrow(x)
        if self.attention is not None:
            assert deeper is not None
            deeper = _resized(deeper, x.shape[2:])
            own, other = self.attention(torch.cat([x, deeper], 1)).split(1, 1)
            x = own * x + other * deeper
        x = _resized(x, size)
        return x, self.predict(x)


def _convolution(source: int, target: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(source, target, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)  # no activation follows
    return nn.Sequential(convolution, nn.BatchNorm2d(target))


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, list(size), mode="nearest")
