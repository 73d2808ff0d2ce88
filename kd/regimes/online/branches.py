"""Branches of the last stage of any net, on one trunk, without an edit of the net.

The layers that run after the stage before the last one are the tail, and every branch has its own. All branches run in
one pass: where a layer of the tail meets the trunk's N samples, each branch's layer is given them, and what they say is
joined to N samples a branch, one branch after the other; where it meets these, each is given its own. Whatever is done
between layers is done to each sample by itself, so that it serves all branches; that the outcome is that of each branch
alone is tried before training.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd.batch import Facts, Needs
from kd.errors import InputError
from kd.evaluate import inference
from kd.taps import read


@dataclass(frozen=True)
class Fork:
    """Where a net is forked.

    Attributes:
        trunk: path of the module that ends the trunk.
        channels: the axis of channels of its output.
        layers: paths of the tail's layers, none within another.
    """

    trunk: str
    channels: int
    layers: tuple[str, ...]

    def tail(self, model: nn.Module) -> nn.ModuleList:
        """These layers of `model`."""
        return nn.ModuleList(map(model.get_submodule, self.layers))


@dataclass
class _Call:
    """Of a module: when it starts and ends, and the axis of channels where it says what is looked for, else 0."""

    name: str
    start: int
    end: int = 0
    channels: int = 0


def fork(model: nn.Module, others: Sequence[nn.Module], data: Facts) -> Fork:
    """The fork of `model` after its stage before the last, at which `others`, of its architecture, join.

    Raises InputError where there is none: fewer than two stages, a stage that is no module's output, or layers before
    and after it that share weights or meet otherwise than through it.
    """
    place = next(model.parameters())
    x = torch.rand(2, *data.image_shape, generator=torch.Generator().manual_seed(0)).to(place.device, place.dtype)
    with inference(model):
        stages = read(model, x, Needs(stages=(-1,))).stages
        calls = _trace(model, x, stages[-2]) if len(stages) > 1 else []
    for call in reversed(calls):  # in the order in which they end
        if call.channels and (layers := _tail(model, calls, call.end)):
            found = Fork(call.name, call.channels, layers)
            if _works(model, others, found, x):
                return found
    name = type(getattr(model, "net", model)).__name__
    raise InputError("ONE.students", name, "cannot be forked before its last stage")


def branched(model: nn.Module, at: Fork, tails: Iterable[nn.Module], x: Tensor) -> tuple[Tensor, Tensor]:
    """(branches·N, classes) logits of the net and of each further tail, and what the trunk hands on, pooled: (N, C)."""
    with _joined(model, at, tails, len(x)) as trunk:
        logits = model(x)
    return logits, trunk[-1].movedim(at.channels, 1).flatten(2).mean(2)


def cut(model: nn.Module, at: Fork, tail: nn.Module) -> nn.Module:
    """A net like `model`, and on its trunk, with this tail in the place of its own."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    branch = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for path, layer in zip(at.layers, tail.children(), strict=True):
        branch.set_submodule(path, layer)
    return branch


@contextmanager
def _joined(model: nn.Module, at: Fork, tails: Iterable[nn.Module], samples: int) -> Iterator[list[Tensor]]:
    """While this lasts, `model` runs all branches. Collects the outputs of the trunk's last module."""
    trunk: list[Tensor] = []
    hooks = [model.get_submodule(at.trunk).register_forward_hook(lambda module, inputs, output: trunk.append(output))]
    for path, *twins in zip(at.layers, *(tail.children() for tail in tails), strict=True):
        layer, waiting = model.get_submodule(path), []  # type: ignore[var-annotated]
        hooks.append(layer.register_forward_pre_hook(_share(len(twins) + 1, samples, waiting), with_kwargs=True))
        hooks.append(layer.register_forward_hook(_join(twins, waiting)))
    try:
        yield trunk
    finally:
        for hook in hooks:
            hook.remove()


def _share(count: int, samples: int, waiting: list[Any]) -> Callable[..., Any]:
    """A hook that leaves a layer its own branch's share of what it is given, and keeps the others'."""

    def share(value: Any, branch: int) -> Any:
        joined = isinstance(value, Tensor) and len(value) == count * samples
        return value.chunk(count)[branch] if joined else value

    def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = [
            (tuple(share(x, i) for x in inputs), {key: share(x, i) for key, x in options.items()}) for i in range(count)
        ]
        waiting[:] = given[1:]
        return given[0]

    return hook


def _join(twins: Sequence[nn.Module], waiting: list[Any]) -> Callable[..., Tensor]:
    """A hook that runs a layer's twins and joins what they say to what it said."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        given = zip(twins, waiting, strict=True)
        return torch.cat([output, *(twin(*inputs, **options) for twin, (inputs, options) in given)])

    return hook


def _trace(model: nn.Module, x: Tensor, stage: Tensor) -> list[_Call]:
    """All calls of modules below `model` in the order in which they end, and which of them say this stage map."""
    calls: list[_Call] = []
    running: list[_Call] = []
    ticks = itertools.count()

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            running.append(_Call(name, next(ticks)))

        return hook

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        call = running.pop()
        call.end, call.channels = next(ticks), _channels(output, stage)
        calls.append(call)

    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _channels(output: Any, stage: Tensor) -> int:
    """The axis of channels of what a module said, where that is this (N, C, H, W) map, tokens included; else 0."""
    if not isinstance(output, Tensor):
        return 0
    n, c, h, w = stage.shape
    if output.dim() == 3 and output.shape[2] == c and output.shape[1] >= h * w:  # tokens, after those of classes
        last = output[:, -h * w :].reshape(n, h, w, c)
        return 2 if torch.equal(last.permute(0, 3, 1, 2), stage) else 0
    if output.shape == stage.shape and torch.equal(output, stage):
        return 1
    return 3 if output.shape == (n, h, w, c) and torch.equal(output.permute(0, 3, 1, 2), stage) else 0


def _tail(model: nn.Module, calls: Sequence[_Call], end: int) -> tuple[str, ...]:
    """The largest modules with weights or statistics that start after `end`; none where one ran before too."""
    before = {call.name for call in calls if call.start < end}
    after = {call.name for call in calls if call.start > end}
    whole = [name for name in after if not any(name.startswith(f"{other}.") for other in after)]
    layers = [name for name in whole if model.get_submodule(name).state_dict()]
    return () if before.intersection(layers) else tuple(sorted(layers))


def _works(model: nn.Module, others: Sequence[nn.Module], at: Fork, x: Tensor) -> bool:
    """Whether all branches in one pass say what each says alone."""
    tails = [at.tail(other) for other in others]
    alone = nn.ModuleList([model, *(cut(model, at, tail) for tail in tails)])
    with inference(alone):
        try:
            together, _ = branched(model, at, tails, x)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError):
            return False
        return all(torch.allclose(own, net(x)) for own, net in zip(together.chunk(len(alone)), alone, strict=True))
