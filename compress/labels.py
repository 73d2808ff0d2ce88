"""Which entries of a net go together: every operation of one forward pass is asked along what its numbers would vanish.

Each entry of each dimension of a parameter is an *atom*. A tensor carries, for each of its dimensions, the atoms with
which its slices would vanish: its *labels*. Operations hand labels on, and note which atoms go only together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from compress.cost import plain_attention

FIXED = 0  # the atom of whatever cannot go
Labels = list[Tensor | None]
"""For each dimension the atoms, (size,) int64; None where nothing can go along it."""


@dataclass(frozen=True, order=True)
class Axis:
    """Something whose length is a number of channels.

    Attributes:
        path: of a parameter or buffer, or of a module's plain attribute, such as `blocks.0.attn.num_heads`.
        dim: the dimension; of an attribute that is a tuple, the place in it; None: the attribute itself.
    """

    path: str
    dim: int | None


@dataclass
class Trace:
    """What was noted.

    Attributes:
        axes: the first atom of each axis.
        lengths: how many atoms it has.
        ends: the atoms so far; 0 is `FIXED`.
        ties: (2, n) each: pairs of atoms that go only together.
        work: for each contraction its multiply-accumulates as a factor and the labels whose lengths multiply it.
        sizes: by the path of each module, the labels of what it reshaped: where its attributes may come from.
    """

    axes: dict[Axis, int] = field(default_factory=dict)
    lengths: dict[Axis, int] = field(default_factory=dict)
    ends: int = 1
    ties: list[Tensor] = field(default_factory=list)
    work: list[tuple[int, list[Tensor]]] = field(default_factory=list)
    sizes: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, axis: Axis, length: int) -> Tensor:
        """The atoms of an axis, which are new the first time."""
        if axis not in self.axes:
            self.axes[axis], self.lengths[axis] = self.ends, length
            self.ends += length
        return torch.arange(self.axes[axis], self.axes[axis] + length)

    def tie(self, one: Tensor | None, other: Tensor | None) -> None:
        """What has None on the other side stays."""
        if one is None and other is None:
            return
        one, other = (torch.tensor(FIXED) if side is None else side for side in (one, other))
        if one is not other:
            pairs = torch.stack([side.flatten() for side in torch.broadcast_tensors(one, other)])
            self.ties.append(pairs.unique(dim=1) if pairs.shape[1] > _MANY else pairs)

    def fix(self, *several: Tensor | None) -> None:
        for labels in several:
            self.tie(labels, None)

    def classes(self) -> np.ndarray[Any, Any]:
        """(atoms,) numbers, equal where atoms go together; that of `FIXED` comes first."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        one, other = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *self.ties], dim=1).numpy()
        graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(self.ends, self.ends))
        return connected_components(graph, directed=False)[1]


def trace(net: nn.Module, x: Tensor) -> Trace:
    """Run `net` on the input `x` and note what goes together; nothing that reaches the logits can go."""
    found = Trace()
    with torch.no_grad(), plain_attention(), _Follow(net, found) as follow, follow.inside(net), _Scaled(follow):
        out = net(x)
    for tensor in tree_flatten(out)[0]:
        if isinstance(tensor, Tensor):
            found.fix(*follow.labels(tensor))
    return found


def is_rms(module: nn.Module) -> bool:
    """Whether it divides by the root of a mean square, and then scales: without c of C channels, which were zero, it
    answers alike when its scale is multiplied by the root of C / (C - c), and its epsilon by C / (C - c)."""
    named = "rmsnorm" in type(module).__name__.lower()
    return named and isinstance(getattr(module, "weight", None), Tensor) and hasattr(module, "eps")


