"""What losses on pairs of stage maps share: which stages meet, how they get one size and one width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Needs, Ports
from kd.errors import InputError
from kd.tensors import pair


def stage_needs(name: str, stages: Sequence[int] | None, least: int = 1, before: bool = False) -> Needs:
    """Needs of the loss `name` that reads these stages, or, where they are None, some that `bind` chooses."""
    if stages is not None and len(stages) < least:
        raise InputError(f"{name}.stages", stages, f"must be {least} or more")
    return Needs(stages=tuple(stages or (-1,)), before=before)  # all come where any is needed


def last_stages(count: int, student: Ports, teacher: Ports) -> tuple[int, ...]:
    """The last `count` stages, or as many as both have, counted from the end: a net may show its stem's map or not."""
    return tuple(range(-min(count, len(student.stages), len(teacher.stages)), 0))


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) maps ready to be compared: see `kd.tensors.pair`, and the larger one average-pooled to the other."""
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    student, teacher = pair(student, teacher)
    return pooled(student, size), pooled(teacher, size)


def pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    # pooling to the same size would change nothing, but its gradient is not deterministic on CUDA
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)


def connectors(stages: Sequence[int], student: Ports, teacher: Ports) -> nn.ModuleList:
    """For each stage a 1x1 convolution and a BatchNorm from the student's width to the teacher's."""
    widths = [(student.stages[stage][0], teacher.stages[stage][0]) for stage in stages]
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(ours, theirs, 1, bias=False), nn.BatchNorm2d(theirs)) for ours, theirs in widths
    )
