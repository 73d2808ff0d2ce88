"""Distillation losses, one file a method: the pure function and the `Loss` around it."""

from kd.losses.feature.fitnet import FitNet
from kd.losses.relation.rkd import RKD
from kd.losses.response.cross_entropy import CrossEntropy
from kd.losses.response.ctkd import CTKD
from kd.losses.response.dist import DIST
from kd.losses.response.dkd import DKD
from kd.losses.response.kd import KD
from kd.losses.response.mlkd import MLKD
from kd.losses.response.nkd import NKD
from kd.losses.response.ofa import OFA
from kd.losses.response.standardize import Standardized

__all__ = ["CTKD", "DIST", "DKD", "KD", "MLKD", "NKD", "OFA", "RKD", "CrossEntropy", "FitNet", "Standardized"]
