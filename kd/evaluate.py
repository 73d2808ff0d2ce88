"""How good a classifier is: accuracy, agreement with the teacher, calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kd.batch import View

Predict = Callable[[Tensor], Tensor]
BINS = 15


@dataclass(frozen=True)
class Metrics:
    """Scores on one split.

    Attributes:
        top1: accuracy, percent.
        agreement: share of samples with the teacher's answer, percent; None without a teacher.
        nll: mean negative log-likelihood of the label, nats.
        ece: expected calibration error over 15 equal bins of confidence, percent (Guo et al. 2017, eq. 3).
        count: number of samples.
    """

    top1: float
    agreement: float | None
    nll: float
    ece: float
    count: int


@contextmanager
def inference(model: object) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of every submodule is put back afterwards."""
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    try:
        for module in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _sums(logits: Tensor, y: Tensor, teacher: Tensor | None) -> Tensor:
    """(4 + 3 BINS,) sums over samples: hits, agreeing, nll, count; then count, confidence and hits a bin."""
    logits, y = logits.double().cpu(), y.cpu()
    confidence, answer = logits.softmax(1).max(1)
    hit = (answer == y).double()
    agree = torch.zeros(()) if teacher is None else (teacher.argmax(1).cpu() == answer).sum()
    nll = nn.functional.cross_entropy(logits, y, reduction="sum")
    bins = torch.zeros(3, BINS, dtype=torch.float64)
    place = (confidence.nan_to_num() * BINS).long().clamp(max=BINS - 1)  # logits that are not finite show in nll
    bins.index_add_(1, place, torch.stack([torch.ones_like(hit), confidence, hit]))
    return torch.cat([torch.tensor([hit.sum(), agree, nll, len(y)], dtype=torch.float64), bins.flatten()])


def _metrics(sums: Tensor, with_teacher: bool) -> Metrics:
    hits, agreeing, nll, count = sums[:4].tolist()
    _, confidence, accuracy = sums[4:].view(3, BINS)
    return Metrics(
        top1=100 * hits / count,
        agreement=100 * agreeing / count if with_teacher else None,
        nll=nll / count,
        ece=100 * (confidence - accuracy).abs().sum().item() / count,
        count=int(count),
    )


def answers(predict: Predict, views: Iterable[View]) -> tuple[Tensor, Tensor]:
    """All (N, classes) logits about these views, and their labels: what `score` takes."""
    with inference(predict):
        pairs = [(predict(view.x), view.y) for view in views]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([y for _, y in pairs])


def score(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> Metrics:
    """Metrics of (N, classes) logits against (N,) labels, and against a teacher's (N, classes) logits."""
    return _metrics(_sums(logits, labels, teacher_logits), teacher_logits is not None)


def evaluate(predict: Predict, views: Iterable[View], teacher: Predict | None = None) -> Metrics:
    """Score `predict` (images in [0, 1] to logits: a module or a deployed runtime) on unaugmented views.

    Under several processes each rank passes its own views and all get the scores of the whole.
    """
    sums = torch.zeros(4 + 3 * BINS, dtype=torch.float64)
    with inference(predict), inference(teacher):
        for view in views:
            sums += _sums(predict(view.x), view.y, None if teacher is None else teacher(view.x))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        shared = sums.to(device)
        dist.all_reduce(shared)
        sums = shared.cpu()
    return _metrics(sums, teacher is not None)
