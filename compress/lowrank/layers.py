"""The layers of a net that can be factorised, and what calibration images tell of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
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
    """

    path: str
    module: nn.Linear | nn.Conv2d
    inputs: int = 0
    outputs: int = 0
    between: int = 0
    moment: Tensor | None = None

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

    def note(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """A forward hook that adds up positions and moments."""
        x, out = inputs[0].detach(), output.detach()
        if isinstance(self.module, nn.Conv2d):
            self.between += len(x) * out.shape[2] * x.shape[3]
            x, out = x.movedim(1, -1), out.movedim(1, -1)
        self.inputs += x[..., 0].numel()
        self.outputs += out[..., 0].numel()
        if self.moment is None:
            return
        if self.told_by_outputs:
            rows = out if self.module.bias is None else out - self.module.bias.detach()
        elif self.is_matrix and isinstance(self.module, nn.Conv2d):
            rows = x[:, :: self.module.stride[0], :: self.module.stride[1]]
        else:
            rows = x
        rows = rows.flatten(0, -2).float()
        self.moment += (rows.T @ rows).cpu()


def look(model: students.Classifier, images: Tensor, whiten: bool) -> list[Layer]:
    """The layers of `model` that can be factorised, after it has seen the (N, C, H, W) images.

    Raises InputError where it does not take the images, or its logits are not finite.
    """
    layers = [Layer(path, module) for path, module in _candidates(model, images[:1])]
    for layer in layers:
        if whiten:
            side = layer.module.weight.shape[0 if layer.told_by_outputs else 1]
            layer.moment = torch.zeros(side, side, dtype=torch.float64)
    handles = [layer.module.register_forward_hook(layer.note) for layer in layers]
    try:
        with inference(model):
            for batch in images.split(CALIBRATION_BATCH):
                if not torch.isfinite(model(batch)).all():
                    raise InputError("model", type(model.net).__name__, "gives NaN or infinite logits")
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        for count in ("inputs", "outputs", "between"):
            setattr(layer, count, getattr(layer, count) // len(images))
    return [layer for layer in layers if layer.outputs]


def _candidates(model: students.Classifier, x: Tensor) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers for which a row of layers may stand: nothing in the net looks into them."""
    made = copy.deepcopy(model)
    try:
        with inference(model):
            expected = model(x)
    except (RuntimeError, AssertionError, ValueError) as error:
        shape = tuple(x.shape[1:])
        raise InputError("model", model.blueprint.name, f"cannot take images of {shape} ({error})") from error

    def stand_in(paths: Sequence[str]) -> bool:
        for path in paths:
            made.net.set_submodule(path, nn.Sequential(made.net.get_submodule(path)))
        try:
            with inference(made):
                return torch.allclose(made(x), expected, equal_nan=True)
        except (AttributeError, TypeError):
            return False
        finally:
            for path in paths:
                made.net.set_submodule(path, made.net.get_submodule(f"{path}.0"))

    found = dict(_factorisable(model.net))
    if not stand_in(list(found)):
        found = {path: module for path, module in found.items() if stand_in([path])}
    return list(found.items())


def _factorisable(net: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Linear layers and convolutions for which a product can stand, none of a type derived from them."""
    for path, module in net.named_modules():
        if type(module) is nn.Linear and path:
            yield path, module
        if type(module) is nn.Conv2d and path and module.groups == 1 and module.padding_mode == "zeros":
            padded = module.padding not in ((0, 0), "valid")
            if not (module.kernel_size == (1, 1) and padded):
                yield path, module
