from __future__ import annotations

import pytest
import torch

from students import Blueprint
from students.stem import patches

TIMM = ["resnet18", "resnet18d", "mobilenetv2_050", "convnext_atto", "vit_tiny_patch16_224", "deit_tiny_patch16_224"]
CIFAR = [
    "cifar_resnet8",
    "cifar_wrn_16_1",
    "cifar_vgg8",
    "cifar_mobilenetv2_x0_5",
    "cifar_shufflenetv1",
    "cifar_shufflenetv2",
]


@pytest.mark.parametrize("size", [4, 8, 28, 32])
@pytest.mark.parametrize(("name", "least"), [(name, 4) for name in TIMM[:-1]] + [(name, 2) for name in CIFAR])
def test_the_last_map_of_a_small_image_is_no_pixel(name: str, least: int, size: int) -> None:
    model = Blueprint(name, 10, in_chans=1, image_size=size).build("meta")
    x = torch.rand(1, 1, size, size, device="meta")
    maps = model.eval().forward_intermediates(x, output_fmt="NCHW", intermediates_only=True)
    assert min(maps[-1].shape[-2:]) >= least
    told = [info["reduction"] for info in model.feature_info]
    assert told == [round(size / m.shape[-1]) for m in maps] or size == 28  # where halving rounds


@pytest.mark.parametrize("name", [*TIMM, *CIFAR])
def test_trains_on_grey_images_of_eight_pixels(name: str) -> None:
    model = Blueprint(name, 10, in_chans=1, image_size=8, width=0.5).build()
    model(torch.rand(2, 1, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_eases_no_more_than_it_must() -> None:
    def reductions(name: str, size: int) -> list[int]:
        return [info["reduction"] for info in Blueprint(name, 10, image_size=size).build("meta").feature_info]

    assert reductions("resnet18", 224) == [2, 4, 8, 16, 32]
    assert reductions("resnet18", 65) == [2, 4, 8, 16, 32]
    assert reductions("resnet18", 64) == [1, 2, 4, 8, 16]
    assert reductions("resnet18", 32) == [1, 1, 2, 4, 8]
    assert reductions("convnext_atto", 64) == [2, 4, 8, 16]
    assert reductions("convnext_atto", 32) == [1, 2, 4, 8]
    assert reductions("levit_128s", 32) == [2, 4, 8]  # bound to its image size, as the next ones are
    assert reductions("swin_tiny_patch4_window7_224", 32) == [1, 2, 4, 8]
    assert reductions("vit_tiny_r_s16_p8_224", 64) == [16] * 12
    assert reductions("cifar_vgg8", 32) == [1, 2, 4, 8, 8]
    assert reductions("cifar_vgg8", 8) == [1, 1, 2, 4, 4]


def test_tokens_behind_eased_convolutions_are_maps_of_the_new_size() -> None:
    model = Blueprint("vit_tiny_r_s16_p8_224", 10, image_size=64).build("meta").eval()
    maps = model.forward_intermediates(torch.rand(1, 3, 64, 64, device="meta"), intermediates_only=True)
    assert {tuple(each.shape) for each in maps} == {(1, 192, 4, 4)}


def test_keeps_every_weight_that_it_can() -> None:
    torch.manual_seed(0)
    large = Blueprint("convnext_atto", 10, image_size=128).build().net.state_dict()
    torch.manual_seed(0)
    small = Blueprint("convnext_atto", 10, image_size=32).build().net.state_dict()
    changed = {key for key in large if not torch.equal(large[key], small[key])}
    assert changed == {"stem.0.weight"}
    assert torch.equal(small["stem.0.weight"], large["stem.0.weight"][..., :3, :3])


@pytest.mark.parametrize(
    ("size", "patch"),
    [(4, 1), (8, 1), (12, 2), (16, 2), (28, 4), (31, 1), (32, 4), (48, 6), (64, 8), (65, 16), (224, 16)],
)
def test_cuts_small_images_into_about_eight_by_eight(size: int, patch: int) -> None:
    assert patches(16, size) == patch
