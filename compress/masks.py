"""Masks: which weights of a layer are zero. As parametrisations they live through any training, taps included.

Which weights go is told by scores, a number a weight, the lowest first; scores and masks are shaped like the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

import students

Layer = nn.Conv2d | nn.Linear
Tensors = Mapping[str, Tensor]  # of weights by the paths of their layers
Scope = Literal["global", "layer"]
_MANY = 0.05  # of all parameters


class Mask(nn.Module):
    """A weight whose entries outside of `keep` are zero.

    Gradients stop at those entries, or with `feedback` reach them as if they were not masked, so that what was cut by
    mistake can grow back (Lin et al., Dynamic model pruning with feedback, 2020, eq. 2).
    """

    keep: Tensor

    def __init__(self, keep: Tensor, feedback: bool = False) -> None:
        super().__init__()
        self.register_buffer("keep", keep)
        self.feedback = feedback

    def forward(self, weight: Tensor) -> Tensor:
        masked = weight.masked_fill(~self.keep, 0)
        return weight + (masked - weight).detach() if self.feedback else masked


def layers(net: nn.Module) -> dict[str, Layer]:
    """The convolutions and linear layers of a net by path: what masks are for. Biases and norms have none."""
    return {path: module for path, module in net.named_modules() if isinstance(module, Layer)}


def others(net: nn.Module) -> tuple[str, ...]:
    """A sentence on weights of other layers (of one dimension, recurrent, stored in a parameter), if those are many."""
    of = {layer.weight for layer in layers(net).values()}
    found = {name: each.numel() for name, each in net.named_parameters() if each.dim() > 1 and each not in of}
    share = sum(found.values()) / max(1, sum(each.numel() for each in net.parameters()))
    if share < _MANY:
        return ()
    most = max(found, key=lambda name: found[name])
    return (f"{share:.0%} of the parameters are in other layers and stay as they are, most of them in {most}.",)


def weights(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """The weights of layers, without gradients; of masked ones what is below the mask."""
    return {path: getattr(_held(layer), "original", layer.weight).detach() for path, layer in layers.items()}


def below(net: nn.Module) -> dict[str, Tensor]:
    """The state of `net` as if it had no masks: what is below them."""
    held = "parametrizations.weight."
    state = {name.replace(f"{held}original", "weight"): value for name, value in net.state_dict().items()}
    return {name: value for name, value in state.items() if held not in name}


def hold(layers: Mapping[str, Layer], masks: Tensors, feedback: bool = False) -> None:
    """Keep masked weights at zero through whatever the layers go through, until `bake`."""
    for path, mask in masks.items():
        parametrize.register_parametrization(layers[path], "weight", Mask(mask, feedback))


def hold_zeros(net: nn.Module) -> None:
    """Keep the weights that are zero now at zero."""
    found = layers(net)
    hold(found, {path: weight != 0 for path, weight in weights(found).items() if not weight.all()})


def move(layers: Mapping[str, Layer], masks: Tensors) -> None:
    """Put other masks in the place of those that are held."""
    for path, mask in masks.items():
        _held(layers[path])[0].keep.copy_(mask)


def bake(net: nn.Module) -> None:
    """End all masks: the weights are plain parameters again, with the zeros in them. Copies that were made of the net
    while it had masks are of no use from then on: torch keeps what it did in a class that they share."""
    for layer in layers(net).values():
        if _held(layer) is not None:
            parametrize.remove_parametrizations(layer, "weight")
            # what was below may have had another shape, and its gradients too
            layer.weight = nn.Parameter(layer.weight.detach().clone(), layer.weight.requires_grad)


def _held(layer: Layer) -> Any:
    """The mask of a layer, in a list with what is below it; None where it has none."""
    held: Any = layer
    return held.parametrizations["weight"] if parametrize.is_parametrized(layer, "weight") else None


def random(weights: Tensors, seed: int) -> dict[str, Tensor]:
    """Uniform draws, the same for the same seed: what any other score has to beat."""
    draws = torch.Generator().manual_seed(seed)
    return {path: torch.rand(weight.shape, generator=draws).to(weight.device) for path, weight in weights.items()}


def magnitude(weights: Tensors) -> dict[str, Tensor]:
    return {path: weight.abs() for path, weight in weights.items()}


def obd(weights: Tensors, curvature: Tensors) -> dict[str, Tensor]:
    """What the loss grows by without the weight: h w^2 / 2 (LeCun et al., Optimal brain damage, 1990, eq. 5)."""
    return {path: curvature[path].to(weight) * weight**2 / 2 for path, weight in weights.items()}


def curvature(model: students.Classifier, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The h of `obd` for the layers of `model.net`: squared gradients of cross-entropy in evaluation mode, the mean
    over samples: the diagonal of the empirical Fisher information, near the Hessian's where the model fits."""
    model = copy.deepcopy(model).eval().requires_grad_(True)
    found = layers(model.net)
    squares = {path: torch.zeros_like(weight) for path, weight in weights(found).items()}
    x, y = (tensor.to(model.mean.device) for tensor in (x, y))
    for one, label in zip(x.split(1), y.split(1), strict=True):
        with torch.enable_grad():
            loss = cross_entropy(model(one), label)
        parts = torch.autograd.grad(loss, [layer.weight for layer in found.values()], materialize_grads=True)
        for square, gradient in zip(squares.values(), parts, strict=True):
            square.add_(gradient**2, alpha=1 / len(y))
    return squares


def by_rank(scores: Tensors, sparsity: float, scope: Scope = "global") -> dict[str, Tensor]:
    """Masks that leave out the share `sparsity` of the lowest scores, to a weight; of equals the first ones.

    Args:
        scope: whether all weights compete, or those of each layer.
    """
    rivals: Iterable[Tensors] = [scores] if scope == "global" else [{path: one} for path, one in scores.items()]
    masks: dict[str, Tensor] = {}
    for some in rivals:
        flat = torch.cat([score.flatten() for score in some.values()])
        keep = torch.ones_like(flat, dtype=torch.bool)
        if count := round(sparsity * len(flat)):
            last = flat.kthvalue(count).values  # of a hundred million scores a tenth of the time of sorting them
            keep = flat > last
            equal = (flat == last).nonzero().flatten()
            keep[equal[count - int((flat < last).sum()) :]] = True
        parts = keep.split([score.numel() for score in some.values()])
        masks |= {path: part.view(score.shape) for (path, score), part in zip(some.items(), parts, strict=True)}
    return masks


def by_group(scores: Tensors, sparsity: float, size: int) -> dict[str, Tensor]:
    """Masks that leave out the same number in each group of `size` neighbours along the inputs (dimension 1, of which
    `size` is a divisor): for 2:4, two of four (Mishra et al., Accelerating sparse deep neural networks, 2021)."""
    masks = {}
    for path, score in scores.items():
        groups = score.movedim(1, -1).unflatten(-1, (-1, size))
        lowest = groups.argsort(dim=-1, stable=True)[..., : round(sparsity * size)]
        keep = torch.ones_like(groups, dtype=torch.bool).scatter(-1, lowest, False)
        masks[path] = keep.flatten(-2).movedim(-1, 1)
    return masks


def cubic(start: float, end: float, time: float) -> float:
    """The sparsity at a time from 0 to 1: many go at first, few at last (Zhu and Gupta, To prune or not to prune, 2017,
    eq. 1)."""
    return end + (start - end) * (1 - time) ** 3
