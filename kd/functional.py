"""One pure, stateless, differentiable function a method; the maths lives beside its `Loss` or `Regime`.

Functions return a scalar without the method's outer weight and without cross-entropy, unless they say otherwise. Half
inputs are computed in float32, float64 in float64. No gradient flows into an argument called `teacher`. Wrong shapes
raise ValueError.
"""

from kd.losses.feature.activation_boundary import activation_boundary
from kd.losses.feature.attention_transfer import attention_transfer
from kd.losses.feature.cat_kd import class_attention
from kd.losses.feature.factor_transfer import factor_transfer
from kd.losses.feature.fitnet import hint
from kd.losses.feature.fsp import fsp
from kd.losses.feature.nst import nst
from kd.losses.feature.ofd import ofd, ofd_margin
from kd.losses.feature.review_kd import hcl
from kd.losses.feature.vid import vid
from kd.losses.relation.correlation_congruence import correlation_congruence
from kd.losses.relation.inter_channel_correlation import inter_channel_correlation
from kd.losses.relation.pkt import pkt
from kd.losses.relation.rkd import rkd_angle, rkd_distance
from kd.losses.relation.similarity_preserving import similarity_preserving
from kd.losses.response.dist import dist
from kd.losses.response.dkd import dkd
from kd.losses.response.kd import kd
from kd.losses.response.mlkd import mlkd
from kd.losses.response.nkd import nkd
from kd.losses.response.ofa import ofa
from kd.losses.response.standardize import standardize
from kd.regimes.online.dml import dml
from kd.regimes.online.kdcl import kdcl_ensemble
from kd.regimes.self_distillation.ps_kd import ps_kd_target
from kd.regimes.self_distillation.tf_kd import tf_kd_teacher

__all__ = [
    "activation_boundary",
    "attention_transfer",
    "class_attention",
    "correlation_congruence",
    "dist",
    "dkd",
    "dml",
    "factor_transfer",
    "fsp",
    "hcl",
    "hint",
    "inter_channel_correlation",
    "kd",
    "kdcl_ensemble",
    "mlkd",
    "nkd",
    "nst",
    "ofa",
    "ofd",
    "ofd_margin",
    "pkt",
    "ps_kd_target",
    "rkd_angle",
    "rkd_distance",
    "similarity_preserving",
    "standardize",
    "tf_kd_teacher",
    "vid",
]
