"""Distillation losses, one file a method: the pure function and the `Loss` around it."""

from kd.losses.feature.activation_boundary import AB
from kd.losses.feature.attention_transfer import AT
from kd.losses.feature.cat_kd import CATKD
from kd.losses.feature.factor_transfer import FT, Paraphrase
from kd.losses.feature.fitnet import FitNet
from kd.losses.feature.fsp import FSP
from kd.losses.feature.mgd import MGD
from kd.losses.feature.nst import NST
from kd.losses.feature.ofd import OFD
from kd.losses.feature.review_kd import ReviewKD
from kd.losses.feature.sem_ckd import SemCKD
from kd.losses.feature.sim_kd import SimKD
from kd.losses.feature.vid import VID
from kd.losses.relation.correlation_congruence import CC
from kd.losses.relation.crd import CRD
from kd.losses.relation.inter_channel_correlation import ICKD
from kd.losses.relation.pkt import PKT
from kd.losses.relation.rkd import RKD
from kd.losses.relation.similarity_preserving import SP
from kd.losses.response.cross_entropy import CrossEntropy
from kd.losses.response.ctkd import CTKD
from kd.losses.response.dist import DIST
from kd.losses.response.dkd import DKD
from kd.losses.response.kd import KD
from kd.losses.response.mlkd import MLKD
from kd.losses.response.nkd import NKD
from kd.losses.response.ofa import OFA
from kd.losses.response.standardize import Standardized
from kd.losses.slimming import Slimming

__all__ = [
    "AB",
    "AT",
    "CATKD",
    "CC",
    "CRD",
    "CTKD",
    "DIST",
    "DKD",
    "FSP",
    "FT",
    "ICKD",
    "KD",
    "MGD",
    "MLKD",
    "NKD",
    "NST",
    "OFA",
    "OFD",
    "PKT",
    "RKD",
    "SP",
    "VID",
    "CrossEntropy",
    "FitNet",
    "Paraphrase",
    "ReviewKD",
    "SemCKD",
    "SimKD",
    "Slimming",
    "Standardized",
]
