"""What a loss needs of a model, and how it is read.

Two readers: timm's own protocol (`forward_intermediates`, `forward_head`), and for any other module hooks on the input
of its classifier and on the last map of each resolution that is on no branch. `ports` tries the first on a blank image,
keeps it only where it gives the logits of a plain forward pass, and tells the shapes; `read` then reads the same way.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kd.batch import Needs, Outputs, Place, Ports
from kd.errors import InputError
from kd.evaluate import inference

Record = list[tuple[str, Tensor, Tensor]]
Norm = tuple[Tensor, Tensor]


@dataclass
class Tap:
    """How one model is read.

    Attributes:
        outputs: of the model, images and whether stage maps are wanted.
        classifier: the layer whose outputs are the logits.
        last: see `Ports`.
        activations: for each stage the path of the activation that its map comes from, None where it comes from none;
            found when first asked for.
    """

    outputs: Callable[[nn.Module, Tensor, bool], Outputs]
    classifier: Callable[[nn.Module], nn.Module]
    last: Place | None = None
    activations: tuple[str | None, ...] | None = None


_taps: WeakKeyDictionary[nn.Module, Tap] = WeakKeyDictionary()


def read(model: nn.Module, x: Tensor, needs: Needs) -> Outputs:
    """Run `model` on (N, C, H, W) images in [0, 1] and return its logits and what `needs` asks for, with gradients."""
    outputs = _answers(model, x, needs)
    return outputs._replace(extra=outputs.extra | {"scales": _scales(model)}) if needs.scales else outputs


def _answers(model: nn.Module, x: Tensor, needs: Needs) -> Outputs:
    if not (needs.embedding or needs.maps or needs.classifier):
        return Outputs(model(x))
    tap = _tap(model, x)
    if needs.before:
        outputs = _with_inputs(model, x, tap)
    else:
        outputs = tap.outputs(model, x, needs.maps)
    extra = outputs.extra if needs.final else {}
    if needs.classifier:
        layer = tap.classifier(model)
        if not isinstance(layer, nn.Linear):
            raise InputError("model", _name(model), "classifies by no linear layer")
        extra = extra | {"classifier": layer.weight}
    return outputs._replace(extra=extra)


def last_stage(model: Any, x: Tensor, place: Place | None) -> Tensor:
    """The last stage map alone, as `read` tells it; `place` is `Ports.last`. Under timm's protocol no head is run."""
    if place is None:
        maps: list[Tensor] = model.forward_intermediates(x, indices=1, intermediates_only=True, output_fmt="NCHW")
        return maps[-1]
    with _recording(model, lambda name, module: name == place.module) as record:
        model(x)
    return place.map(record[place.call][2])


def _with_inputs(model: nn.Module, x: Tensor, tap: Tap) -> Outputs:
    """Outputs with stage maps as they are before their last activation too."""
    if tap.activations is None:
        tap.activations = _activations(model, tap, x[:1])
    with _inputs(model, tap.activations) as inputs:
        outputs = tap.outputs(model, x, True)
    pairs = zip(tap.activations, outputs.stages, strict=True)
    return outputs._replace(before=tuple(stage if name is None else inputs[name] for name, stage in pairs))


@torch.compiler.disable  # compiled code would guard on all entries of the dictionary, which come and go
def _tap(model: nn.Module, x: Tensor) -> Tap:
    if model not in _taps:  # a copy of a model whose ports were asked, or one whose never were
        _taps[model] = _choose(model, x[:1])
    return _taps[model]


def ports(model: nn.Module, channels: int, image_size: tuple[int, int]) -> Ports:
    """The shapes that `model` offers for images of this size. Raises InputError where it has no classifier to tap."""
    place = next(model.parameters(), torch.zeros(()))
    blank = torch.linspace(0, 1, channels * image_size[0] * image_size[1], device=place.device, dtype=place.dtype)
    blank = blank.view(1, channels, *image_size)
    try:
        tap = _taps[model] = _choose(model, blank)
        with inference(model), _recording(model, lambda name, module: isinstance(module, nn.BatchNorm2d)) as norms:
            outputs = tap.outputs(model, blank, True)
    except (RuntimeError, AssertionError) as error:  # a vision transformer asserts the size it was made for
        size = f"{channels}x{image_size[0]}x{image_size[1]}"
        raise InputError("data.image_size", size, f"{_name(model)} cannot take it ({error})") from error
    assert outputs.embedding is not None
    return Ports(
        outputs.logits.shape[1],
        outputs.embedding.shape[1],
        tuple((s.shape[1], s.shape[2], s.shape[3]) for s in outputs.stages),
        tuple(_norm(model, norms, stage) for stage in outputs.stages),
        _linear(tap.classifier(model)),
        _final(outputs),
        tap.last,
        len(_scales(model)),
    )


