"""VGG with batch norm at CIFAR's size (Simonyan and Zisserman 2014; RepDistiller's vgg8 and vgg13)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from students.cifar.net import CifarNet


class CifarVGG(CifarNet):
    """Args: channels of the five stages, layers (convolutions) a stage. The middle three begin with a pool."""

    head_name = "classifier"
    stage_names = ("stage1", "stage2", "stage3", "stage4", "stage5")

    def __init__(
        self, channels: Sequence[int], layers: Sequence[int], num_classes: int = 10, in_chans: int = 3
    ) -> None:
        super().__init__(num_classes, in_chans)
        before = in_chans
        for name, count, after in zip(self.stage_names, layers, channels, strict=True):
            row: list[nn.Module] = [nn.MaxPool2d(2)] if name in ("stage2", "stage3", "stage4") else []
            for _ in range(count):
                row += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
                before = after
            setattr(self, name, nn.Sequential(*row))
        self.classifier = nn.Linear(channels[-1], num_classes)
        self.finish(channels, (1, 2, 4, 8, 8))

    def stem(self, x: Tensor) -> Tensor:
        return x
