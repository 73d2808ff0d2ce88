"""One small net of each kind of coupling that channels have, pruned to half and proved as `make sweep-prune` does."""

from __future__ import annotations

import pytest

from experiments.prune_zoo import NAMES, OURS, examine
from students import zoo

SOME = {
    "resnet18": 32,  # residual sums
    "densenet121": 32,  # concatenations
    "cifar_shufflenetv2": 32,  # channel shuffles
    "mobilenetv3_small_050": 32,  # depthwise convolutions and squeeze-excite
    "regnety_002": 32,  # grouped convolutions
    "nf_regnet_b0": 32,  # weight-standardised convolutions
    "convnext_atto": 32,  # LayerScale and LayerNorm
    "vit_tiny_patch16_224": 32,  # heads in one qkv
    "eva02_tiny_patch14_224": 56,  # a gated linear unit, and a rotary position
    "swin_tiny_patch4_window7_224": 32,  # windows with relative positions
    "mixer_s32_224": 64,  # layers that mix tokens
    "levit_128s": 64,  # keys narrower than values
    "xcit_nano_12_p8_224": 32,  # attention between channels
}


@pytest.mark.parametrize("name", SOME)
def test_a_family_at_half_its_cost_answers_as_with_zeros(name: str) -> None:
    row = examine(name, OURS, SOME[name], deployed=False)
    assert row["failed"] == {}
    assert row["error"] <= 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_every_family_at_half_its_cost_answers_as_with_zeros(name: str) -> None:
    row = examine(name, OURS, zoo.published(name).image_size, deployed=False)
    assert row["failed"] == {}
    assert row["error"] <= 1e-4
