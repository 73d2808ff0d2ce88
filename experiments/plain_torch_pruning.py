"""torch-pruning as its documentation uses it, for `experiments.prune_zoo` to compare with; the product is without it.

Needs the extra `sweep`: pip install -e '.[sweep]'
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

Removed = dict[str, dict[int, list[int]]]
"""By the path of a parameter and a dimension of it, the indices that were taken out."""

_HEADED = ("qkv", "qkv_proj", "to_qkv", "q", "k", "v", "q_proj", "k_proj", "v_proj", "query", "key", "value")
_SEEN = 16  # values of a row that tell where it was


def prune(net: nn.Module, x: Tensor, classes: int) -> tuple[nn.Module, float]:
    """A copy with half of the channels, l2 by group, and the processor seconds that it took.

    As in examples/timm_models of torch-pruning 1.6, with the heads of all attentions told and put right afterwards.
    """
    import torch_pruning as tp

    made = copy.deepcopy(net)
    for module in made.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # as TIMM_FUSED_ATTN=0 builds it: fused attention hides the graph
    begun = time.process_time()
    heads = {layer: module.num_heads for module, layer in _attention(made)}
    pruner = tp.pruner.MetaPruner(
        made,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[layer for layer in made.modules() if _width(layer) == classes],
        num_heads=dict(heads),
        in_channel_groups={},  # its defaults are shared by all pruners of a process, and changed
        out_channel_groups={},
    )
    pruner.step()
    for module, layer in _attention(made):
        module.num_heads = pruner.num_heads[layer]
        width = layer.weight.shape[0] // (3 if "qkv" in _path(module, layer) else 1)
        sizes = {"head_dim": width // module.num_heads, "attn_dim": width}
        for name in sizes.keys() & vars(module).keys():
            setattr(module, name, sizes[name])
    return made, time.process_time() - begun


def removed(before: nn.Module, after: nn.Module) -> Removed:
    """What is missing in `after`, told from the values alone. Raises ValueError where they do not tell it."""
    small = dict(after.named_parameters())
    return {path: gone for path, old in before.named_parameters() if (gone := _missing(path, old, small.get(path)))}


def _missing(path: str, old: Tensor, new: Tensor | None) -> dict[int, list[int]]:
    if new is None or new.dim() != old.dim():
        raise ValueError(f"{path} is no more")
    rest = old.detach().contiguous()
    if new.dim() == 1 and not bool(torch.isin(new, old).all()):  # a scale that was folded in, as of an RMS norm
        new = new.detach() * (len(new) / len(old)) ** 0.5
    strides = rest.stride()
    ordered, places = rest.flatten().sort()
    gone = {}
    for dim, (size, left) in enumerate(zip(old.shape, new.shape, strict=True)):
        if size == left:
            continue
        values = new.detach().transpose(0, dim).reshape(left, -1)[:, :_SEEN].contiguous()
        above = torch.searchsorted(ordered, values).clamp(max=len(ordered) - 1)
        below = (above - 1).clamp(min=0)
        nearer = (ordered[above] - values).abs() <= (values - ordered[below]).abs()
        found = places[torch.where(nearer, above, below)]
        kept = (found // strides[dim] % size).mode(dim=1).values
        rest = rest.index_select(dim, kept)
        gone[dim] = sorted(set(range(size)) - set(kept.tolist()))
    if not torch.allclose(rest, new, rtol=1e-6, atol=0):
        raise ValueError(f"{path} holds other values than it did")
    return gone


def _attention(net: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Attentions with their layers that make heads."""
    for module in net.modules():
        if isinstance(getattr(module, "num_heads", None), int):
            for name in _HEADED:
                if isinstance(layer := getattr(module, name, None), nn.Linear | nn.Conv2d):
                    yield module, layer


def _width(layer: nn.Module) -> int | None:
    return getattr(layer, "out_features", getattr(layer, "out_channels", None))


def _path(module: nn.Module, layer: nn.Module) -> str:
    return next(name for name, child in module.named_children() if child is layer)
