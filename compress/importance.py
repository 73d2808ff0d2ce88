"""How much the channels of a group matter: what is known of each parameter, and a score a channel made of it."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import students
from compress.stage import Context, check_logits
from kd.evaluate import inference
from kd.tensors import widen

BATCH = 64  # calibration images at a time
RATE, EPOCHS = 1e-3, 4  # of the plain SGD whose steps `movement` watches
Reduction = Literal["sum", "mean", "max"]
REDUCTIONS: dict[Reduction, Callable[[Tensor], Tensor]] = {
    "sum": lambda scores: scores.sum(0),
    "mean": lambda scores: scores.mean(0),
    "max": lambda scores: scores.amax(0),
}


@dataclass(frozen=True)
class Importance:
    """A way to judge channels.

    Attributes:
        entries: what it judges by, for a classifier in a context: tensors shaped as parameters of the net, under their
            paths there. It leaves the classifier as it was. Raises InputError where it needs images and there are
            none, or the logits are not finite.
        layers: from the (c, n) matrices of what belongs to the c channels of a group, one for each side of a parameter,
            (c,) scores by each that has a say.
        group: from the (c,) scores of the group, those that count.
        compares: whether the scores of different groups compare as they are.
    """

    entries: Callable[[students.Classifier, Context], Mapping[str, Tensor]]
    layers: Callable[[Sequence[Tensor]], list[Tensor]]
    group: Callable[[Tensor], Tensor] = lambda scores: scores
    compares: bool = False

    def channels(self, rows: Sequence[Tensor], reduction: Reduction = "sum", normalised: bool = False) -> Tensor:
        """(c,) scores, none below zero; the least important channel has the least.

        Args:
            rows: (c, n) matrices gathered from `entries`, at least one.
            reduction: how the scores by several layers are put together.
            normalised: whether those by each layer are first divided by their mean size.
        """
        scores = torch.stack([widen(score.detach()).cpu() for score in self.layers(rows)])
        if normalised:
            scores = scores / _positive(scores.abs().mean(1, keepdim=True))
        return self.group(REDUCTIONS[reduction](scores))


def _each(score: Callable[[Tensor], Tensor]) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    return lambda rows: [score(matrix) for matrix in rows]


def _norms(matrix: Tensor) -> Tensor:
    return matrix.norm(dim=1)


def _totals(matrix: Tensor) -> Tensor:
    return matrix.sum(1)


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)


def _weights(model: students.Classifier, context: Context) -> dict[str, Tensor]:
    """Weights of layers and scales of norms: no biases, slopes, tokens or positions."""
    slopes = {f"{path}.weight" for path, module in model.net.named_modules() if isinstance(module, nn.PReLU)}
    named = {path: weight.detach() for path, weight in model.net.named_parameters() if path.endswith("weight")}
    return {path: weight for path, weight in named.items() if path not in slopes}


def _matrices(model: students.Classifier, context: Context) -> dict[str, Tensor]:
    return {path: weight for path, weight in _weights(model, context).items() if weight.dim() > 1}


def _scales(model: students.Classifier, context: Context) -> dict[str, Tensor]:
    weights = _weights(model, context)
    return _beside({path: weight.abs() for path, weight in weights.items() if weight.dim() == 1}, weights)


def _beside(seen: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was seen, nowhere below zero, and the other weights, marked by their sign."""
    return {path: -weight.abs() for path, weight in weights.items()} | seen


def _seen(rows: Sequence[Tensor]) -> list[Tensor]:
    """By what was seen and differs between channels; where there is no such thing, by the norms of all there is."""
    told = [matrix for matrix in rows if not matrix.signbit().any() and (matrix != matrix[:1]).any()]
    return [_totals(matrix) for matrix in told] or [_norms(matrix) for matrix in rows]


def _draws(model: students.Classifier, context: Context) -> dict[str, Tensor]:
    """Each path has a generator of its own, so that groups of one size draw apart."""
    drawn = {}
    for path, parameter in model.net.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{context.seed} {path}".encode()))
        drawn[path] = torch.rand(parameter.shape, generator=generator)
    return drawn


def _shares(scores: Tensor) -> Tensor:
    """Of each square the share in the sum of itself and all that rank above."""
    squares, order = scores.double().square().sort(stable=True)
    rest = squares.flip(0).cumsum(0).flip(0)
    return torch.empty_like(squares).scatter(0, order, squares / _positive(rest))


def _distances(matrix: Tensor) -> Tensor:
    wide = matrix.double()  # in single precision, what is alike would be found apart
    return torch.cdist(wide, wide).sum(1)


