"""Streams of bytes in fewer bytes: as they are, by zstandard, or by a range coder, whichever is smallest.

Here hardly anything repeats, and what a stream tells is which bytes are frequent: zstandard's Huffman code needs about
1% more than their entropy, the coder of the extra `coding` (constriction: an asymmetric numeral system) 0.01%.
"""

from __future__ import annotations

import struct
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from kd.errors import InputError

Array = Any  # of numpy, uint8
Coder = Literal["zstd", "range"]
RAW, ZSTD, RANGE = "raw", "zstd", "range"
_LEVELS = (1, 19)  # of zstandard: nothing but a Huffman code is quick; where bytes repeat, the slow one finds it
_LONG = 1 << 24  # bytes that the slow one would take too long for
_WHOLE = 1 << 16  # what the frequencies of a range coder's table sum to


def squeezed(stream: Array, coder: Coder = "zstd", quick: bool = False) -> tuple[str, bytes]:
    """The name of what coded it smallest, and the bytes. The coder "range" may choose zstandard, but not the reverse.

    Raises InputError where the range coder is asked for but not installed.
    """
    raw = stream.tobytes()
    levels = _LEVELS[:1] if quick or len(raw) > _LONG else _LEVELS
    forms = [(RAW, raw), *((ZSTD, _compressed(raw, level)) for level in levels)]
    if coder == RANGE and len(stream):
        forms.append((RANGE, _ranged(stream)))
    return min(forms, key=lambda form: len(form[1]))


def whole(coder: str, content: bytes, size: int) -> Array:
    """The stream of `size` bytes again.

    Raises ValueError where these are no bytes of it, InputError where the range coder is needed but not installed.
    """
    if coder == RAW:
        raw = content
    elif coder == ZSTD:
        import zstandard

        try:
            raw = zstandard.ZstdDecompressor().decompress(content, max_output_size=size)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    elif coder == RANGE:
        return _unranged(content, size)
    else:
        raise ValueError(f"{coder} is no coder")
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes in the place of {size}")
    return np.frombuffer(raw, np.uint8)


def entropy(symbols: Array) -> float:
    """Bytes that symbols from 0 to 255, or booleans, take at least, where each is told for its frequency alone."""
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    return float(counts @ -np.log2(counts / max(len(symbols), 1))) / 8


def _compressed(raw: bytes, level: int) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=level).compress(raw)


def _ranged(stream: Array) -> bytes:
    """How many frequencies there are (2 bytes), the frequencies (2 bytes each), then words of 4 bytes."""
    frequencies = _frequencies(stream)
    table = struct.pack("<H", len(frequencies)) + frequencies.astype("<u2").tobytes()
    if np.count_nonzero(frequencies) < 2:
        return table
    coder = _constriction().stream.stack.AnsCoder()
    coder.encode_reverse(stream.astype(np.int32), _model(frequencies))
    return table + coder.get_compressed().astype("<u4").tobytes()


def _unranged(content: bytes, size: int) -> Array:
    (length,) = struct.unpack_from("<H", content)
    frequencies = np.frombuffer(content, "<u2", length, 2).astype(np.int64)
    if np.count_nonzero(frequencies) < 2:
        return np.full(size, frequencies.argmax(), np.uint8)
    words = np.frombuffer(content, "<u4", offset=2 + 2 * length).astype(np.uint32)
    return _constriction().stream.stack.AnsCoder(words).decode(_model(frequencies), size).astype(np.uint8)


def _frequencies(stream: Array) -> Array:
    """(256 or fewer,) whole numbers near the bytes' frequencies, at least 1 for bytes that occur.

    Those of two bytes or more sum to 2^16: so probabilities, and sums of them, are exact in any precision and order.
    """
    counts = np.bincount(stream)
    if np.count_nonzero(counts) < 2:
        return (counts > 0).astype(np.int64)
    scaled = np.where(counts > 0, np.maximum(counts * _WHOLE // len(stream), 1), 0)
    scaled[scaled.argmax()] += _WHOLE - scaled.sum()
    return scaled


def _model(frequencies: Array) -> Any:
    return _constriction().stream.model.Categorical(frequencies / _WHOLE, perfect=False)


def check_installed(coder: str) -> None:
    """Raise InputError that names the extra where the range coder is asked for but not installed."""
    if coder == RANGE and find_spec("constriction") is None:
        raise InputError("coder", RANGE, "needs the extra: pip install 'retort[coding]'")


def _constriction() -> Any:
    check_installed(RANGE)
    import constriction

    return constriction
