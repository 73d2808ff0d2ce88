"""A factor a stage: entry i of what is listed by stages is that of the net scaled by factor i."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import students
from kd.errors import InputError
from students import Blueprint, zoo
from students.cifar import ZOO

FAMILIES = {
    "convnext_atto": (4, 4),
    "crossvit_tiny_240": (2, 3),
    "cs3darknet_focus_s": (4, 4),
    "densenet121": (1, 4),
    "edgenext_xx_small": (4, 4),
    "mobileone_s1": (1, 4),
    "mobilenetv3_small_050": (6, 6),
    "pvt_v2_b0": (4, 4),
    "repvgg_a0": (4, 4),
    "resnet18": (4, 4),
    "starnet_s100": (1, 4),
    "swiftformer_xs": (4, 4),
    "volo_d1_224": (1, 4),
}
CIFAR = {
    "vgg": (5, 5),
    "mobilenetv2": (9, 7),
    "shufflenetv1": (1, 3),
    "shufflenetv2": (5, 3),
    "htnn": (1, 2),
    "deepnn": (1, 2),
}  # the rest: (4, 3)
WHOLE = ["vit_tiny_patch16_224", "regnetx_002", "inception_v3", "hgnetv2_b0", "rexnet_100", "vgg11", "tv_resnet18"]
STAGED = {**FAMILIES, **{name: next((n for part, n in CIFAR.items() if part in name), (4, 3)) for name in ZOO}}
SAME_RULE = {name for name in ZOO if name.startswith("cifar_resnet")} - {"cifar_resnet20", "cifar_resnet20_a"}


def axes(names: Iterable[str]) -> list[tuple[str, str, int]]:
    counts = [(name, axis, STAGED[name][i]) for name in names for i, axis in enumerate(("width", "depth"))]
    return [(name, axis, count) for name, axis, count in counts if count > 1]


@cache
def build(name: str, **factors: Any) -> Any:
    return Blueprint(name, 10, image_size=zoo.published(name).image_size, **factors).build("meta").net


def shapes(net: torch.nn.Module) -> list[tuple[str, torch.Size]]:
    return [(key, value.shape) for key, value in net.state_dict().items()]


def size(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_tells_how_many_factors_a_net_takes() -> None:
    assert {name: zoo.stages(name) for name in STAGED} == STAGED
    assert {zoo.stages(name) for name in WHOLE} == {(1, 1)}
    with pytest.raises(InputError, match="did you mean resnet18"):
        zoo.stages("restnet18")


@pytest.mark.parametrize(("name", "axis", "count"), axes(STAGED))
def test_equal_factors_make_the_net_of_the_one(name: str, axis: str, count: int) -> None:
    other = {"width": "depth", "depth": "width"}[axis]
    for factors in ({axis: 0.37}, {axis: 0.5, other: 0.75}):
        listed = factors | {axis: (factors[axis],) * count}
        assert shapes(build(name, **listed)) == shapes(build(name, **factors))


@pytest.mark.parametrize(("name", "axis", "count"), axes(sorted(STAGED.keys() - SAME_RULE)))
def test_every_factor_has_a_stage(name: str, axis: str, count: int) -> None:
    """Any one stage can be scaled alone, and the net is between that as it is and that scaled as a whole."""
    factor = 0.5 if axis == "width" else 2.0  # a stage of a single block keeps it
    base, whole = size(build(name)), size(build(name, **{axis: factor}))
    for stage in range(count):
        factors = tuple(factor if i == stage else 1.0 for i in range(count))
        assert min(base, whole) < size(build(name, **{axis: factors})) < max(base, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", (Path(__file__).parents[2] / "experiments/zoo.txt").read_text().split())
def test_every_family_takes_a_factor_a_stage(name: str) -> None:
    width, depth = zoo.stages(name)
    for first in range(2):
        factors = {
            "width": tuple(0.5 + 0.5 * ((i + first) % 2) for i in range(width)) if width > 1 else 1.0,
            "depth": tuple(0.5 + 0.5 * ((i + first) % 2) for i in range(depth)) if depth > 1 else 1.0,
        }
        assert size(build(name, **factors)) <= size(build(name))


def test_each_stage_follows_its_own_factor() -> None:
    net = build("resnet18", width=(0.5, 1.0, 0.25, 2.0), depth=(2.0, 0.5, 1.0, 1.5))
    assert [info["num_chs"] for info in net.feature_info] == [64, 32, 128, 64, 1024]
    assert [len(stage) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)] == [4, 1, 2, 3]
    net = build("cifar_resnet20", width=(1.0, 0.5, 0.75, 1.5), depth=(0.34, 1.0, 0.67))
    assert [net.conv1.out_channels] + [info["num_chs"] for info in net.feature_info] == [16, 8, 24, 96]
    assert [len(stage) for stage in net.stages()] == [1, 3, 2]


def test_the_head_goes_with_the_last_factor() -> None:
    first, last = (2.0, *(1.0,) * 5), (*(1.0,) * 5, 2.0)
    base, wide = (build("mobilenetv3_small_050", width=width) for width in (1.0, 2.0))
    ends = [(net.conv_stem.out_channels, net.num_features) for net in (base, wide)]
    (stem, head), (wide_stem, wide_head) = ends
    assert (stem, head) != (wide_stem, wide_head)
    for width, expected in ((first, (wide_stem, head)), (last, (stem, wide_head))):
        net = build("mobilenetv3_small_050", width=width)
        assert (net.conv_stem.out_channels, net.num_features) == expected


@pytest.mark.parametrize(
    ("name", "factors", "told"),
    [
        ("resnet18", {"width": (0.5, 1.0)}, r"student.width: \(0.5, 1.0\): resnet18 takes one number, or 4 of them"),
        ("cifar_resnet20", {"depth": (1.0,) * 4}, "student.depth: .* takes one number, or 3 of them, one a stage"),
        ("vit_tiny_patch16_224", {"width": (0.5,)}, "student.width: .* takes one number: its stages share it"),
        ("cifar_shufflenetv1", {"width": (0.5,) * 4}, "student.width: .* takes one number"),
        ("inception_v3", {"depth": (0.5, 1.0)}, "student.depth: .* takes one number"),
        ("tv_resnet18", {"depth": (0.5, 1.0)}, "student.depth: .* takes one number"),
    ],
)
def test_refuses_another_number_of_factors(name: str, factors: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Blueprint(name, 10, image_size=224, **factors).build("meta")


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "cifar_wrn_16_1"])
def test_it_learns_and_reloads_exactly(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    width, depth = ([0.25 + 0.25 * (i % 2) for i in range(count)] for count in zoo.stages(name))
    model = students.create(name, num_classes=4, image_size=32, width=width, depth=depth)  # type: ignore[arg-type]
    x = torch.rand(2, 3, 32, 32)
    torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    students.save(model.eval(), tmp_path)
    again = students.load(tmp_path)
    assert again.blueprint == model.blueprint
    assert again.blueprint.width == tuple(width)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
