"""What a loss needs of a model, and how it is read.

Two readers: timm's own protocol (`forward_intermediates`, `forward_head`), and for any other module hooks on the input
of its classifier and on the last map of each resolution. `ports` tries the first on a blank image, keeps it only where
it gives the logits of a plain forward pass, and tells the shapes; `read` then reads the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kd.batch import Needs, Outputs, Ports
from kd.errors import InputError
from kd.evaluate import inference

Reader = Callable[[nn.Module, Tensor, bool], Outputs]
Record = list[tuple[str, Tensor, Tensor]]
_readers: WeakKeyDictionary[nn.Module, Reader] = WeakKeyDictionary()


def read(model: nn.Module, x: Tensor, needs: Needs) -> Outputs:
    """Run `model` on (N, C, H, W) images in [0, 1] and return its logits and what `needs` asks for, with gradients."""
    if not needs.embedding and not needs.stages:
        return Outputs(model(x))
    reader = _readers.get(model)
    if reader is None:  # a copy of a model whose ports were asked, or one whose never were
        reader = _readers[model] = _choose(model, x[:1])
    return reader(model, x, bool(needs.stages))


def ports(model: nn.Module, channels: int, image_size: tuple[int, int]) -> Ports:
    """The shapes that `model` offers for images of this size. Raises InputError where it has no classifier to tap."""
    place = next(model.parameters(), torch.zeros(()))
    blank = torch.linspace(0, 1, channels * image_size[0] * image_size[1], device=place.device, dtype=place.dtype)
    blank = blank.view(1, channels, *image_size)
    try:
        _readers[model] = _choose(model, blank)
        with inference(model):
            outputs = _readers[model](model, blank, True)
    except RuntimeError as error:
        size = f"{channels}x{image_size[0]}x{image_size[1]}"
        raise InputError("data.image_size", size, f"{_name(model)} cannot take it ({error})") from error
    assert outputs.embedding is not None
    stages = tuple((s.shape[1], s.shape[2], s.shape[3]) for s in outputs.stages)
    return Ports(outputs.logits.shape[1], outputs.embedding.shape[1], stages)


def _name(model: nn.Module) -> str:
    return type(getattr(model, "net", model)).__name__


def _choose(model: nn.Module, x: Tensor) -> Reader:
    if hasattr(model, "forward_intermediates") and hasattr(model, "get_classifier"):
        with inference(model):
            try:
                told, plain = _read_protocol(model, x, True), model(x)
                if told.logits.shape == plain.shape and torch.allclose(told.logits, plain, rtol=1e-4, atol=1e-5):
                    return _read_protocol
            except (TypeError, AttributeError, AssertionError, NotImplementedError, IndexError):
                pass  # the protocol is there in part only: hooks read every module
    with inference(model):
        return _hooks(model, x)


def _read_protocol(model: Any, x: Tensor, stages: bool) -> Outputs:
    if stages:
        features, maps = model.forward_intermediates(x, output_fmt="NCHW")
    else:
        features, maps = model.forward_features(x), ()
    embedding = model.forward_head(features, pre_logits=True)
    return Outputs(model.get_classifier()(embedding), embedding.flatten(1), tuple(maps))


@contextmanager
def _recording(model: nn.Module, wanted: Callable[[str, nn.Module], bool]) -> Iterator[Record]:
    """Collect (name, first input, output) of the wanted modules in the order in which they end.

    Hooks live for one pass only: nothing of them is left in copies of the model.
    """
    record: Record = []

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                record.append((name, inputs[0], output))

        return note

    handles = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if wanted(name, m)]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _hooks(model: nn.Module, x: Tensor) -> Reader:
    """A reader through hooks: finds the classifier and the stages in one pass over `x`."""
    with _recording(model, lambda name, module: name != "") as record:
        logits = model(x)

    def is_classifier(name: str, output: Tensor) -> bool:
        linear = isinstance(model.get_submodule(name), (nn.Linear, nn.Conv2d))
        return linear and output.numel() == logits.numel() and torch.equal(output.flatten(), logits.flatten())

    classifier = next((name for name, _, output in reversed(record) if is_classifier(name, output)), None)
    if classifier is None:
        raise InputError("model", _name(model), "has no linear layer whose output is its logits, so no embedding")
    stages: dict[tuple[int, ...], str] = {}  # the last map of each resolution; a 1x1 map is no map
    for name, _, output in record:
        if name == classifier:
            break
        if output.dim() == 4 and min(output.shape[-2:]) > 1:
            stages[tuple(output.shape[-2:])] = name
    order = list(stages.values())

    def reader(model: nn.Module, x: Tensor, stages: bool) -> Outputs:
        with _recording(model, lambda name, module: name == classifier or name in order) as record:
            logits = model(x)
        before = {name: tensor for name, tensor, _ in record}
        after = {name: tensor for name, _, tensor in record}
        maps = tuple(after[name] for name in order) if stages else ()
        return Outputs(logits, before[classifier].flatten(1), maps)

    return reader
