"""Weights as one safetensors file, in which those with many zeros take fewer bytes.

Such a weight is stored under its name as compressed bytes: a bit for each entry that tells whether it is zero, then the
others, all their first bytes before all their second ones. The header tells types and shapes. Every bit is kept.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

KEY, VERSION = "packed", 1


def pack(state: Mapping[str, Tensor]) -> bytes:
    """A file of these tensors, contiguous and on the CPU; a plain one where no weight has a quarter of zeros."""
    packed = {name: tensor for name, tensor in state.items() if _sparse(tensor)}
    if not packed:
        return save(dict(state))
    told = {name: {"type": str(one.dtype).removeprefix("torch."), "shape": one.shape} for name, one in packed.items()}
    squeezed = {name: torch.frombuffer(bytearray(_squeezed(one)), dtype=torch.uint8) for name, one in packed.items()}
    return save(dict(state) | squeezed, {KEY: json.dumps({"version": VERSION, "weights": told})})


def unpack(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file. Raises ValueError where it is none, or torn."""
    try:
        state = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        told = json.loads(header.get("__metadata__", {}).get(KEY, '{"version": 1, "weights": {}}'))
        if told["version"] != VERSION:
            raise ValueError(f"packed in version {told['version']}, {VERSION} is known")
        for name, form in told["weights"].items():
            state[name] = _whole(state[name].numpy().tobytes(), getattr(torch, form["type"]), form["shape"])
    except (SafetensorError, KeyError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
        raise ValueError(str(error)) from error
    return state


def _rows(tensor: Tensor) -> Any:
    """(entries, bytes of one)."""
    return tensor.flatten().view(torch.uint8).view(tensor.numel(), -1).numpy()


def _sparse(tensor: Tensor) -> bool:
    return tensor.dim() > 1 and tensor.numel() > 0 and int(_rows(tensor).any(1).sum()) <= 0.75 * tensor.numel()


def _squeezed(tensor: Tensor) -> bytes:
    rows = _rows(tensor)
    there = rows.any(1)
    return zlib.compress(np.packbits(there).tobytes() + rows[there].T.tobytes(), 9)


def _whole(squeezed: bytes, dtype: torch.dtype, shape: list[int]) -> Tensor:
    raw, size = np.frombuffer(zlib.decompress(squeezed), np.uint8), math.prod(shape)
    bits = -(-size // 8)
    if len(raw) < bits:
        raise ValueError(f"{size} entries do not fit")
    there = np.unpackbits(raw[:bits], count=size).astype(bool)
    rows = np.zeros((size, dtype.itemsize), np.uint8)
    rows[there] = raw[bits:].reshape(dtype.itemsize, int(there.sum())).T
    return torch.from_numpy(rows).flatten().view(dtype).view(shape)
