"""Zero-cost scores: what an untrained student tells of the trained one, from one batch. Higher is better.

Each leaves the model as it was, and draws nothing at random.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from kd import taps
from kd.batch import Needs, Outputs, View
from kd.losses.relation.similarity_preserving import similarity_preserving
from kd.regimes.regime import Guide
from kd.tensors import each, probabilities
from students import Classifier

Score = Callable[[nn.Module, View, Guide], float]


def synflow(model: nn.Module, x: Tensor) -> float:
    """log Σ_θ |∂R/∂θ · θ|, where R = 1ᵀ f(1) sums the logits of an image of ones under the absolute weights.

    Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020: the saliency
    ∂R/∂θ ⊙ θ of R = 1ᵀ (Π_l |θ_l|) 1. Summed over the parameters: Abdelfattah et al., Zero-Cost Proxies for Lightweight
    NAS, 2021. BatchNorms pass on what they are given and do not count; the net sees the ones as they are, not
    normalised. Other norms stay: there the flow is no product, and the score hardly knows depth. nan where attention
    without such norms overflows float64.

    Args:
        x: (N, C, H, W) images, of which the shape alone matters.
    """
    net = copy.deepcopy(model.net if isinstance(model, Classifier) else model).to("cpu", torch.float64).eval()
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_hook(lambda module, inputs, output: inputs[0])
    parameters = [parameter.requires_grad_() for parameter in net.parameters()]
    with torch.no_grad():
        for parameter in parameters:
            parameter.abs_()
    with torch.enable_grad():
        flow = net(torch.ones(1, *x.shape[1:], dtype=torch.float64)).sum()
        slopes = torch.autograd.grad(flow, parameters, allow_unused=True)
        pairs = zip(slopes, parameters, strict=True)
        saliency = [(slope * value).abs().sum() for slope, value in pairs if slope is not None]
    return float(torch.stack(saliency).sum().log().detach())


def naswot(model: nn.Module, x: Tensor) -> float:
    """log |det K|, K_ij = units − Hamming distance of the codes of images i and j: which units are on.

    Mellor et al., Neural Architecture Search without Training, 2021: K_H and s = log |K_H|. A unit is an input of a
    ReLU, on where it is above 0; so are those of GELU, SiLU and their like, which bend there too, module or function.
    BatchNorms take the statistics of the batch. -inf where two images have one code.

    Args:
        x: (N, C, H, W) images.
    """
    codes = _Codes(len(x))
    with torch.no_grad(), codes:
        _untrained(model)(x)
    return float(torch.linalg.slogdet(codes.alike).logabsdet)


_aten = torch.ops.aten
_BENDING = {
    *(_aten.relu, _aten.relu_, _aten.hardtanh, _aten.hardtanh_, _aten.leaky_relu, _aten.leaky_relu_),
    *(_aten.gelu, _aten.gelu_, _aten.silu, _aten.silu_, _aten.hardswish, _aten.hardswish_, _aten.mish, _aten.mish_),
    *(_aten.elu, _aten.elu_, _aten._prelu_kernel),
}


class _Codes(TorchDispatchMode):
    """For each two of the `count` images, in how many units they are alike."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.alike = torch.zeros(count, count, dtype=torch.float64)

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if operator.overloadpacket in _BENDING and len(arguments[0]) % len(self.alike) == 0:  # not of weights
            on = (arguments[0] > 0).reshape(len(self.alike), -1).double()  # windows of an image follow each other
            off = 1 - on
            self.alike += (on @ on.T + off @ off.T).cpu()
        return operator(*arguments, **(options or {}))


def diswot(model: nn.Module, view: View, teacher: Guide) -> float:
    """−(semantic + relation): how unlike student and teacher are in what they tell of classes and of samples.

    Dong et al., DisWOT: Student Architecture Search for Distillation WithOut Training, 2023. Relation is the distance
    of the N x N similarities of the last maps (`similarity_preserving`). Semantic is that of the gradients of
    cross-entropy by the classifier's weight, (classes, D), the Grad-CAM of that layer: between its rows, the classes,
    where the paper's code correlates channels, of which a student has other numbers than its teacher. BatchNorms of
    the student take the statistics of the batch.
    """
    needs = Needs(embedding=True, stages=(-1,))
    with torch.no_grad():
        student = each(Tensor.double, taps.read(_untrained(model), view.x, needs))
        guide = each(Tensor.double, teacher(view, needs))
        semantic = similarity_preserving(_classifier_slope(student, view.y), _classifier_slope(guide, view.y))
        relation = similarity_preserving(student.stages[-1], guide.stages[-1])
    return -float(semantic + relation)


def _classifier_slope(outputs: Outputs, y: Tensor) -> Tensor:
    """N times the gradient of the mean cross-entropy by the weight of a linear classifier."""
    assert outputs.embedding is not None
    return (outputs.logits.softmax(1) - probabilities(y, outputs.logits.shape[1])).T @ outputs.embedding


def _untrained(model: nn.Module) -> nn.Module:
    """A copy to look at: its BatchNorms have seen nothing yet, so they go by the batch; the rest as in evaluation."""
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return copied


SCORES: dict[str, Score] = {
    "synflow": lambda model, view, teacher: synflow(model, view.x),
    "naswot": lambda model, view, teacher: naswot(model, view.x),
    "diswot": diswot,
}


class RankCorrelation(NamedTuple):
    """How far two rankings agree: 1 wholly, -1 reversed."""

    spearman: float
    kendall: float


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> RankCorrelation:
    """Spearman's rho and Kendall's tau-b of two scores of the same candidates.

    A candidate with a nan is left out; nan where one score is the same for all that are left.
    """
    from scipy import stats  # half a second, which every command would take to start

    kept = [(x, y) for x, y in zip(xs, ys, strict=True) if not math.isnan(x) and not math.isnan(y)]
    left, right = [x for x, _ in kept], [y for _, y in kept]
    if len(set(left)) < 2 or len(set(right)) < 2:
        return RankCorrelation(math.nan, math.nan)
    return RankCorrelation(
        float(stats.spearmanr(left, right).statistic), float(stats.kendalltau(left, right).statistic)
    )
