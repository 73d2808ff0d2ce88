"""A factor a stage: entry i of what a constructor lists by stages is that of the net scaled by factor i as a whole.

So rules know of one width and one depth, and equal factors make the net of the one. What a net has once goes with its
first factor where it is the stem's and with its last one where it is the head's. A net with anything else that all
stages share takes one factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass, replace
from typing import Any

from students.scaling import Arguments, Factors, Rule

STEM = ("num_init_features", "stem")
HEAD = ("feature_dim", "head_", "num_features")
"""How the names of arguments begin."""


def scale(rule: Rule, arguments: Arguments, width: Factors, depth: Factors) -> Arguments:
    """The arguments that `rule` changes; as many factors as `lengths` tells."""
    if isinstance(depth, tuple):
        return _diagonal(arguments, [scale(rule, arguments, width, factor) for factor in depth])
    if isinstance(width, tuple):
        return _diagonal(arguments, [rule(arguments, factor, depth) for factor in width])
    return rule(arguments, width, depth)


def lengths(rule: Rule, arguments: Arguments) -> tuple[int, int]:
    """How many factors width and depth take: as many as there are entries in all lists that follow, or one."""
    base = arguments | rule(arguments, 1.0, 1.0)
    width, depth = (set(_lengths(base, base | rule(arguments, *factors))) for factors in ((3.0, 1.0), (1.0, 3.0)))
    return (width.pop() if len(width) == 1 else 1), (depth.pop() if len(depth) == 1 else 1)


def _diagonal(arguments: Arguments, scaled: list[Arguments]) -> Arguments:
    names = {name: None for changed in scaled for name in changed}
    return {name: _pick([(arguments | changed)[name] for changed in scaled], name) for name in names}


def _pick(values: list[Any], name: str) -> Any:
    """Of one argument under each factor: where it is a list of stages, entry i of the i-th."""
    first = values[0]
    if name.startswith(STEM + HEAD):
        return values[0 if name.startswith(STEM) else -1]
    if isinstance(first, list | tuple) and len(first) == len(values):
        return type(first)(value[i] for i, value in enumerate(values))
    if _fields(first):
        picked = {key: _pick([_fields(value)[key] for value in values], key) for key in _fields(first)}
        return picked if isinstance(first, Mapping) else replace(first, **picked)
    return first


def _lengths(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[int]:
    """Of the lists that differ, neither the stem's nor the head's; 1 for what is no list."""
    for name, value in before.items():
        if name.startswith(STEM + HEAD) or value == after[name]:
            continue
        if _fields(value):
            yield from _lengths(_fields(value), _fields(after[name]))
        else:
            yield len(value) if isinstance(value, list | tuple) else 1


def _fields(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return vars(value) if is_dataclass(value) and not isinstance(value, type) else {}
