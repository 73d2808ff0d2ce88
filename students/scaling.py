"""Width and depth of timm's nets: what their constructors are given, scaled.

A family is a rule, from the arguments of a constructor and the two factors to the arguments that change. Factors are
continuous; channels are rounded to what the family can take and every stage keeps at least one block, so a factor that
is small enough stops having an effect. A factor of 1 changes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

from kd.errors import InputError

Arguments = dict[str, Any]
Rule = Callable[[Arguments, float, float], Arguments]


def scaled(value: int, factor: float, multiple: int = 1) -> int:
    """`value` times `factor`, to the nearest multiple, never below one; as it is where the factor is 1."""
    return value if factor == 1 else max(multiple, math.floor(value * factor / multiple + 0.5) * multiple)


def stages(channels: str, blocks: str, multiple: int = 8, stem: str | None = None) -> Rule:
    """Nets that list the channels and the blocks of their stages, under these names."""

    def rule(arguments: Arguments, width: float, depth: float) -> Arguments:
        changed: Arguments = {
            channels: tuple(scaled(count, width, multiple) for count in arguments[channels]),
            blocks: tuple(scaled(count, depth) for count in arguments[blocks]),
        }
        return changed if stem is None else changed | {stem: scaled(arguments[stem], width, multiple)}

    return rule


def concatenating(arguments: Arguments, width: float, depth: float) -> Arguments:
    """Nets that put the input of a stage beside its output: what a stage adds is scaled, so that it adds something."""
    added = (after - before for before, after in pairwise((0, *arguments["channels"])))
    return {
        "channels": tuple(accumulate(scaled(count, width, 4 * arguments["groups"]) for count in added)),
        "layers": tuple(scaled(count, depth) for count in arguments["layers"]),
    }


def inverted_residuals(arguments: Arguments, width: float, depth: float) -> Arguments:
    """Nets that list the arguments of every block, and round channels by a function of their own."""
    return {
        "stem_size": scaled(arguments["stem_size"], width if arguments["fix_stem"] else 1, 8),
        "round_chs_fn": partial(_rounded, arguments["round_chs_fn"], width),
        "num_features": scaled(arguments["num_features"], width, 8) if arguments["num_features"] else 0,
        "block_args": [_repeated(stage, scaled(len(stage), depth)) for stage in arguments["block_args"]],
    }


def _rounded(round_channels: Callable[[float], int], width: float, channels: float) -> int:
    return scaled(round_channels(channels), width, 8)


def _repeated(stage: list[Arguments], count: int) -> list[Arguments]:
    """The first `count` blocks of a stage, the last one repeated where there are too few."""
    return [copy.deepcopy(stage[min(i, len(stage) - 1)]) for i in range(count)]


def transformer(arguments: Arguments, width: float, depth: float) -> Arguments:
    heads = scaled(arguments["num_heads"], width)
    return {
        "num_heads": heads,
        "embed_dim": scaled(arguments["embed_dim"], width, math.lcm(heads, 8)),
        "depth": scaled(arguments["depth"], depth),
    }


@dataclass(frozen=True)
class Family:
    """How the nets of one class are scaled, and made to suit small images.

    Attributes:
        scale: the rule.
        last: the stem is eased until the last map of a small image has this side; None: its patches are made smaller.
    """

    scale: Rule
    last: int | None = 4


_cifar = partial(stages, "channels", "layers")
FAMILIES = {
    "ResNet": Family(stages("channels", "layers", stem="stem_width")),
    "ConvNeXt": Family(stages("dims", "depths")),
    "EfficientNet": Family(inverted_residuals),
    "VisionTransformer": Family(transformer, last=None),
    "VisionTransformerDistilled": Family(transformer, last=None),
    "CifarResNet": Family(_cifar(multiple=2), last=2),
    "CifarWideResNet": Family(_cifar(multiple=2), last=2),
    "CifarVGG": Family(_cifar(multiple=2), last=2),
    "CifarMobileNetV2": Family(_cifar(multiple=2), last=2),
    "CifarShuffleNetV1": Family(concatenating, last=2),
    "CifarShuffleNetV2": Family(_cifar(multiple=2), last=2),
}
"""By the name of the model's class."""


def not_scaled(name: str, width: float, depth: float) -> InputError:
    field, factor = ("width", width) if width != 1 else ("depth", depth)
    can = "resnet*, convnext*, mobilenetv2_*, vit_*, deit_* and cifar_* can"
    return InputError(f"student.{field}", factor, f"{name} cannot be scaled yet: {can}")
