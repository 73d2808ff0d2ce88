"""Distillation losses, one file a method: the pure function and the `Loss` around it."""

from kd.losses.feature.fitnet import FitNet
from kd.losses.relation.rkd import RKD
from kd.losses.response.cross_entropy import CrossEntropy
from kd.losses.response.kd import KD

__all__ = ["KD", "RKD", "CrossEntropy", "FitNet"]
