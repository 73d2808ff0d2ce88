"""ResNets of CIFAR (He et al. 2015, section 4.2): three stages of basic blocks at 32, 16 and 8 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from students.cifar.net import CifarNet


class PadChannels(nn.Module):
    """So many zero channels more, on both sides."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


def padding(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option A: every `stride`-th pixel, new channels zero; no parameters."""
    return nn.Sequential(nn.AvgPool2d(1, stride), PadChannels(outputs - inputs))


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Option B."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, option: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = (padding if option == "A" else projection)(inputs, outputs, stride)
        self.relu = nn.ReLU()  # a module, so that maps can be tapped before it

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(CifarNet):
    """Args: channels of the stem and the three stages, layers (blocks) a stage, the shortcut: padding (A) or a
    projection (B)."""

    stage_names = ("layer1", "layer2", "layer3")

    def __init__(
        self,
        channels: Sequence[int],
        layers: Sequence[int],
        option: Literal["A", "B"] = "B",
        num_classes: int = 10,
        in_chans: int = 3,
    ) -> None:
        super().__init__(num_classes, in_chans)
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        for name, count, (before, after) in zip(self.stage_names, layers, pairwise(channels), strict=True):
            first = BasicBlock(before, after, 1 if name == "layer1" else 2, option)
            setattr(self, name, nn.Sequential(first, *(BasicBlock(after, after, 1, option) for _ in range(count - 1))))
        self.linear = nn.Linear(channels[-1], num_classes)
        self.finish(channels[1:], (1, 2, 4))

    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv1(x)))