def _products(
    model: students.Classifier, context: Context, size: int = BATCH, rate: float = 0.0, epochs: int = 1
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """For each batch of calibration images its share in them, and for all parameters weight x gradient.

    Gradients are those of the mean cross-entropy with the labels, even where there is a teacher, in evaluation mode.
    A copy of the model takes them, and after each batch makes a step of plain SGD at this rate.
    """
    images, labels = context.labelled()
    made = copy.deepcopy(model)
    parameters = {path: value for path, value in made.net.named_parameters() if value.is_floating_point()}
    values = [value.requires_grad_(True) for value in parameters.values()]
    for x, y in epochs * list(zip(images.split(size), labels.split(size), strict=True)):
        made.train().eval()  # there and back: LeViT keeps in evaluation what it computed of its weights
        with torch.enable_grad():
            logits = widen(made(x.to(made.mean)))
            check_logits(logits, context.data, model.blueprint.name)
            loss = F.cross_entropy(logits, y.to(logits.device))
        gradients = torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            found = dict(zip(parameters, map(torch.mul, values, gradients), strict=True))
            for value, gradient in zip(values, gradients, strict=True):
                value.sub_(gradient, alpha=rate)
        yield len(x) / len(images), found


def _taylor(model: students.Classifier, context: Context) -> dict[str, Tensor]:
    return _sum((found, share) for share, found in _products(model, context))


def _obd(model: students.Classifier, context: Context) -> dict[str, Tensor]:
    products = _products(model, context, size=1)
    return _sum(({path: x.square() for path, x in found.items()}, share / 2) for share, found in products)


def _movement(model: students.Classifier, context: Context) -> dict[str, Tensor]:
    return _sum((found, -1.0) for _, found in _products(model, context, rate=RATE, epochs=EPOCHS))


def _sum(terms: Iterator[tuple[dict[str, Tensor], float]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for values, weight in terms:
        total = {path: weight * value + total.get(path, 0) for path, value in values.items()}
    return total


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CHANNELS_FIRST = (*_LAYERS[1:], nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


class _Activations:
    """Adds up what layers and norms say; where a norm says it of what a layer has just said, the norm's word stands."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor, int]] = {}
        self.last = "", torch.empty(0)

    def note(self, path: str, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """A forward hook, but for the path."""
        first = isinstance(module, _CHANNELS_FIRST) or "2d" in type(module).__name__
        side = 1 if first else -1
        if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[side] != len(module.weight):
            return
        before, said = self.last
        if not isinstance(module, _LAYERS) and any(_same(x, said) for x in inputs[:1]):
            self.sums.pop(before, None)
        self.last = path, output
        values = widen(output).abs().movedim(side, -1).flatten(0, -2)
        total, count = self.sums.get(path, (0, 0))
        self.sums[path] = total + values.sum(0), count + len(values)


def _same(x: Any, y: Tensor) -> bool:
    return isinstance(x, Tensor) and x.data_ptr() == y.data_ptr() and x.numel() == y.numel()


def _activations(model: students.Classifier, context: Context) -> dict[str, Tensor]:
    """Means stand under the bias or, where there is none, spread over the weight.

    To the layers that read a channel such a weight says the same of all, and so decides nothing.
    """
    images, _ = context.labelled()
    weights, heard = _weights(model, context), _Activations()
    handles = []
    for path, module in model.net.named_modules():
        weight = weights.get(f"{path}.weight")
        if weight is not None and (weight.dim() == 1 or isinstance(module, _LAYERS)):
            handles.append(module.register_forward_hook(partial(heard.note, path)))
    try:
        with inference(model):
            for batch in images.split(BATCH):
                check_logits(model(batch.to(model.mean)), context.data, model.blueprint.name)
    finally:
        for handle in handles:
            handle.remove()
    seen, parameters = {}, dict(model.net.named_parameters())
    for path, (total, count) in heard.sums.items():
        name = f"{path}.bias" if f"{path}.bias" in parameters else f"{path}.weight"
        like = parameters[name]
        means = (total / count).view(-1, *[1] * (like.dim() - 1))
        seen[name] = means.expand_as(like) / like[0].numel()
    return _beside(seen, weights)


IMPORTANCES: dict[str, Importance] = {
    # sums of absolute weights (Li et al., Pruning filters, 2017)
    "l1": Importance(_weights, _each(lambda matrix: matrix.abs().sum(1))),
    # Euclidean norms, layer by layer: one of zeros, as timm begins residual branches, decides nothing
    "l2": Importance(_weights, _each(_norms)),
    # uniform draws from [0, 1): what any other importance has to beat
    "random": Importance(_draws, lambda rows: [rows[0][:, 0]]),
    # layer-adaptive (Lee et al. 2021), a channel's l2 for the weight: within each group 1 for the greatest
    "lamp": Importance(_weights, _each(_norms), _shares, compares=True),
    # sums of distances to the other channels, least at the geometric median (He et al. 2019)
    "fpgm": Importance(_matrices, _each(_distances)),
    # absolute scales of norms (Liu et al., Network slimming, 2017); l2 where there are none, or none that differ
    "bn": Importance(_scales, _seen),
    # (sum of weight x gradient)^2, first order (Molchanov et al. 2019), with all calibration images as one batch
    "taylor": Importance(_taylor, _each(lambda matrix: matrix.sum(1).square())),
    # sums of -weight x gradient over SGD steps, above the group's least: what grows (Sanh et al. 2020)
    "movement": Importance(_movement, _each(_totals), lambda scores: scores - scores.min()),
    # sums of h w^2 / 2, h the diagonal of the empirical Fisher matrix, image by image (LeCun et al. 1990)
    "obd": Importance(_obd, _each(_totals)),
    # mean absolute outputs of the layer or norm that makes the channel; l2 where none was heard, or none that differ
    "activation": Importance(_activations, _seen),
}
