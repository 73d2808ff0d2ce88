"""Nets by their names in timm's registry, where the CIFAR zoo is too.

Every entrypoint of timm ends in a call of `build_model_with_cfg` with the class of the net and the arguments of its
constructor: there the arguments are scaled. To come between, the entrypoint is run in a copy of its module's
functions in which that one name means ours; timm itself is not touched.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn

from kd.errors import InputError
from students.reshaping import DEPTHS, WIDTHS, reshape
from students.scaling import FAMILIES, OTHERS, Arguments, not_scaled
from students.stem import ease, patches

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
    name: str, num_classes: int, in_chans: int, image_size: int, width: float, depth: float, pretrained: bool
) -> nn.Module:
    """The net, scaled, its stem eased where images are small.

    Raises InputError where it cannot be scaled, or has no published weights.
    """
    timm = _timm()
    facts = config(name)
    if pretrained and not facts.has_weights:
        raise InputError("student.name", name, "there are no published weights of it")
    arguments: Arguments = {"num_classes": num_classes, "in_chans": in_chans}
    if facts.fixed_input_size:
        arguments["img_size"] = image_size

    def adjusted(net: type[nn.Module], variant: str, weights: bool, **given: Any) -> nn.Module:
        full = _defaults(net) | given
        if "img_size" in arguments and isinstance(full.get("patch_size"), int):
            given["patch_size"] = patches(full["patch_size"], image_size)
        rule = FAMILIES.get(net.__name__, OTHERS).scale
        for factors, built in (((width, 1.0), WIDTHS), ((1.0, depth), DEPTHS)):
            if factors == (1, 1) or net.__name__ in built:
                continue
            more = rule(full, *(1.0 if factor == 1 else 3.0 for factor in factors))  # which every count would follow
            if all(more[key] == full[key] for key in more):
                raise not_scaled(name, *factors, f"no argument of {net.__name__} says how")
        given |= rule(full, width, depth)
        return timm.models.build_model_with_cfg(net, variant, weights, **given)

    architecture, _, tag = name.partition(".")
    entrypoint = _between(timm.model_entrypoint(architecture), adjusted)
    net = entrypoint(pretrained=pretrained, pretrained_cfg=tag or None, **arguments)
    reshape(net, in_chans, width, depth)
    family = FAMILIES.get(type(net).__name__, OTHERS)
    if family.last is not None:
        ease(net, in_chans, image_size, family.last)
    return net


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
