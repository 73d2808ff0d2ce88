from __future__ import annotations

from functools import cache

import pytest
import timm
import torch

from kd.errors import InputError
from students import Blueprint
from students.cifar import ZOO
from students.scaling import scaled

SCALED = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet18d",
    "mobilenetv2_050",
    "mobilenetv2_100",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "cifar_resnet20",
    "cifar_resnet20_a",
    "cifar_wrn_16_2",
    "cifar_vgg13",
    "cifar_mobilenetv2_x0_5",
    "cifar_shufflenetv1",
    "cifar_shufflenetv2",
]
SAME_RULE = {"resnet34", "mobilenetv2_050", "deit_tiny_patch16_224", "cifar_resnet20_a"}  # as another of them


@cache
def parameters(name: str, width: float = 1.0, depth: float = 1.0) -> int:
    model = Blueprint(name, 100, width=width, depth=depth).build("meta")
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", SCALED)
def test_half_the_width_and_half_the_depth_make_it_smaller(name: str) -> None:
    base = parameters(name)
    assert 0.15 < parameters(name, width=0.5) / base < 0.65
    assert parameters(name, depth=0.5) / base < 0.9


@pytest.mark.parametrize("name", [name for name in SCALED if name not in SAME_RULE])
def test_takes_any_factor_and_keeps_every_stage(name: str) -> None:
    sizes, maps = [], set()
    for width, depth in ((0.01, 0.01), (0.37, 0.61), (1.0, 1.0), (1.3, 1.7)):
        model = Blueprint(name, 100, width=width, depth=depth).build("meta")  # which runs it
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        maps.add(len(model.feature_info))
    assert sizes == sorted(set(sizes))
    assert len(maps) == 1 or name.startswith(("vit", "deit"))  # whose maps are blocks


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenetv2_100",
        "convnext_atto",
        "vit_tiny_patch16_224",
        "cifar_resnet20",
        "cifar_wrn_16_2",
        "cifar_shufflenetv2",
    ],
)
def test_half_as_wide_and_deep_it_learns_from_small_images(name: str) -> None:
    torch.manual_seed(0)
    model = Blueprint(name, 4, width=0.5, depth=0.5).build()
    x, labels = torch.rand(8, 3, 32, 32), torch.tensor([0, 1, 2, 3] * 2)
    before = torch.nn.functional.cross_entropy(model(x), labels)
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert torch.nn.functional.cross_entropy(model(x), labels) < before  # a small step along the gradient


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "convnext_atto", "vit_tiny_patch16_224"])
def test_factors_of_one_build_timms_own_net(name: str) -> None:
    with torch.device("meta"):
        expected = timm.create_model(name).state_dict()
    found = Blueprint(name, 1000, image_size=224).build("meta").net.state_dict()
    assert [(key, value.shape) for key, value in found.items()] == [(k, v.shape) for k, v in expected.items()]


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_wrn_16_2", "cifar_shufflenetv1", "cifar_shufflenetv2"])
def test_factors_of_one_build_the_papers_net(name: str) -> None:
    net, arguments = ZOO[name]
    with torch.device("meta"):
        expected = net(**arguments).state_dict()
    found = Blueprint(name, 10, width=1, depth=1.0).build("meta").net.state_dict()
    assert [(key, value.shape) for key, value in found.items()] == [(k, v.shape) for k, v in expected.items()]


def test_the_width_of_cifar_nets_has_resolution() -> None:
    def stem(width: float) -> int:
        return Blueprint("cifar_resnet20", 10, width=width).build("meta").net.conv1.out_channels

    assert stem(0.25) == 4
    assert [stem(width) for width in (0.01, 0.5, 0.63, 0.75, 0.88, 1.0, 1.5)] == [2, 8, 10, 12, 14, 16, 24]


def test_width_and_depth_grow_monotonically() -> None:
    steps = [0.2 + 0.1 * i for i in range(11)]
    widths = [parameters("cifar_resnet20", width=step) for step in steps]
    depths = [parameters("cifar_resnet56", depth=step) for step in steps]
    assert widths == sorted(widths)
    assert depths == sorted(depths)
    assert len(set(widths)) == 11
    assert len(set(depths)) > 8


def test_the_heads_of_a_transformer_divide_its_width() -> None:
    for width in (0.1, 0.4, 0.7, 0.9, 1.4):
        net = Blueprint("vit_small_patch16_224", 10, width=width).build("meta").net
        assert net.embed_dim % net.blocks[0].attn.num_heads == 0
        assert net.embed_dim % 8 == 0


def test_rounds_to_the_nearest_multiple_and_never_below_one() -> None:
    assert [scaled(64, factor, 8) for factor in (0.001, 0.5, 0.55, 0.57, 1.0, 2.0)] == [8, 32, 32, 40, 64, 128]
    assert [scaled(3, factor) for factor in (0.1, 0.5, 0.84, 1.2)] == [1, 2, 3, 4]
    assert scaled(30, 1.0, 8) == 30


@pytest.mark.parametrize(("field", "factor"), [("width", 0.5), ("depth", 2.0)])
def test_says_which_nets_cannot_be_scaled(field: str, factor: float) -> None:
    with pytest.raises(InputError, match=f"student.{field}: {factor}: tv_resnet18 cannot be scaled"):
        Blueprint("tv_resnet18", 10, image_size=64, **{field: factor}).build("meta")


def test_leaves_timm_as_it_was() -> None:
    before = dict(vars(timm.models.resnet))
    Blueprint("resnet18", 10, width=0.5).build("meta")
    assert vars(timm.models.resnet) == before
    assert timm.create_model("resnet18").layer1[0].conv1.out_channels == 64