def _final(outputs: Outputs) -> tuple[int, int, int] | None:
    final, embedding = outputs.extra.get("final"), outputs.embedding
    if final is None or embedding is None or not torch.allclose(final.mean((2, 3)), embedding, rtol=1e-4, atol=1e-5):
        return None
    return final.shape[1], final.shape[2], final.shape[3]


def _with_final(outputs: Outputs, final: Tensor | None) -> Outputs:
    """Outputs with the map that could be what is averaged: of as many channels as the embedding has values."""
    assert outputs.embedding is not None
    if final is None:
        return outputs
    channels = outputs.embedding.shape[1]
    if final.dim() == 3 and outputs.stages:  # tokens, after those of classes
        height, width = outputs.stages[-1].shape[2:]
        if final.shape[1] >= height * width:
            final = final[:, -height * width :].unflatten(1, (height, width))
    if final.dim() == 4 and final.shape[1] != channels:
        final = final.permute(0, 3, 1, 2)
    fits = final.dim() == 4 and final.shape[1] == channels
    return outputs._replace(extra={"final": final}) if fits else outputs


def _norm(model: nn.Module, norms: Record, stage: Tensor) -> Norm | None:
    """Weight and bias of the last BatchNorm of a map's shape that is on no shortcut."""
    for name, _, output in reversed(norms):
        if output.shape == stage.shape and not any(word in name for word in _SHORTCUTS):
            norm = model.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            return (norm.weight.detach().clone(), norm.bias.detach().clone()) if norm.affine else None
    return None


_SHORTCUTS = ("downsample", "shortcut")


def _scales(model: nn.Module) -> Tensor:
    """(K,) of all norms, as the net uses them. A weight that is a vector is that of a norm, if not of a PReLU."""
    weights = [getattr(module, "weight", None) for module in model.modules() if not isinstance(module, nn.PReLU)]
    vectors = [weight for weight in weights if isinstance(weight, Tensor) and weight.dim() == 1]
    return torch.cat(vectors) if vectors else torch.empty(0)


def _linear(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    if not isinstance(layer, nn.Linear):
        return None
    weight = layer.weight.detach().clone()
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().clone()


def _name(model: nn.Module) -> str:
    return type(getattr(model, "net", model)).__name__


def _activations(model: nn.Module, tap: Tap, x: Tensor) -> tuple[str | None, ...]:
    """Which activation each stage map comes from. Raises InputError where that is none that could be seen."""
    bare = {name for name, module in model.named_modules() if not [*module.children(), *module.parameters()]}
    with inference(model), _out_of_place(model), _recording(model, lambda name, module: name in bare) as record:
        maps = tap.outputs(model, x, True).stages
    return tuple(_activation(model, record, stage) for stage in maps)


def _activation(model: nn.Module, record: Record, stage: Tensor) -> str | None:
    for name, before, after in reversed(record):
        # one tensor, not two that are equal: with zeroed norms an activation changes nothing
        if before.shape == stage.shape and after.data_ptr() == stage.data_ptr() != before.data_ptr():
            return name
    if stage.min() >= 0 and not stage.all():
        raise InputError(
            "model", _name(model), "rectifies a stage map by a function, not a module: it cannot be tapped"
        )
    return None


@contextmanager
def _out_of_place(model: nn.Module) -> Iterator[None]:
    """Activations leave their input as it was."""
    changed = [module for module in model.modules() if getattr(module, "inplace", False)]
    for module in changed:
        module.inplace = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True  # type: ignore[assignment]


@contextmanager
def _inputs(model: nn.Module, names: Sequence[str | None]) -> Iterator[dict[str, Tensor]]:
    """What the named modules are given at their last call; a copy where they write over it."""
    inputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs[name] = arguments[0].clone() if getattr(module, "inplace", False) else arguments[0]

        return note

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names if name is not None]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _choose(model: nn.Module, x: Tensor) -> Tap:
    with inference(model):
        if hasattr(model, "forward_intermediates") and hasattr(model, "get_classifier"):
            for outputs in (_read_protocol, _read_heads):
                try:
                    told, plain = outputs(model, x, True), model(x)
                    if told.logits.shape == plain.shape and torch.allclose(told.logits, plain, rtol=1e-4, atol=1e-5):
                        return Tap(outputs, lambda model: model.get_classifier())  # type: ignore[operator]
                except (TypeError, AttributeError, AssertionError, NotImplementedError, IndexError, RuntimeError):
                    pass  # the protocol is there in part only: hooks read every module
        return _hooks(model, x)


def _read_protocol(model: Any, x: Tensor, stages: bool) -> Outputs:
    features, maps = _features(model, x, stages)
    embedding = model.forward_head(features, pre_logits=True).flatten(1)
    classifier = model.get_classifier()
    logits = classifier(embedding[:, :, None, None] if isinstance(classifier, nn.Conv2d) else embedding)
    return _with_final(Outputs(logits.flatten(1), embedding, maps), features)