class _Follow(TorchDispatchMode):
    """Hands labels on through whatever a net computes."""

    def __init__(self, net: nn.Module, found: Trace) -> None:
        super().__init__()
        self.found = found
        self.known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.modules: list[tuple[str, nn.Module]] = [("", net)]
        state = net.state_dict(keep_vars=True)
        for name, value in state.items():
            self.known[value] = [
                found.add(Axis(name, dim), size) if size > 1 else None for dim, size in enumerate(value.shape)
            ]

    def labels(self, tensor: Tensor) -> Labels:
        return self.known.get(tensor) or [None] * tensor.dim()

    @contextmanager
    def inside(self, net: nn.Module) -> Iterator[None]:
        """While it lasts, the innermost module that runs is known."""
        handles = []
        for path, module in net.named_modules():
            enter = lambda *_, entry=(path, module): self.modules.append(entry)  # noqa: E731
            leave = lambda *_: self.modules.pop() and None  # noqa: E731
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        rule = _rule(func, func.overloadpacket.__name__.removesuffix("_"))
        results = out if isinstance(out, (tuple, list)) else [out]
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        if not any(any(label is not None for label in self.labels(tensor)) for tensor in tensors):
            return out
        try:
            labels = rule(self, func, args, kwargs, results)
        except Exception:  # called as no rule expects
            labels = _unknown(self, func, args, kwargs, results)
        for result, new in zip(results, labels, strict=False):
            if isinstance(result, Tensor):
                self.known[result] = new
        return out


class _Scaled(TorchFunctionMode):
    """Notes that attention which is told no scale takes that of its width."""

    def __init__(self, follow: _Follow) -> None:
        super().__init__()
        self.follow = follow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and kwargs.get("scale") is None:
            query = args[0] if args else kwargs["query"]
            self.follow.found.fix(self.follow.labels(query)[-1])
        return func(*args, **kwargs)


Rule = Callable[[_Follow, Any, Sequence[Any], Mapping[str, Any], Sequence[Any]], list[Labels]]


