"""`create`: a classifier by the name of its net."""

from __future__ import annotations

from collections.abc import Sequence

from students import zoo
from students.blueprint import Blueprint
from students.classifier import Classifier
from students.scaling import Factors

Normalize = tuple[Sequence[float], Sequence[float]]


def create(
    name: str,
    *,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | None = None,
    width: Factors = 1.0,
    depth: Factors = 1.0,
    pretrained: bool = False,
    normalize: Normalize | None = None,
) -> Classifier:
    """A classifier of (N, in_chans, H, W) images in [0, 1].

    Args:
        name: of a model of timm, of the CIFAR zoo (`cifar_resnet20`), or of torchvision (`tv_resnet18`).
        image_size: pixels a side; None: what the net was made for. Up to 64 the stem is eased.
        width, depth: factors on channels and on blocks; each one number, or one a stage (see `students.zoo.stages`).
        pretrained: with the published weights, and a fresh classifier where the number of classes differs.
        normalize: mean and std of the pixels, a value a channel; None: those of the published weights where they are
            used, and 0 and 1 otherwise.

    Raises InputError for an unknown name, a factor that the net cannot take, weights that cannot be had, and images too
    small for the net.
    """
    told = zoo.published(name)
    if normalize is None:
        normalize = _for_channels(in_chans, (told.mean, told.std)) if pretrained else ((0.0,), (1.0,))
    mean, std = normalize
    size = told.image_size if image_size is None else image_size
    blueprint = Blueprint(name, num_classes, in_chans, size, width, depth, (tuple(mean), tuple(std)))
    if not pretrained:
        return blueprint.build()
    net = zoo.net(name, num_classes, in_chans, size, width, depth, pretrained)
    return Classifier(net, blueprint)


def _for_channels(channels: int, normalize: Normalize) -> Normalize:
    """One value for all channels where these are not red, green and blue."""
    mean, std = normalize
    return normalize if channels == len(mean) else ((sum(mean) / len(mean),), (sum(std) / len(std),))
