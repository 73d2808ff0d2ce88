"""docs/zoo.md: what width and depth make of one small model of each module of timm.

Example: python -m experiments.zoo > docs/zoo.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from timm.models import _registry as registry

from compress.cost import sketch
from kd.errors import InputError
from students import Blueprint, zoo

NAMES = (Path(__file__).parent / "zoo.txt").read_text().split()
HEAD = (
    *("family", "model", "pixels", "params / MACs (M)", "width .5", "width", "depth .5", "depth"),
    *("32 px", "why not"),
)
PREFACE = """\
# The zoo

One model of each module of timm, the smallest that classifies, is no test model and has blocks to spare, where one has
(`experiments/zoo.txt`), with 100 classes: parameters / multiply-accumulates of an image, in millions, as it is and at
half the width or depth. A family scales where parameters fall to between .15 and .65 (width), or below .9 (depth). At
32 px: the side of the last map. Made by `make sweep`.
"""
_LONGEST = 90


def markdown(names: list[str]) -> Iterator[str]:
    """The page, line by line."""
    yield PREFACE
    yield f"| {' | '.join(HEAD)} |"
    yield f"|{'---|' * len(HEAD)}"
    for name in names:
        yield f"| {' | '.join(row(name))} |"


def row(name: str) -> Iterator[str]:
    size, why = zoo.published(name).image_size, ""
    yield from (registry._model_to_module[name], f"`{name}`", str(size))
    base, told = _cost(name, size)
    yield told
    for axis, least, most in (("width", 0.15, 0.65), ("depth", 0.0, 0.9)):
        try:
            params, told = _cost(name, size, **{axis: 0.5})
            fits, reason = least < params / base < most, f"keeps {params / base:.2f} of the parameters"
        except InputError as error:
            told, fits, reason = "–", False, error.allowed
        why += "" if fits else f"{axis} .5: {reason}; "
        yield from (told, "yes" if fits else "no")
    try:
        side = 32 // Blueprint(name, 100, image_size=32).build("meta").feature_info[-1]["reduction"]
        yield f"{side}x{side}"
    except InputError as error:
        yield "no"
        why += f"32 px: {str(error).partition('not for it ')[2]}"
    why = " ".join(why.replace("|", "/").split()).removesuffix(";")
    yield why if len(why) <= _LONGEST else why[:_LONGEST] + " ..."


def _cost(name: str, size: int, **factors: float) -> tuple[int, str]:
    """Parameters, and these and MACs in words."""
    params, macs = sketch(Blueprint(name, 100, image_size=size, **factors))
    return params, f"{params / 1e6:.2f} / {macs / 1e6:.0f}"


if __name__ == "__main__":
    for line in markdown(sys.argv[1:] or NAMES):
        print(line, flush=True)
