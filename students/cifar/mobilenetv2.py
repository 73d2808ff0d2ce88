"""MobileNetV2 at CIFAR's size, half as wide (Sandler et al. 2018; RepDistiller's MobileNetV2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from students.cifar.net import CifarNet, norm_conv

STRIDES = (1, 1, 2, 2, 1, 2, 1)  # of each group of inverted residuals
EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.conv = nn.Sequential(
            *norm_conv(inputs, hidden, 1),
            nn.ReLU(inplace=True),
            *norm_conv(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU(inplace=True),
            *norm_conv(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class CifarMobileNetV2(CifarNet):
    """Args: channels of the stem, of the seven groups and of the last convolution, layers (blocks) a group."""

    head_name = "classifier"
    stage_names = ("stage1", "stage2", "stage3", "stage4")

    def __init__(
        self, channels: Sequence[int], layers: Sequence[int], num_classes: int = 10, in_chans: int = 3
    ) -> None:
        super().__init__(num_classes, in_chans)
        before = channels[0]
        self.conv1 = nn.Sequential(*norm_conv(in_chans, before, 3, 2), nn.ReLU(inplace=True))
        stages: list[list[nn.Module]] = [[]]
        outs: list[int] = []
        for count, after, stride, expand in zip(layers, channels[1:-1], STRIDES, EXPANSIONS, strict=True):
            if stride == 2:  # a stage ends where the map shrinks
                stages.append([])
                outs.append(before)
            for index in range(count):
                stages[-1].append(InvertedResidual(before, after, stride if index == 0 else 1, expand))
                before = after
        for name, row in zip(self.stage_names, stages, strict=True):
            setattr(self, name, nn.Sequential(*row))
        self.conv2 = nn.Sequential(*norm_conv(before, channels[-1], 1), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(channels[-1], num_classes)
        self.finish([*outs, before], (2, 4, 8, 16))

    def stem(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def neck(self, x: Tensor) -> Tensor:
        return self.conv2(x)
