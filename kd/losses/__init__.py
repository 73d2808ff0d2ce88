"""Distillation losses, one file a method: the pure function and the `Loss` around it."""

from kd.losses.feature.activation_boundary import AB
from kd.losses.feature.attention_transfer import AT
from kd.losses.feature.factor_transfer import FT, Paraphrase
from kd.losses.feature.fitnet import FitNet
from kd.losses.feature.fsp import FSP
from kd.losses.feature.nst import NST
from kd.losses.feature.ofd import OFD
from kd.losses.feature.vid import VID
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

__all__ = [
    "AB",
    "AT",
    "CTKD",
    "DIST",
    "DKD",
    "FSP",
    "FT",
    "KD",
    "MLKD",
    "NKD",
    "NST",
    "OFA",
    "OFD",
    "RKD",
    "VID",
    "CrossEntropy",
    "FitNet",
    "Paraphrase",
    "Standardized",
]
