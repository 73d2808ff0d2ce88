"""The smallest net, data and teacher that a test can train with."""

from __future__ import annotations

import torch
from torch import nn

from kd.batch import Batch, Clock, Facts, Needs, Outputs, Ports, View
from kd.taps import ports, read


def tiny_net(width: int = 4, classes: int = 3) -> nn.Sequential:
    """A net of two stages, (width, 8, 8) and (2·width, 4, 4), for (N, 3, 8, 8) images."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, classes),
    )


def tiny_facts(classes: int = 3, size: int = 12, soft_labels: bool = False) -> Facts:
    """Facts of a data set of 8x8 colour images."""
    names = tuple(str(c) for c in range(classes))
    labels = torch.arange(size) % classes
    return Facts(classes, names, 3, (8, 8), (0.5,) * 3, (0.2,) * 3, labels, soft_labels)


def tiny_batch(facts: Facts, samples: int, views: int = 1, epoch: int = 0) -> Batch:
    """Random images of the first samples of such a data set, in epoch `epoch` of 4, always the same."""
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(views, samples, facts.channels, *facts.image_size, generator=draws)
    y, index = facts.labels[:samples], torch.arange(samples)
    if facts.soft_labels:
        y = torch.rand(samples, facts.classes, generator=draws).softmax(1)
    return Batch(tuple(View(x[v], y, index, v) for v in range(views)), Clock(epoch, 4, epoch, 4))


class TinyTeacher:
    """A live guide around a tiny net, that counts how often it is copied."""

    def __init__(self, classes: int = 3) -> None:
        self.model = tiny_net(6, classes).eval()
        self.copies = 0

    def __call__(self, view: View, needs: Needs) -> Outputs:
        return read(self.model, view.x, needs)

    def ports(self, data: Facts) -> Ports:
        return ports(self.model, data.channels, data.image_size)

    def __deepcopy__(self, memo: dict[int, object]) -> TinyTeacher:
        self.copies += 1
        return self
