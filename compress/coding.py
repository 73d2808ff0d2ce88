"""A tensor as streams of bytes: where it is not zero, which of few values stand there or the values themselves.

Every bit is kept, also those of negative zeros and of what is no number. docs/coding.md tells the format.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.entropy import Coder, entropy, squeezed, whole
from compress.sharing import MOST

Array = Any  # of numpy
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_RUN = 255  # zeros in a row that one byte tells
_LOOK = 4096  # entries that tell most tensors that are not clustered


@dataclass(frozen=True)
class Coded:
    """A tensor in pieces.

    Attributes:
        record: what tells how to put them together, as JSON.
        streams: the pieces.
        bound: bytes that they would take if each position and each cluster were told by an ideal code for how frequent
            it is alone, and all else as it is.
        entries, nonzero, clusters: of the tensor; clusters are 0 where it is not told by a table of values.
    """

    record: dict[str, Any]
    streams: tuple[bytes, ...]
    bound: float
    entries: int
    nonzero: int
    clusters: int

    @property
    def size(self) -> int:
        """Bytes of the streams."""
        return sum(map(len, self.streams))

    @property
    def plain(self) -> int:
        """Bytes of the tensor."""
        return self.entries * getattr(torch, self.record["type"]).itemsize


def coded(name: str, tensor: Tensor, coder: Coder = "zstd") -> Coded:
    """Of a tensor of any type and shape, on the CPU."""
    size = tensor.element_size()
    rows = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().reshape(-1, size)
    record: dict[str, Any] = {"name": name, "type": str(tensor.dtype).removeprefix("torch."), "shape": [*tensor.shape]}
    words = rows.view(_WORDS[size])[:, 0] if size in _WORDS else None
    there = None if words is None or words.all() else words != 0
    parts: dict[str, Array] = {}
    if words is not None and there is not None and _apart_from_zeros(words, there):
        record["form"], parts["positions"] = _positions(there)
        rows, words = rows[there], words[there]
    values = None if words is None else _few(words)
    if words is None or values is None:
        parts["values"] = rows.T.reshape(-1)
    else:
        record["bits"] = bits = _width(len(values))
        parts["table"] = values.view(np.uint8)
        indices = np.searchsorted(values, words).astype(np.uint8)
        parts["indices"] = _joined(indices, bits)
    ideal = {} if "positions" not in parts else {"positions": entropy(there)}
    if values is not None:
        ideal["indices"] = entropy(indices)
    streams = []
    for part, stream in parts.items():
        how, content = squeezed(stream, coder)
        record[part] = [how, len(stream), len(content)]
        streams.append(content)
    bound = sum(ideal.get(part, len(content)) for part, content in zip(parts, streams, strict=True))
    clusters = 0 if values is None else len(values)
    return Coded(record, tuple(streams), bound, tensor.numel(), int(tensor.count_nonzero()), clusters)


def decoded(record: dict[str, Any], content: Iterator[bytes]) -> Tensor:
    """The tensor again, from its record and its streams. Raises ValueError where they do not fit."""
    dtype, shape = getattr(torch, record["type"]), record["shape"]
    size, entries = dtype.itemsize, math.prod(shape)
    parts = {
        part: whole(record[part][0], next(content), record[part][1])
        for part in ("positions", "values", "table", "indices")
        if part in record
    }
    there = _places(record["form"], parts["positions"], entries) if "positions" in parts else None
    count = entries if there is None else len(there)
    if "values" in parts:
        rows = parts["values"].reshape(size, count).T
    else:
        table = parts["table"].reshape(-1, size)
        rows = table[_apart(parts["indices"], record["bits"], count)]
    if there is not None:
        kept, rows = rows, np.zeros((entries, size), np.uint8)
        rows[there] = kept
    return torch.from_numpy(np.array(rows, order="C")).flatten().view(dtype).view(shape)


def _apart_from_zeros(words: Array, there: Array) -> bool:
    """Whether positions are worth their bits: where many are zero, or zero is one value too many for a table."""
    many = 4 * np.count_nonzero(there) <= 3 * len(there)
    return bool(many) or (_few(words) is None and _few(words[there]) is not None)


def _few(words: Array) -> Array | None:
    """The values that occur, in order, if there are few, and more entries than twice as many."""
    if not len(words) or len(np.unique(words[:_LOOK])) > MOST:
        return None
    values = np.unique(words)
    return values if len(values) <= MOST and 2 * len(values) < len(words) else None


def _positions(there: Array) -> tuple[str, Array]:
    """Gaps or a mask, whichever zstandard's Huffman code makes smaller."""
    forms = {"gaps": _gaps(there), "mask": np.packbits(there)}
    return min(forms.items(), key=lambda form: len(squeezed(form[1], quick=True)[1]))


def _gaps(there: Array) -> Array:
    """How many zeros are before each entry that is none; 255: as many, and no entry yet."""
    gaps = np.diff(np.flatnonzero(there), prepend=-1) - 1
    runs = gaps // _RUN
    stream = np.full(len(gaps) + int(runs.sum()), _RUN, np.uint8)
    stream[np.cumsum(runs) + np.arange(len(gaps))] = gaps % _RUN
    return stream


def _places(form: str, stream: Array, entries: int) -> Array:
    """The indices of entries that are not zero, in order."""
    if form == "mask":
        if len(stream) != -(-entries // 8):
            raise ValueError(f"a mask of {len(stream)} bytes for {entries} entries")
        return np.flatnonzero(np.unpackbits(stream, count=entries))
    steps = stream.astype(np.int64) + (stream < _RUN)
    return np.cumsum(steps)[stream < _RUN] - 1


def _width(values: int) -> int:
    """The bits of an index, a divisor of 8."""
    return next(bits for bits in (1, 2, 4, 8) if values <= 2**bits)


def _joined(indices: Array, bits: int) -> Array:
    """As many indices in a byte as it holds, the first ones in its high bits."""
    each = 8 // bits
    rows = np.pad(indices, (0, -len(indices) % each)).reshape(-1, each)
    return np.bitwise_or.reduce(rows << np.arange(8 - bits, -1, -bits, dtype=np.uint8), axis=1)


def _apart(stream: Array, bits: int, count: int) -> Array:
    if len(stream) != -(-count * bits // 8):
        raise ValueError(f"{len(stream)} bytes for {count} indices of {bits} bits")
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (stream[:, None] >> shifts & np.uint8(2**bits - 1)).reshape(-1)[:count]
