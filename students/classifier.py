"""`Classifier`: a net and its recipe, for raw pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from students.blueprint import Blueprint

_OF_IMAGES = ("forward_features", "forward_intermediates")
_OF_NET = ("forward_head", "get_classifier", "feature_info", "num_features")


class Classifier(nn.Module):
    """A net that normalises for itself, and resizes where its blueprint says so: (N, C, H, W) images in [0, 1] to
    (N, classes) logits.

    What timm's protocol offers of the net, the classifier offers too, for such images; what the net lacks, it lacks.

    Attributes:
        net: the net of timm, torchvision or the CIFAR zoo.
        blueprint: what rebuilds this classifier, weights aside.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, blueprint: Blueprint) -> None:
        super().__init__()
        self.net, self.blueprint = net, blueprint
        mean, std = blueprint.normalize
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def num_classes(self) -> int:
        return self.blueprint.num_classes

    def normalize(self, x: Tensor) -> Tensor:
        size = (self.blueprint.image_size,) * 2
        if self.blueprint.resize and x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        x = (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)
        return x.to(next(self.net.parameters(), x).dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.normalize(x))

    def __getattr__(self, name: str) -> Any:
        if name in _OF_IMAGES:
            method = getattr(self.net, name)
            return lambda x, *args, **options: method(self.normalize(x), *args, **options)
        if name in _OF_NET:
            return getattr(self.net, name)
        return super().__getattr__(name)
