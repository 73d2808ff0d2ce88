"""FitNet: regress a stage map of the teacher. Romero et al., FitNets: Hints for Thin Deep Nets, 2015."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.tensors import expect, pair


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two (N, C, H, W) maps, the student's after its regressor.

    The paper takes half a sum; the mean does not grow with the map.
    """
    fits = student.dim() == 4 and student.shape == teacher.shape
    expect(fits, "(N, C, H, W) maps of student and teacher alike", student, teacher)
    return F.mse_loss(*pair(student, teacher))


class FitNet(Loss):
    """`hint` between a stage of the student, through a regressor that trains along, and the same stage of the teacher.

    The paper's stage is the middle one: the second of the three of a CIFAR net. It is counted from the end, so that it
    does not matter whether a net shows the map of its stem too.
    """

    def __init__(self, stage: int = -2) -> None:
        super().__init__()
        self.stage = stage
        self.needs = Needs(stages=(stage,))

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.regressor = _regressor(student.stages[self.stage], teacher.stages[self.stage])

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        return hint(self.regressor(student.stages[self.stage]), teacher.stages[self.stage])


def _regressor(source: tuple[int, int, int], target: tuple[int, int, int]) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU from one (C, H, W) map to another; transposed where that is larger."""
    axes = list(zip(source[1:], target[1:], strict=True))
    shrinks, grows = all(ours >= theirs for ours, theirs in axes), all(ours <= theirs for ours, theirs in axes)
    if not shrinks and not grows:
        raise InputError("FitNet.stage", f"{source} to {target}", "one axis of the map shrinks and the other grows")
    kernel, stride, padding = zip(*(_resizing(max(axis), min(axis)) for axis in axes), strict=True)
    layer = nn.Conv2d if shrinks else nn.ConvTranspose2d
    return nn.Sequential(
        layer(source[0], target[0], kernel, stride, padding, bias=False), nn.BatchNorm2d(target[0]), nn.ReLU()
    )


def _resizing(large: int, small: int) -> tuple[int, int, int]:
    """Kernel, stride and padding of a convolution from `large` to `small`, and of the transposed one back."""
    ratio, rest = divmod(large, small)
    return (1 + large - small, 1, 0) if rest else (2 * ratio - ratio % 2, ratio, ratio // 2)
