"""A net by its name, whoever publishes it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from kd.errors import InputError
from kd.evaluate import inference
from students import timm_zoo, torchvision_zoo


@dataclass(frozen=True)
class Published:
    """What is told of a net: the side of its images in pixels, and the mean and std of them in [0, 1]."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def published(name: str) -> Published:
    """Raises InputError for a name that no zoo has."""
    if name in torchvision_zoo.names():
        preset = torchvision_zoo.preset(name)
        return Published(preset.crop_size[0], tuple(preset.mean), tuple(preset.std))
    config = timm_zoo.config(name)
    if config is None:
        close = difflib.get_close_matches(name, [*timm_zoo.names(), *torchvision_zoo.names()])
        raise InputError("student.name", name, f"unknown; did you mean {' or '.join(close)}?" if close else "unknown")
    return Published(config.input_size[-1], tuple(config.mean), tuple(config.std))


def net(
    name: str,
    num_classes: int,
    in_chans: int,
    image_size: int,
    width: float = 1.0,
    depth: float = 1.0,
    pretrained: bool = False,
) -> nn.Module:
    """A net that has been seen to take such images.

    Raises InputError for an unknown name, a factor that the net cannot take, weights that cannot be had, and images too
    small for the net.
    """
    published(name)
    if name.startswith(torchvision_zoo.PREFIX):
        if (width, depth) != (1, 1):
            field, factor = ("width", width) if width != 1 else ("depth", depth)
            raise InputError(f"student.{field}", factor, f"{name} is torchvision's and cannot be scaled")
        build = partial(torchvision_zoo.build, name, num_classes, in_chans, pretrained)
    else:
        build = partial(timm_zoo.build, name, num_classes, in_chans, image_size, width, depth, pretrained)
    try:
        made = build()
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = "its weights cannot be had" if pretrained else "cannot be built"
        raise InputError("student.name", name, f"{why}: {error}") from error
    try:
        with inference(made):
            made(torch.zeros(1, in_chans, image_size, image_size, device=next(made.parameters()).device))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError("data.image_size", image_size, f"does not fit {name}: {error}") from error
    return made
