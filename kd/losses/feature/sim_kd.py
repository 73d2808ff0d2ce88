"""SimKD: learn the teacher's last map, and keep its classifier. Chen et al., Knowledge Distillation with the Reused
Teacher Classifier, 2022."""

from __future__ import annotations

from torch import Tensor, nn

from kd.batch import Batch, Facts, Needs, Outputs, Place, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.feature.cat_kd import final_classifier
from kd.losses.feature.fitnet import hint
from kd.losses.feature.maps import pooled, same_size
from kd.taps import last_stage


def projector(source: int, middle: int, target: int) -> nn.Sequential:
    """From `source` channels to `target`: 1x1, 3x3 and 1x1 convolutions, with `middle` channels between them."""
    shapes = [(source, middle, 1), (middle, middle, 3), (middle, target, 1)]
    layers = [[nn.Conv2d(a, b, k, padding=k // 2, bias=False), nn.BatchNorm2d(b), nn.ReLU()] for a, b, k in shapes]
    return nn.Sequential(*(layer for block in layers for layer in block))


class SimKD(Loss):
    """`hint` between the map that the teacher averages and the student's last stage map, through a projector.

    It trains along. The larger map is average-pooled to the smaller before. `deployed` is the student with the
    projector and the teacher's classifier in the place of its own, which learns nothing. The teacher must classify the
    average of its map by a linear layer. In the paper with weight 1 and nothing beside it.
    """

    needs = Needs(stages=(-1,), final=True)
    weight: Tensor
    bias: Tensor

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise InputError("SimKD.factor", factor, "must be 1 or more")
        self.factor = factor

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        (theirs, *other), classifier = final_classifier("SimKD.teacher", teacher)
        for name, value in zip(("weight", "bias"), classifier, strict=True):
            self.register_buffer(name, value.detach().clone())
        ours, *size = student.stages[-1]
        self.projector = projector(ours, max(1, theirs // self.factor), theirs)
        self.size = min(size[0], other[0]), min(size[1], other[1])
        self.last = student.last

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        ours, theirs = same_size(student.stages[-1], teacher.extra["final"])
        return hint(self.projector(ours), theirs)

    def deployed(self, student: nn.Module) -> nn.Module:
        classes, features = self.weight.shape
        classifier = nn.Linear(features, classes, device="meta")
        classifier.load_state_dict({"weight": self.weight, "bias": self.bias}, assign=True)
        return Reclassified(student, self.projector, classifier, self.size, self.last)


class Reclassified(nn.Module):
    """A net up to its last stage map, a projector of this, and a linear classifier of the average of the result.

    Attributes:
        size: of the map that the projector is given; a larger one is average-pooled.
        last: how the map is found, see `kd.batch.Ports`.
    """

    def __init__(
        self, net: nn.Module, projector: nn.Sequential, classifier: nn.Linear, size: tuple[int, int], last: Place | None
    ) -> None:
        super().__init__()
        self.net, self.projector, self.classifier, self.size, self.last = net, projector, classifier, size, last

    def forward(self, x: Tensor) -> Tensor:
        stage = pooled(last_stage(self.net, x, self.last), self.size)
        logits: Tensor = self.classifier(self.projector(stage).mean((2, 3)))
        return logits
