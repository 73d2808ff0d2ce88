"""ShuffleNetV1 and V2 at CIFAR's size (Zhang et al. 2017, Ma et al. 2018; RepDistiller's ShuffleV1 and ShuffleV2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from students.cifar.net import CifarNet, norm_conv


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Mix the channels of `groups` groups (Zhang et al. 2017, figure 1)."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleUnitV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; a stride of 2 concatenates the pooled input."""

    def __init__(self, inputs: int, outputs: int, stride: int, first_groups: int, groups: int) -> None:
        super().__init__()
        self.reduces, self.groups = stride == 2, first_groups
        branch = outputs - inputs if self.reduces else outputs
        middle = branch // 4
        self.conv1 = nn.Sequential(*norm_conv(inputs, middle, 1, groups=first_groups))
        self.conv2 = nn.Sequential(*norm_conv(middle, middle, 3, stride, groups=middle))
        self.conv3 = nn.Sequential(*norm_conv(middle, branch, 1, groups=groups))
        self.pool = nn.AvgPool2d(3, 2, 1) if self.reduces else nn.Identity()
        self.relu = nn.ReLU()  # a module, so that maps can be tapped before it

    def forward(self, x: Tensor) -> Tensor:
        y = shuffle(self.relu(self.conv1(x)), self.groups)
        y = self.conv3(self.relu(self.conv2(y)))  # the paper has no ReLU here; the nets of the tables have one
        x = self.pool(x)
        return self.relu(torch.cat([y, x], 1) if self.reduces else y + x)


class ShuffleUnitV2(nn.Module):
    """Half of the channels pass, half are convolved, then both are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            *norm_conv(half, half, 1),
            nn.ReLU(),
            *norm_conv(half, half, 3, groups=half),
            *norm_conv(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        return shuffle(torch.cat([kept, self.branch(changed)], 1), 2)


class DownUnitV2(nn.Module):
    """Both halves are convolved with a stride of 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.left = nn.Sequential(
            *norm_conv(inputs, inputs, 3, 2, groups=inputs), *norm_conv(inputs, half, 1), nn.ReLU()
        )
        self.right = nn.Sequential(
            *norm_conv(inputs, half, 1),
            nn.ReLU(),
            *norm_conv(half, half, 3, 2, groups=half),
            *norm_conv(half, half, 1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(torch.cat([self.left(x), self.right(x)], 1), 2)


class CifarShuffleNetV1(CifarNet):
    """Args: channels of the stem and the three stages (multiples of 4 x groups), layers (units) a stage, groups of the
    1x1 convolutions."""

    stage_names = ("layer1", "layer2", "layer3")

    def __init__(
        self,
        channels: Sequence[int],
        layers: Sequence[int],
        num_classes: int = 10,
        in_chans: int = 3,
        groups: int = 3,
    ) -> None:
        super().__init__(num_classes, in_chans)
        self.conv1 = nn.Sequential(*norm_conv(in_chans, channels[0], 1), nn.ReLU())
        for name, count, (before, after) in zip(self.stage_names, layers, pairwise(channels), strict=True):
            # the few channels of the stem are not grouped
            first = ShuffleUnitV1(before, after, 2, 1 if name == "layer1" else groups, groups)
            rest = [ShuffleUnitV1(after, after, 1, groups, groups) for _ in range(count - 1)]
            setattr(self, name, nn.Sequential(first, *rest))
        self.linear = nn.Linear(channels[-1], num_classes)
        self.finish(channels[1:], (2, 4, 8))

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)


class CifarShuffleNetV2(CifarNet):
    """Args: channels of the stem, the three stages and the last convolution; layers (units behind the one that halves
    the map) a stage."""

    stage_names = ("layer1", "layer2", "layer3")

    def __init__(
        self, channels: Sequence[int], layers: Sequence[int], num_classes: int = 10, in_chans: int = 3
    ) -> None:
        super().__init__(num_classes, in_chans)
        self.conv1 = nn.Sequential(*norm_conv(in_chans, channels[0], 1), nn.ReLU())
        for name, count, (before, after) in zip(self.stage_names, layers, pairwise(channels[:-1]), strict=True):
            setattr(self, name, nn.Sequential(DownUnitV2(before, after), *(ShuffleUnitV2(after) for _ in range(count))))
        self.conv2 = nn.Sequential(*norm_conv(channels[-2], channels[-1], 1), nn.ReLU())
        self.linear = nn.Linear(channels[-1], num_classes)
        self.finish(channels[1:-1], (2, 4, 8))

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def neck(self, x: Tensor) -> Tensor:
        return self.conv2(x)
