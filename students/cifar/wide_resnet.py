"""Wide ResNets of CIFAR (Zagoruyko and Komodakis 2016): pre-activation blocks, k times as wide."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from students.cifar.net import CifarNet


class PreActivationBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class CifarWideResNet(CifarNet):
    """Args: channels of the stem and the three stages, layers (blocks) a stage."""

    head_name = "fc"
    stage_names = ("block1", "block2", "block3")

    def __init__(
        self, channels: Sequence[int], layers: Sequence[int], num_classes: int = 10, in_chans: int = 3
    ) -> None:
        super().__init__(num_classes, in_chans)
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, 1, 1, bias=False)
        for name, count, (before, after) in zip(self.stage_names, layers, pairwise(channels), strict=True):
            first = PreActivationBlock(before, after, 1 if name == "block1" else 2)
            setattr(self, name, nn.Sequential(first, *(PreActivationBlock(after, after, 1) for _ in range(count - 1))))
        self.bn1 = nn.BatchNorm2d(channels[-1])
        self.fc = nn.Linear(channels[-1], num_classes)
        self.finish(channels[1:], (1, 2, 4))

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def norm(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(x))
