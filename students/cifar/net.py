"""`CifarNet`: timm's protocol for nets of a stem, stages and a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn


class CifarNet(nn.Module):
    """A subclass builds `stem`, the modules in `stage_names`, `norm`, `neck` and the classifier named `head_name`.

    timm's protocol: forward_features, forward_head, forward_intermediates, get_classifier, reset_classifier,
    feature_info, num_features.
    """

    head_name = "linear"
    stage_names: Sequence[str] = ()

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.feature_info: list[dict[str, Any]] = []

    def stem(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def norm(self, x: Tensor) -> Tensor:
        """What the last map goes through, where the blocks leave it unnormalised."""
        return x

    def neck(self, x: Tensor) -> Tensor:
        """What changes the channels between the last map and the pooling."""
        return x

    def stages(self) -> list[nn.Module]:
        return [getattr(self, name) for name in self.stage_names]

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages():
            x = stage(x)
        return self.neck(self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the stages, as in timm: all, the last so many, or those at `indices`; and the final features.

        Under `norm` the last map comes normalised. With `stop_early` no stage is run beyond the last one asked for, and
        the features that come with the maps are unfinished.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt}: only NCHW")
        count = len(self.stage_names)
        wanted, last = feature_take_indices(count, indices)
        maps = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages()[: last + 1] if stop_early else self.stages()):
            x = stage(x)
            if index in wanted:
                maps.append(self.norm(x) if norm and index == count - 1 else x)
        if intermediates_only:
            return maps
        return (x if stop_early and last < count - 1 else self.neck(self.norm(x))), maps

    def get_classifier(self) -> Any:
        return getattr(self, self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        setattr(self, self.head_name, nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity())

    def finish(self, channels: Sequence[int], reductions: Sequence[int]) -> None:
        """Tell what timm asks, a map a stage, and initialise the convolutions after He et al. (2015)."""
        self.num_features = self.get_classifier().in_features
        self.feature_info = [
            {"num_chs": count, "reduction": reduction, "module": name}
            for name, count, reduction in zip(self.stage_names, channels, reductions, strict=True)
        ]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def norm_conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size (at stride 1), and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]
