"""MGD: generate the teacher's map from what a mask leaves of the student's. Yang et al., Masked Generative
Distillation, 2022."""

from __future__ import annotations

from torch import Tensor, nn

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.data.counter import uniform
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.feature.fitnet import hint
from kd.losses.feature.maps import same_size

_STREAM = 0x4D4744  # "MGD": of no augmentation


def kept(index: Tensor, size: tuple[int, int], share: float, seed: int = 0, epoch: int = 0) -> Tensor:
    """(N, 1, H, W) booleans, each False with probability `share`: which pixels or tokens a mask leaves.

    A pure function of (seed, epoch, index), whatever the batch, the process and the state of any generator. `index` is
    (N,) positions in the training set.
    """
    return (uniform(size[0] * size[1], seed, _STREAM, epoch, index) >= share).view(-1, 1, *size)


class MGD(Loss):
    """`hint` between a stage of the teacher and what is generated from the same stage of the student under a mask.

    A 1x1 convolution brings the student's map, where larger average-pooled to the teacher's size before, to the
    teacher's width; the mask drops `share` of its pixels, or tokens, others each epoch; two 3x3 convolutions generate
    the rest. The paper's weight beside cross-entropy is 7e-5 times a sum over the map, that is 7e-5·C·H·W here; the
    authors' code for classification drops channels, the paper pixels.
    """

    def __init__(self, stage: int = -1, share: float = 0.15, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise InputError("MGD.share", share, "must be 0 or above, and below 1")
        self.stage, self.share, self.seed = stage, share, seed
        self.needs = Needs(stages=(stage,))

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        ours, theirs = student.stages[self.stage][0], teacher.stages[self.stage][0]
        self.align = nn.Conv2d(ours, theirs, 1)
        self.generate = nn.Sequential(
            nn.Conv2d(theirs, theirs, 3, padding=1), nn.ReLU(), nn.Conv2d(theirs, theirs, 3, padding=1)
        )

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours, theirs = same_size(student.stages[self.stage], teacher.stages[self.stage])
        mask = kept(batch.index, (ours.shape[2], ours.shape[3]), self.share, self.seed, batch.clock.epoch)
        return hint(self.generate(self.align(ours) * mask), theirs)
