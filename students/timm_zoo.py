"""Nets by their names in timm's registry, where the CIFAR zoo is too.

Every entrypoint of timm ends in a call of `build_model_with_cfg` with the class of the net and the arguments of its
constructor: there the arguments are scaled. To come between, the entrypoint is run in a copy of its module's
functions in which that one name means ours; timm itself is not touched.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import nn

from kd.errors import InputError
from students.reshaping import DEPTHS, WIDTHS, reshape
from students.scaling import FAMILIES, OTHERS, Arguments, Factors, chained, not_scaled
from students.stages import lengths, scale
from students.stem import SMALL, ease, patched

Build = Callable[..., nn.Module]


def names() -> list[str]:
    timm = _timm()
    return timm.list_models()


def config(name: str) -> Any:
    """What timm tells of a model and its weights (its PretrainedCfg); None where the name is unknown."""
    try:
        return _timm().get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        return None


def build(
    name: str, num_classes: int, in_chans: int, image_size: int, width: Factors, depth: Factors, pretrained: bool
) -> nn.Module:
    """The net, scaled, its stem eased where images are small.

    Raises InputError where it cannot be scaled, or has no published weights.
    """
    timm = _timm()
    facts = config(name)
    if pretrained and not facts.has_weights:
        raise InputError("student.name", name, "there are no published weights of it")
    arguments: Arguments = {"num_classes": num_classes, "in_chans": in_chans}
    bound = facts.input_size[-1] if facts.fixed_input_size else None

    def adjusted(net: type[nn.Module], variant: str, weights: bool, **given: Any) -> nn.Module:
        full = _defaults(net) | given
        family = FAMILIES.get(net.__name__, OTHERS)
        rule = family.scale
        if family.patched and image_size <= SMALL:
            given |= patched(full, image_size)
        for wide, deep, built in ((width, 1.0, WIDTHS), (1.0, depth, DEPTHS)):
            if (wide, deep) == (1, 1) or net.__name__ in built:
                continue
            more = rule(full, *(1.0 if factor == 1 else 3.0 for factor in (wide, deep)))  # every count would follow
            if all(more[key] == full[key] for key in more):
                raise not_scaled(name, wide, deep, f"no argument of {net.__name__} says how")
        given |= scale(rule, full, width, depth)
        return timm.models.build_model_with_cfg(net, variant, weights, **given)

    architecture, _, tag = name.partition(".")
    entrypoint = _between(timm.model_entrypoint(architecture), adjusted)

    def made(size: int, weights: bool = pretrained) -> nn.Module:
        sized = {"img_size": size} if bound else {}
        net = entrypoint(pretrained=weights, pretrained_cfg=tag or None, **arguments, **sized)
        reshape(net, in_chans, width, depth)
        return net

    if image_size > SMALL:
        return made(image_size)
    with torch.device("meta"):  # nothing is computed
        sketch = made(bound or image_size, weights=False)
    last = FAMILIES.get(type(sketch).__name__, OTHERS).last
    return ease(made, sketch, in_chans, image_size, last, bound)


@cache
def stages(name: str) -> tuple[int, int]:
    """How many factors width and depth can be: one for each stage that the constructor lists, or a single one."""
    found = (1, 1)

    def seen(net: type[nn.Module], variant: str, weights: bool, **given: Any) -> nn.Module:
        nonlocal found
        kind, family = net.__name__, FAMILIES.get(net.__name__, OTHERS)
        full = _defaults(net) | given
        width, depth = lengths(family.scale, full)
        width = 1 if kind in WIDTHS or "width" in family.shared or chained(full) else width
        found = width, 1 if kind in DEPTHS or "depth" in family.shared else depth
        return timm.models.build_model_with_cfg(net, variant, weights, **given)

    timm = _timm()
    with torch.device("meta"):
        _between(timm.model_entrypoint(name.partition(".")[0]), seen)()
    return found


def _timm() -> Any:
    import timm

    import students.cifar  # noqa: F401 - registers its nets

    return timm


def _between(entrypoint: FunctionType, build: Build) -> Build:
    """`entrypoint`, with `build` in the place of `build_model_with_cfg`."""
    home = vars(sys.modules[entrypoint.__module__])
    scope = dict(home)
    for name, value in home.items():
        if isinstance(value, FunctionType) and value.__globals__ is home:
            scope[name] = _moved(value, scope)
    scope["build_model_with_cfg"] = build
    return _moved(entrypoint, scope)


def _moved(function: FunctionType, scope: dict[str, Any]) -> FunctionType:
    """The same function, reading its globals from `scope`."""
    copied = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


def _defaults(net: type[nn.Module]) -> Arguments:
    """The default arguments of a constructor, those that it hands on to its base classes included."""
    found: Arguments = {}
    for base in reversed(net.__mro__):
        parameters = inspect.signature(base).parameters.values() if "__init__" in vars(base) else ()
        found |= {p.name: p.default for p in parameters if p.default is not p.empty}
    return found
