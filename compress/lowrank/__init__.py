"""Products of thinner layers in the place of layers."""

from compress.lowrank.lowrank import LowRank

__all__ = ["LowRank"]
