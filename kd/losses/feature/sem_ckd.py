"""SemCKD: learn which stage of the teacher teaches which of the student, sample by sample. Chen et al., Cross-Layer
Distillation with Semantic Calibration, 2021."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.feature.maps import last_stages, same_size, stage_needs
from kd.tensors import pair


class SemCKD(Loss):
    """Mean over samples and stages of the student of Σ_j α_ij·MSE_ij, j over stages of the teacher.

    MSE_ij is that of the teacher's map j and of what three convolutions make of the student's map i, the larger one
    average-pooled to the smaller before. α is softmax over j of the product of a query of map i and a key of map j,
    which two layers make of the sample's row of the map's Gram matrix over the batch. All of these train along, one for
    each stage or pair of stages; stages are the last three of both nets by default.

    `batch` is the size of the whole batch, over all processes, by default that of the fit; rows of a smaller one are
    filled up with zeros, a larger one is refused. In the paper with weight 400 beside cross-entropy and KD of weight 1,
    T = 4.
    """

    def __init__(self, stages: Sequence[int] | None = None, batch: int | None = None) -> None:
        super().__init__()
        if batch is not None and batch < 1:
            raise InputError("SemCKD.batch", batch, "must be 1 or more")
        self.batch, self.stages = batch, stages
        self.needs = Needs(stages=stage_needs("SemCKD", stages).stages, gathered=True)

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.stages = tuple(self.stages or last_stages(3, student, teacher))
        self.needs = Needs(stages=self.stages, gathered=True)  # a stage that is not named would not be gathered
        self.batch = self.batch or data.batch_size or 64
        if self.batch < (data.batch_size or 1):
            raise InputError("SemCKD.batch", self.batch, f"must be at least the whole batch, {data.batch_size}")
        self.queries, self.keys = (nn.ModuleList(_embedding(self.batch) for _ in self.stages) for _ in range(2))
        ours, theirs = ([ports.stages[i][0] for i in self.stages] for ports in (student, teacher))
        self.regressors = nn.ModuleList(_regressor(*widths) for widths in itertools.product(ours, theirs))

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        assert self.stages is not None
        pairs = [pair(student.stages[i], teacher.stages[i]) for i in self.stages]
        ours, theirs = ([maps[side] for maps in pairs] for side in range(2))
        attention = (self._embedded(self.queries, ours) @ self._embedded(self.keys, theirs).mT).softmax(2)
        crossed = zip(self.regressors, itertools.product(ours, theirs), strict=True)
        errors = torch.stack([_error(net, *maps) for net, maps in crossed], 1).view_as(attention)
        return (attention * errors).sum(2).mean()

    def _embedded(self, nets: nn.ModuleList, maps: Sequence[Tensor]) -> Tensor:
        """(N, stages, width) unit vectors."""
        assert self.batch is not None
        missing = self.batch - len(maps[0])
        if missing < 0:
            raise InputError("SemCKD.batch", self.batch, f"must be at least the whole batch, {len(maps[0])}")
        rows = [x.flatten(1) @ x.flatten(1).T for x in maps]
        return torch.stack([F.normalize(net(F.pad(x, (0, missing)))) for net, x in zip(nets, rows, strict=True)], 1)


def _error(regressor: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """(N,) mean squared differences."""
    ours, theirs = same_size(student, teacher)
    return (regressor(ours) - theirs).square().flatten(1).mean(1)


def _embedding(batch: int) -> nn.Sequential:
    """From a row of a Gram matrix to a vector of a quarter of its length."""
    width = max(2, batch // 4)  # a unit vector of one number could not turn
    return nn.Sequential(nn.Linear(batch, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def _regressor(source: int, target: int) -> nn.Sequential:
    middle = 2 * target
    return nn.Sequential(
        nn.Conv2d(source, middle, 1, bias=False),
        _norm(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        _norm(middle),
        nn.ReLU(),
        nn.Conv2d(middle, target, 1, bias=False),
    )


def _norm(channels: int) -> nn.BatchNorm2d:
    # no running statistics: they serve nothing here, and would be of each process's view of maps that are whole already
    return nn.BatchNorm2d(channels, track_running_stats=False)