def _pointwise(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    """Slices meet where shapes are broadcast."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    return [_together(follow, tensors, result.shape) if isinstance(result, Tensor) else [] for result in results]


def _together(follow: _Follow, tensors: Sequence[Tensor], shape: Sequence[int]) -> Labels:
    labels: Labels = [None] * len(shape)
    for dim, size in enumerate(shape):
        back = dim - len(shape)
        met = [
            follow.labels(tensor)[back]
            for tensor in tensors
            if tensor.dim() >= -back and tensor.shape[back] == size and size > 1
        ]
        labels[dim] = next((label for label in met if label is not None), None)
        for label in met:
            follow.found.tie(labels[dim], label)
    return labels


def _move(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    """Data only changes places: the labels themselves are sent the same way."""
    leaves, spec = tree_flatten((args, kwargs))
    floats = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    new: list[Labels] = [[None] * result.dim() for result in results]
    blank = {i: torch.zeros((), dtype=torch.float64).expand(leaves[i].shape) for i in floats}
    for i in floats:
        for dim, label in enumerate(follow.labels(leaves[i])):
            if label is None:
                continue
            shape = [-1 if d == dim else 1 for d in range(leaves[i].dim())]
            sent = list(leaves)
            for j in floats:
                sent[j] = blank[j]
            sent[i] = label.double().view(shape).expand(leaves[i].shape)
            moved_args, moved_kwargs = tree_unflatten(sent, spec)
            with torch.utils._python_dispatch._disable_current_modes():
                moved = _sent(func, moved_args, moved_kwargs)
            for result, labels in zip(moved if isinstance(moved, (tuple, list)) else [moved], new, strict=True):
                _read(follow, result, labels)
    if func.overloadpacket.__name__ in _PIECES and len({result.shape for result in results}) == 1:
        for other in new[1:]:  # pieces that are counted, not measured, have to stay equal
            for one, two in zip(new[0], other, strict=True):
                if one is not None or two is not None:
                    follow.found.tie(one, two)
    path, module = follow.modules[-1]
    if not isinstance(module, _LAYERS) and not is_rms(module):
        for labels in new + [follow.labels(leaves[i]) for i in floats]:
            follow.found.sizes[path].extend(label for label in labels if label is not None)
    return new


def _sent(func: Any, args: Any, kwargs: Any) -> Any:
    if func.overloadpacket.__name__ in ("view", "_unsafe_view", "_reshape_alias"):
        return torch.reshape(args[0], args[1])  # labels lie otherwise in memory
    return func(*args, **kwargs)


def _read(follow: _Follow, sent: Tensor, labels: Labels) -> None:
    """Find the dimension along which the atoms in `sent` lie, and note them there."""
    found = follow.found
    for dim, (size, stride) in enumerate(zip(sent.shape, sent.stride(), strict=True)):
        if size > 1 and stride == 0:  # nothing changes along it
            sent = sent.narrow(dim, 0, 1)
    sent = sent.nan_to_num(0, 0, 0)  # what a padding of infinity brings in
    if not sent.numel() or not sent.any():
        return
    wide = [dim for dim, size in enumerate(sent.shape) if size > 1]
    for dim in sorted(wide, key=lambda d: -sent.shape[d] if d else 0):
        if (vector := _alone(sent, dim)) is not None and len(vector.unique()) > 1:
            _lay(found, labels, dim, vector)
            return
    varying = [dim for dim in wide if bool((sent != sent.narrow(dim, 0, 1)).any())]
    if len(varying) < 2:  # nothing that is there could go by parts
        found.fix(sent.unique().long())
        return
    keep = _dimension(follow.modules[-1][1], sent, varying)
    rows = sent.movedim(keep, 0).reshape(sent.shape[keep], -1).long()
    vector = rows.amax(1)
    found.tie(vector[:, None].expand_as(rows)[rows > 0], rows[rows > 0])
    found.fix(vector[rows.amin(1) == 0])  # beside something that cannot go
    _lay(found, labels, keep, vector)


def _lay(found: Trace, labels: Labels, dim: int, vector: Tensor) -> None:
    if labels[dim] is not None:  # two things vanish along one dimension: neither may
        found.fix(labels[dim], vector)
        labels[dim] = None
    else:
        labels[dim] = vector


def _alone(sent: Tensor, dim: int) -> Tensor | None:
    """The atoms along `dim`, where they depend on that dimension alone."""
    rows = sent.movedim(dim, 0).reshape(sent.shape[dim], -1)
    most = rows.amax(1)
    return most.long() if bool((rows == most[:, None]).logical_or(rows == 0).all()) else None


def _dimension(module: nn.Module, sent: Tensor, varying: Sequence[int]) -> int:
    """Of the dimensions that channels are laid out in, that along which they can go: heads, or else the longest."""
    heads = {getattr(module, name, None) for name in _HEADS}
    likely = sorted(varying, key=lambda dim: dim != varying[-2])  # (3, heads, width) with three heads
    return next((dim for dim in likely if sent.shape[dim] in heads), max(varying, key=lambda dim: sent.shape[dim]))


def _shuffle(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    """Of each group the same places."""
    x, groups = args
    if (labels := follow.labels(x)[1]) is not None:
        each = labels.view(groups, -1)
        follow.found.tie(each[:1], each)
    return _move(follow, func, args, kwargs, results)


def _cat(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    tensors = [tensor for tensor in args[0] if tensor.numel()]
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % results[0].dim()
    labels: Labels = []
    for d in range(results[0].dim()):
        met = [follow.labels(tensor)[d] for tensor in tensors]
        if all(label is None for label in met):
            labels.append(None)
        elif d == dim:
            labels.append(
                torch.cat(
                    [
                        torch.full((tensor.shape[d],), FIXED) if label is None else label
                        for tensor, label in zip(tensors, met, strict=True)
                    ]
                )
            )
        else:
            one = next(label for label in met if label is not None)
            for label in met:
                follow.found.tie(one, label)
            labels.append(one)
    return [labels]


def _stack(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % results[0].dim()
    labels = _together(follow, args[0], args[0][0].shape)
    return [[*labels[:dim], None, *labels[dim:]]]


def _reduce(exact: bool) -> Rule:
    """Over some dimensions; a sum loses nothing by zeros, whatever else is `fixed`."""

    def rule(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
        x = args[0]
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        dims = given.get("dim", given.get("dims"))
        dims = [dims] if isinstance(dims, int) else list(dims or range(x.dim()))
        gone = {d % max(x.dim(), 1) for d in dims}
        labels = follow.labels(x)
        if not exact and not is_rms(follow.modules[-1][1]):
            follow.found.fix(*(labels[d] for d in gone))
        if results[0].dim() == x.dim():
            kept = [None if d in gone and results[0].shape[d] == 1 else label for d, label in enumerate(labels)]
        else:
            kept = [label for d, label in enumerate(labels) if d not in gone]
        return [list(kept) if isinstance(r, Tensor) and r.dim() == len(kept) else [] for r in results]

    return rule


def _window(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    """Pooling and resampling of the last two dimensions."""
    labels = follow.labels(args[0])
    follow.found.fix(*labels[-2:])
    return [[*labels[:-2], None, None] for _ in results]


def _convolve(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    x, weight, bias, _, _, _, transposed, _, groups = args
    found, (batch, channels, *space) = follow.found, follow.labels(x)
    if transposed:
        inner, outer = follow.labels(weight)[:2]
    else:
        outer, inner = follow.labels(weight)[:2]
    found.fix(batch, *space, *follow.labels(weight)[2:])
    out = outer
    if groups == 1:
        found.tie(channels, inner)
    elif transposed or channels is None or outer is None:
        found.fix(channels, outer, inner)
        out = None
    else:
        each_in, each_out = channels.view(groups, -1), outer.view(groups, -1)
        if weight.shape[1] == 1 or groups >= weight.shape[1]:  # whole groups go
            found.tie(each_in[:, :1], each_in)
            found.tie(each_in[:, :1], each_out)
            found.fix(inner)
            _attribute(follow, "groups", each_in[:, 0])
            out = each_in[:, :1].expand_as(each_out).flatten()
            inner = None
        else:  # of each group the same places
            found.tie(inner, each_in)
            found.tie(each_out[:1], each_out)
            out = each_out[:1].expand_as(each_out).flatten()
    if bias is not None:
        found.tie(out, follow.labels(bias)[0])
    result = results[0]
    lengths = [label for label in (out, inner) if label is not None]
    total = result.numel() * weight[0].numel() if not transposed else x.numel() * weight[0].numel()
    found.work.append((total // math.prod(map(len, lengths)), lengths))
    return [[None, out, *[None] * len(space)]]


def _multiply(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    """`mm`, `bmm`, `addmm` and `baddbmm`."""
    *added, a, b = args[:3] if func.overloadpacket.__name__ in ("addmm", "baddbmm", "addmv") else args[:2]
    found, left, right = follow.found, follow.labels(a), follow.labels(b)
    found.tie(left[-1], right[-2])
    for one, two in zip(left[:-2], right[:-2], strict=True):
        found.tie(one, two)
    labels: Labels = [*(one if one is not None else two for one, two in zip(left[:-2], right[:-2], strict=True))]
    labels += [left[-2], right[-1]]
    lengths = [label for label in (*labels, left[-1] if left[-1] is not None else right[-2]) if label is not None]
    found.work.append((results[0].numel() * a.shape[-1] // math.prod(map(len, lengths)), lengths))
    for bias in added:
        labels = _broadcast(follow, labels, bias, results[0].shape)
    return [labels]


def _linear(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    x, weight, *bias = args
    found, left, (outer, inner) = follow.found, follow.labels(x), follow.labels(weight)
    found.tie(left[-1], inner)
    labels: Labels = [*left[:-1], outer]
    lengths = [label for label in (*labels, inner) if label is not None]
    found.work.append((results[0].numel() * x.shape[-1] // math.prod(map(len, lengths)), lengths))
    for each in bias:
        if each is not None:
            found.tie(outer, follow.labels(each)[0])
    return [labels]


def _broadcast(follow: _Follow, labels: Labels, bias: Tensor, shape: Sequence[int]) -> Labels:
    for back in range(-1, -bias.dim() - 1, -1):
        if bias.shape[back] == shape[back] > 1:
            label = follow.labels(bias)[back]
            follow.found.tie(labels[back], label)
            labels[back] = labels[back] if labels[back] is not None else label
    return labels


def _batch_norm(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    """Of each channel alone; with the statistics of what comes in, as weights are standardised, of all the rest too."""
    labels = list(follow.labels(args[0]))
    for each in args[1:5]:
        if isinstance(each, Tensor):
            follow.found.tie(labels[1], follow.labels(each)[0])
    if args[3] is None or True in args[5:6]:
        follow.found.fix(*labels[:1], *labels[2:])
        labels[2:] = [None] * len(labels[2:])
    return [labels, *([] for _ in results[1:])]


def _layer_norm(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    """Statistics over channels change with each of them."""
    x, shape, *affine = args
    labels = list(follow.labels(x))
    if is_rms(follow.modules[-1][1]):
        follow.found.tie(labels[-1], follow.labels(affine[0])[-1])
        return [labels, *([] for _ in results[1:])]
    for back in range(-len(shape), 0):
        follow.found.fix(labels[back], *(follow.labels(v)[back] for v in affine if isinstance(v, Tensor)))
        labels[back] = None
    return [labels, *([] for _ in results[1:])]


def _group_norm(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    x, weight, bias, _, _, _, groups = args[:7]
    labels, found = list(follow.labels(x)), follow.found
    if labels[1] is not None:
        of_group = labels[1].view(groups, -1)
        found.tie(of_group[:, :1], of_group)
        if groups == 1:
            found.fix(labels[1])
        _attribute(follow, "num_groups", of_group[:, 0])
    for each in (weight, bias):
        if each is not None:
            found.tie(labels[1], follow.labels(each)[0])
    return [labels, *([] for _ in results[1:])]


def _unknown(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    """What is not understood stays."""
    for value in tree_flatten((args, kwargs))[0]:
        if isinstance(value, Tensor):
            follow.found.fix(*follow.labels(value))
    return [[None] * r.dim() if isinstance(r, Tensor) else [] for r in results]


def _same(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    same = results[0].shape == args[0].shape
    return [follow.labels(args[0])] if same else _unknown(follow, func, args, kwargs, results)


def _softmax(follow: _Follow, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> list[Labels]:
    labels = list(follow.labels(args[0]))
    follow.found.fix(labels[args[1]])
    labels[args[1]] = None
    return [labels]


def _attribute(follow: _Follow, name: str, labels: Tensor) -> None:
    path, module = follow.modules[-1]
    if getattr(module, name, None) == len(labels):
        atoms = follow.found.add(Axis(f"{path}.{name}", None), len(labels))
        follow.found.tie(atoms, labels)


def _rule(func: Any, name: str) -> Rule:
    if name in _RULES:
        return _RULES[name]
    if torch.Tag.pointwise in func.tags or name in _POINTWISE:
        return _pointwise
    return _move if func.is_view or name in _MOVES else _unknown


_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_HEADS = ("num_heads", "n_heads", "nhead", "heads", "num_head", "num_attention_heads")
_MANY = 10_000  # pairs, among which few differ
_POINTWISE = {"hardswish", "_prelu_kernel", "log_sigmoid_forward"}
_PIECES = ("split", "chunk")
_MOVES = {
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "expand", "slice", "select"),
    *("squeeze", "unsqueeze", "unbind", "split", "split_with_sizes", "chunk", "repeat"),
    *("roll", "flip", "index", "index_select", "gather", "embedding", "im2col", "pixel_shuffle", "pixel_unshuffle"),
    *("constant_pad_nd", "reflection_pad2d", "replication_pad2d", "unfold"),
    *("rot90", "narrow", "flatten", "_unsafe_index"),
}
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("channel_shuffle",), _shuffle),
    **dict.fromkeys(("cat",), _cat),
    **dict.fromkeys(("stack",), _stack),
    **dict.fromkeys(("as_strided", "clone", "_to_copy", "contiguous", "detach", "alias", "lift_fresh"), _same),
    **dict.fromkeys(("sum",), _reduce(exact=True)),
    **dict.fromkeys(
        ("mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "linalg_vector_norm", "norm", "cumsum"),
        _reduce(exact=False),
    ),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _softmax),
    **dict.fromkeys(
        (
            *("avg_pool2d", "max_pool2d_with_indices", "_adaptive_avg_pool2d", "adaptive_max_pool2d"),
            *("upsample_bilinear2d", "upsample_bicubic2d", "upsample_nearest2d", "_upsample_bilinear2d_aa"),
            *("_upsample_bicubic2d_aa", "avg_pool3d", "upsample_nearest2d_backward"),
        ),
        _window,
    ),
    **dict.fromkeys(("convolution", "_convolution"), _convolve),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _multiply),
    **dict.fromkeys(("linear",), _linear),
    **dict.fromkeys(
        (
            *("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"),
            *("cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update"),
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_norm),
    **dict.fromkeys(("native_group_norm",), _group_norm),
}
