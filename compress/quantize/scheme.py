"""`Scheme`: how weights and activations become integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from compress.quantize.calibrate import RANGES
from kd.errors import InputError

ROUNDINGS = ("nearest", "learned")
SAFE = 64  # integers of weights up to which two products with unsigned bytes add up in 16 bits
FEW = 31  # integers of weights too few for the largest weight to have the last


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How weights (signed, symmetric) and activations (unsigned bytes) become integers.

    Attributes:
        bits: of weights, 2 to 8; of at most 4 bits a file stores two in a byte.
        per_channel: a scale for each output channel of a weight.
        reduce_range: weights of 7 bits, because products of 8 bits overflow on x86 processors without VNNI;
            None: where this processor is such a one.
        calibrate: how static ranges are found: "minmax", "percentile", "entropy" or "mse".
        equalize: first make the ranges of channels alike where two layers follow each other.
        correct_bias: take what rounding adds to the mean of a channel out of its bias.
        rounding: of weights, "nearest", or "learned" so that the layer's outputs change least.
    """

    bits: int = 8
    per_channel: bool = True
    reduce_range: bool | None = None
    calibrate: Literal["minmax", "percentile", "entropy", "mse"] = "minmax"
    equalize: bool = False
    correct_bias: bool = False
    rounding: Literal["nearest", "learned"] = "nearest"

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise InputError("quantize.bits", self.bits, "must be 2 to 8")
        for name, allowed in (("calibrate", tuple(RANGES)), ("rounding", ROUNDINGS)):
            if getattr(self, name) not in allowed:
                raise InputError(f"quantize.{name}", getattr(self, name), f"must be one of {', '.join(allowed)}")

    @property
    def reduced(self) -> bool:
        return saturates() if self.reduce_range is None else self.reduce_range

    @property
    def most(self) -> int:
        """The largest integer of a weight; onnxruntime counts 64 to the 7 bits of a reduced range."""
        return min(2 ** (self.bits - 1) - 1, SAFE if self.reduced else 127)


def saturates() -> bool:
    """Whether this processor adds products of unsigned and signed bytes in 16 bits, too few: x86 without VNNI."""
    facts = torch.cpu.get_capabilities()
    return x86() and not (facts["avx512_vnni"] or facts["avx_vnni"])


def x86() -> bool:
    return torch.cpu.get_capabilities()["architecture"] == "x86_64"
