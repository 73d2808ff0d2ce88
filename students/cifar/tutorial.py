"""The two nets of PyTorch's tutorial on distillation (Chariton, Knowledge distillation tutorial, 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from students.cifar.net import CifarNet

_SIDE = 8  # of the last map, which the classifier reads place by place; images of 32 pixels have it as it comes


class CifarTutorialNet(CifarNet):
    """Args: channels of both stages, layers (convolutions) of each, of which all but the last have twice its channels,
    hidden units of the classifier. A stage ends in a pool; a last map of another size than 8 x 8 is pooled to it.
    """

    head_name = "linear"
    stage_names = ("stage1", "stage2")

    def __init__(
        self,
        channels: Sequence[int],
        layers: Sequence[int],
        hidden: int,
        num_classes: int = 10,
        in_chans: int = 3,
    ) -> None:
        super().__init__(num_classes, in_chans)
        before = in_chans
        for name, count, last in zip(self.stage_names, layers, channels, strict=True):
            row: list[nn.Module] = []
            for after in (*[2 * last] * (count - 1), last):
                row += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(inplace=True)]
                before = after
            setattr(self, name, nn.Sequential(*row, nn.MaxPool2d(2)))
        self.hidden = nn.Sequential(nn.Linear(before * _SIDE**2, hidden), nn.ReLU(inplace=True), nn.Dropout(0.1))
        self.linear = nn.Linear(hidden, num_classes)
        self.finish(channels, (2, 4))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()  # as the tutorial has it

    def stem(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.hidden(torch.flatten(nn.functional.adaptive_avg_pool2d(x, _SIDE), 1))
        return x if pre_logits else self.get_classifier()(x)
