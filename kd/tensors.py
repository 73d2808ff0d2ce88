"""What every formula does first: end half precision, cut the teacher's graph, refuse wrong shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from kd.batch import Outputs


def widen(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32, float64 and integers stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the student's precision, which is never half, and the teacher cut off from its graph."""
    student = widen(student)
    return student, teacher.detach().to(student.dtype)


def expect(fits: bool, rule: str, *tensors: Tensor) -> None:
    """Raise ValueError with the rule and all shapes unless `fits`."""
    if not fits:
        raise ValueError(f"expected {rule}, got {' and '.join(str(tuple(x.shape)) for x in tensors)}")


def probabilities(target: Tensor, classes: int) -> Tensor:
    """(N, classes) probabilities from (N,) integer labels or from themselves."""
    return widen(target) if target.dim() == 2 else one_hot(target, classes)


def each(change: Callable[[Tensor], Tensor], outputs: Outputs) -> Outputs:
    """Outputs with every tensor changed."""
    return Outputs(
        change(outputs.logits),
        None if outputs.embedding is None else change(outputs.embedding),
        tuple(map(change, outputs.stages)),
        {name: change(value) for name, value in outputs.extra.items()},
        tuple(map(change, outputs.before)),
        tuple(each(change, other) for other in outputs.others),
    )