def _read_heads(model: Any, x: Tensor, stages: bool) -> Outputs:
    """Where the logits come from several classifiers (deit_distilled, crossvit, ...): the head runs twice."""
    features, maps = _features(model, x, stages)
    return Outputs(model.forward_head(features), model.forward_head(features, pre_logits=True).flatten(1), maps)


def _features(model: Any, x: Tensor, stages: bool) -> tuple[Any, tuple[Tensor, ...]]:
    """What the head is given, and the stage maps where they are wanted."""
    if not stages:
        return model.forward_features(x), ()
    features, maps = model.forward_intermediates(x, output_fmt="NCHW")
    return features, tuple(maps)


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


_LAYERS = (nn.Linear, nn.Conv2d)


def _hooks(model: nn.Module, x: Tensor) -> Tap:
    """A tap through hooks: finds the classifier and the stages in one pass over `x`.

    A stage's map is the last one of its resolution through which all that follows sees the image: not one of a branch.
    """
    with torch.enable_grad(), _recording(model, lambda name, module: name != "") as record:
        image = x.detach().clone().requires_grad_() + 0  # autograd's graph tells what passes through what
        logits = model(image)

    layers = [(name, output) for name, _, output in record if isinstance(model.get_submodule(name), _LAYERS)]
    exact = [name for name, output in layers if torch.equal(output.flatten(), logits.flatten())]
    # or, as in SqueezeNet, the last layer gives maps of the logits, which are averaged
    averaged = [name for name, output in layers[-1:] if output.dim() == 4 and output.shape[:2] == logits.shape]
    if not exact and not averaged:
        raise InputError("model", _name(model), "has no linear layer whose output is its logits, so no embedding")
    classifier = _product(model, (exact or averaged)[-1])
    calls: Counter[str] = Counter()
    found: dict[tuple[int, int], Place] = {}
    for name, _, output in itertools.takewhile(lambda entry: entry[0] != classifier, record):
        if name.startswith(f"{classifier}."):
            continue
        grid = _grid(output, x, next(reversed(found), None))
        if grid is not None and not _reaches(logits, image, output):
            found.pop(grid, None)  # so that the last grid is that of the last map
            found[grid] = Place(name, calls[name], grid, output.shape[2:] != grid)
        calls[name] += 1
    places = list(found.values())

    def reader(model: nn.Module, x: Tensor, stages: bool) -> Outputs:
        names = {place.module for place in places}
        with _recording(model, lambda name, module: name == classifier or name in names) as record:
            logits = model(x)
        before = {name: tensor for name, tensor, _ in record}
        after: dict[str, list[Tensor]] = defaultdict(list)
        for name, _, tensor in record:
            after[name].append(tensor)
        maps = tuple(place.map(after[place.module][place.call]) for place in places) if stages else ()
        embedding = before[classifier].flatten(1) if exact else before[classifier].mean((2, 3))
        outputs = Outputs(logits, embedding, maps)
        return _with_final(outputs, maps[-1] if maps else None)

    return Tap(reader, lambda model: model.get_submodule(classifier), places[-1] if places else None)


def _product(model: nn.Module, name: str) -> str:
    """Of a layer that is factorised, the row that stands for it, in the place of its last factor."""
    parent = name.rpartition(".")[0]
    row = model.get_submodule(parent) if parent else None
    return parent if isinstance(row, nn.Sequential) and all(isinstance(each, _LAYERS) for each in row) else name


_CLASS_TOKENS = 5  # at most: one, one of distillation, or four registers beside one


def _grid(output: Tensor, x: Tensor, last: tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width of the map that a module said about images x, None where it is none: a 1x1 map is no map.

    Channels come last where only so its sides are in proportion to the images'; tokens lie on the grid of the `last`
    map.
    """
    if len(output) != len(x):
        return None
    if output.dim() == 3 and last and 0 <= output.shape[1] - math.prod(last) <= _CLASS_TOKENS:
        return last
    if output.dim() != 4:
        return None
    height, width = x.shape[2:]
    grids = [(output.shape[2], output.shape[3]), (output.shape[1], output.shape[2])]
    grid = next((grid for grid in grids if grid[0] * width == grid[1] * height), grids[0])
    return grid if min(grid) > 1 else None


def _reaches(logits: Tensor, image: Tensor, output: Tensor) -> bool:
    """Whether the logits see the image past what a module said."""
    todo, seen = [logits.grad_fn], {output.grad_fn}
    while todo:
        node = todo.pop()
        if node is image.grad_fn:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            todo += [source for source, _ in node.next_functions]
    return False
