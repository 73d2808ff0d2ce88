"""A net by its name, whoever publishes it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from kd.errors import InputError
from kd.evaluate import inference
from students import timm_zoo, torchvision_zoo
from students.meta import swift_recurrence
from students.scaling import Factors, not_scaled


@dataclass(frozen=True)
class Published:
    """What is told of a net: the side of its images, and the mean and std of their pixels in [0, 1]."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def published(name: str) -> Published:
    """Raises InputError for a name that no zoo has."""
    if _of_torchvision(name):
        preset = torchvision_zoo.preset(name) if name in torchvision_zoo.names() else None
        known = preset and Published(preset.crop_size[0], tuple(preset.mean), tuple(preset.std))
    else:
        config = timm_zoo.config(name)
        known = config and Published(config.input_size[-1], tuple(config.mean), tuple(config.std))
    if known is None:
        close = difflib.get_close_matches(name, [*timm_zoo.names(), *torchvision_zoo.names()])
        raise InputError("student.name", name, f"unknown; did you mean {' or '.join(close)}?" if close else "unknown")
    return known


def net(
    name: str,
    num_classes: int,
    in_chans: int,
    image_size: int,
    width: Factors = 1.0,
    depth: Factors = 1.0,
    pretrained: bool = False,
    tried: bool = True,
) -> nn.Module:
    """A net that has been seen to take such images, unless it is not to be `tried`.

    Raises InputError for an unknown name, a factor that the net cannot take, weights that cannot be had, and images too
    small for the net.
    """
    published(name)
    _expect_stages(name, "width", width)
    _expect_stages(name, "depth", depth)
    if pretrained and (width, depth) != (1, 1):
        raise InputError("student.pretrained", "true", "published weights fit width 1 and depth 1 only")
    make = partial(_run, name, num_classes, in_chans, image_size, tried)
    try:
        return make(width, depth, pretrained)
    except InputError:
        raise
    except _RAISED as error:
        why = str(error) or type(error).__name__
        if _fails(make, 1.0):
            refused = InputError("data.image_size", image_size, f"too small for {name}, or not for it ({why})")
        elif pretrained:
            refused = InputError("student.name", name, f"its weights cannot be had ({why})")
        elif width != 1 and _fails(make, width):
            refused = not_scaled(name, width, 1.0, why)
        else:
            refused = not_scaled(name, 1.0, depth, why)
        raise refused from error


_RAISED = (OSError, RuntimeError, ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError)  # by nets, hubs


def _run(
    name: str,
    num_classes: int,
    in_chans: int,
    image_size: int,
    tried: bool,
    width: Factors,
    depth: Factors,
    pretrained: bool,
) -> nn.Module:
    if _of_torchvision(name):
        assert not isinstance(width, tuple)  # one number was seen to
        assert not isinstance(depth, tuple)
        made = torchvision_zoo.build(name, num_classes, in_chans, width, depth, pretrained)
    else:
        made = timm_zoo.build(name, num_classes, in_chans, image_size, width, depth, pretrained)
    if tried:
        with inference(made), swift_recurrence():
            made(torch.zeros(1, in_chans, image_size, image_size))
    return made


def stages(name: str) -> tuple[int, int]:
    """How many factors the width and the depth of a net can be: one a stage, or a single one.

    Raises InputError for a name that no zoo has.
    """
    published(name)
    return (1, 1) if _of_torchvision(name) else timm_zoo.stages(name)


def _expect_stages(name: str, axis: str, factor: Factors) -> None:
    """Raises InputError unless there is one factor, or one for each stage."""
    if not isinstance(factor, tuple):
        return
    count = stages(name)[axis == "depth"]
    if count == 1:
        raise InputError(f"student.{axis}", factor, f"{name} takes one number: its stages share it")
    if len(factor) != count:
        raise InputError(f"student.{axis}", factor, f"{name} takes one number, or {count} of them, one a stage")


def _fails(make: Callable[[Factors, Factors, bool], nn.Module], width: Factors) -> bool:
    try:
        with torch.device("meta"):
            make(width, 1.0, False)
    except _RAISED:
        return True
    return False


def _of_torchvision(name: str) -> bool:
    return name.startswith(torchvision_zoo.PREFIX)
