"""`inherit`: a student that begins with weights of a larger net of its family."""

from __future__ import annotations

import torch
from torch import Tensor

from kd.errors import InputError
from students.classifier import Classifier


def inherit(student: Classifier, source: Classifier, field: str = "inherit") -> int:
    """Give `student`, in place, those weights of `source` that bear its names; how many parameters it took.

    Weight selection: Xu et al., Initializing Models with Larger Ones, ICLR 2024. Of the blocks of a stage
    the first ones are taken, for names count them; of an axis of t entries the student's s are i * t // s, so
    that a channel that one layer gives is the channel that the next one reads. Rows of maps keep that (concatenation,
    fused queries, keys and values, groups) where all parts shrink by one ratio, so not in a DenseNet of another depth,
    and channel shuffles do not. Nothing is rescaled: the statistics of a narrower net's BatchNorms are only near, until
    it trains.

    What has no counterpart, or one that is smaller on an axis, stays as it is; so do classifiers of other classes.

    Raises InputError, about `field`, where nothing fits.
    """
    parameters, classes = dict(student.net.named_parameters()), (student.num_classes, source.num_classes)
    theirs, taken = source.net.state_dict(), 0
    for name, mine in student.net.state_dict().items():
        given = theirs.get(name)
        if given is None or not _fits(mine, given):
            continue
        if classes[0] != classes[1] and (*mine.shape[:1], *given.shape[:1]) == classes:
            continue
        mine.copy_(_selected(given, mine.shape))
        taken += mine.numel() if name in parameters else 0
    if not taken:
        names = source.blueprint.name, student.blueprint.name
        raise InputError(field, names[0], f"is of another family than {names[1]}: no weights of it fit")
    return taken


def _fits(mine: Tensor, given: Tensor) -> bool:
    return mine.dim() == given.dim() and all(s <= t for s, t in zip(mine.shape, given.shape, strict=True))


def _selected(given: Tensor, shape: torch.Size) -> Tensor:
    for axis, count in enumerate(shape):
        places = torch.arange(count, device=given.device) * given.shape[axis] // count
        given = given.index_select(axis, places)
    return given
