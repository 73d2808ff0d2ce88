"""The layers of a net that can be factorised, and what calibration images tell of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

import students
from compress.lowrank.decompose import Spectrum, spectrum
from kd.errors import InputError
from kd.evaluate import inference

CALIBRATION_BATCH = 32


@dataclass
class Layer:
    """A layer that can be factorised, and what calibration images told of it.

    Attributes:
        inputs, outputs: how many positions it reads and writes for one image.
        between: how many there are of its columns of outputs along its rows of inputs.
        moment: of the activations, as `compress.lowrank.decompose` wants it; none where it was not asked for.
        seen: how many activations that is of.
    """

    path: str
    module: nn.Linear | nn.Conv2d
    inputs: int = 0
    outputs: int = 0
    between: int = 0
    moment: Tensor | None = None
    seen: int = 0

    @property
    def is_matrix(self) -> bool:
        """Whether it is a linear layer or a 1 x 1 convolution."""
        return isinstance(self.module, nn.Linear) or self.module.kernel_size == (1, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """(outputs, inputs) or (outputs, inputs, k, l)."""
        return tuple(self.module.weight.shape[: 2 if self.is_matrix else 4])

    @property
    def weight(self) -> Tensor:
        return self.module.weight.detach().cpu().reshape(self.shape)

    @cached_property
    def spectrum(self) -> Spectrum:
        """Of a matrix; it takes minutes where that is large."""
        return spectrum(self.weight, self.moment)

    @property
    def told_by_outputs(self) -> bool:
        return self.is_matrix and self.shape[0] < self.shape[1]

    def count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook, of one image, that adds up positions."""
        if not inputs or inputs[0].dim() < 2:
            return  # called in a way of its own: of no positions, it is no layer for us
        x, out = inputs[0], output
        if isinstance(self.module, nn.Conv2d):
            self.between += len(x) * out.shape[2] * x.shape[3]
            x, out = x.movedim(1, -1), out.movedim(1, -1)
        self.inputs += x[..., 0].numel()
        self.outputs += out[..., 0].numel()

    def weigh(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook that adds up moments."""
        x, out = inputs[0].detach(), output.detach()
        if isinstance(self.module, nn.Conv2d):
            x, out = x.movedim(1, -1), out.movedim(1, -1)
        if self.told_by_outputs:
            rows = out if self.module.bias is None else out - self.module.bias.detach()
        elif self.is_matrix and isinstance(self.module, nn.Conv2d):
            rows = x[:, :: self.module.stride[0], :: self.module.stride[1]]
        else:
            rows = x
        rows = rows.flatten(0, -2).float()
        moment = (rows.T @ rows).cpu().double()
        self.moment = moment if self.moment is None else self.moment + moment
        self.seen += len(rows)

    def shrink(self) -> None:
        """Towards all directions alike, by the share of them that too few activations cannot tell: those that they do
        not span would cost nothing to lose (Ledoit and Wolf, A well-conditioned estimator, 2004, shrink so)."""
        if self.moment is None:
            return
        side = len(self.moment)
        unknown = max(0.0, 1 - self.seen / side)
        self.moment = (1 - unknown) * self.moment + unknown * self.moment.trace() / side * torch.eye(side).double()


def look(model: students.Classifier, images: Tensor, whiten: bool) -> list[Layer]:
    """The layers of `model` that can be factorised, after it has seen the (N, C, H, W) images.

    Raises InputError where it does not take the images, or its logits are not finite.
    """
    layers = [Layer(path, module) for path, module in _candidates(model, images[:1])]
    _show(model, images[:1], {layer.module: layer.count for layer in layers})
    layers = [layer for layer in layers if layer.outputs]
    _show(model, images, {layer.module: layer.weigh for layer in layers if whiten})
    for layer in layers:
        layer.shrink()
    return layers


def _show(model: students.Classifier, images: Tensor, hooks: Mapping[nn.Module, Callable[..., None]]) -> None:
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        with inference(model):
            for batch in images.split(CALIBRATION_BATCH):
                if not torch.isfinite(model(batch)).all():
                    raise InputError("model", type(model.net).__name__, "gives NaN or infinite logits")
    finally:
        for handle in handles:
            handle.remove()


def _candidates(model: students.Classifier, x: Tensor) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers for which a row of layers may stand: nothing in the net looks into them."""
    made = copy.deepcopy(model)
    try:
        with inference(model):
            expected = model(x)
    except (RuntimeError, AssertionError, ValueError) as error:
        shape = tuple(x.shape[1:])
        raise InputError("model", model.blueprint.name, f"cannot take images of {shape} ({error})") from error
    if not isinstance(expected, Tensor):
        raise InputError("model", model.blueprint.name, "gives more than logits")

    def stand_in(paths: Sequence[str]) -> bool:
        for path in paths:
            made.net.set_submodule(path, nn.Sequential(made.net.get_submodule(path)))
        try:
            with inference(made):
                return torch.allclose(made(x), expected, equal_nan=True)
        except Exception:  # whatever a net raises that asks what its layers are
            return False
        finally:
            for path in paths:
                made.net.set_submodule(path, made.net.get_submodule(f"{path}.0"))

    found = dict(factorisable(model.net))
    if not stand_in(list(found)):
        found = {path: module for path, module in found.items() if stand_in([path])}
    return list(found.items())


def factorisable(net: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Linear layers and convolutions for which a product can stand: none of a type derived from them, and none that
    stands in two places."""
    places = Counter(module for _, module in net.named_modules(remove_duplicate=False))
    for path, module in net.named_modules():
        if places[module] > 1:
            continue
        if type(module) is nn.Linear and path:
            yield path, module
        if type(module) is nn.Conv2d and path and module.groups == 1 and module.padding_mode == "zeros":
            padded = module.padding not in ((0, 0), "valid")
            if not (module.kernel_size == (1, 1) and padded):
                yield path, module
