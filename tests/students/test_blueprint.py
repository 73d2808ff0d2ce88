from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from kd.batch import Place
from kd.errors import InputError
from students import Blueprint, Reclassify, Replace, Resize

FULL = Blueprint(
    "cifar_resnet8",
    num_classes=5,
    in_chans=2,
    image_size=16,
    width=0.75,
    depth=2.0,
    normalize=((0.1, 0.2), (0.3, 0.4)),
    edits=(
        Resize("layer1.0.conv1", {"out_channels": 6}, {"weight": [6, 12, 3, 3]}),
        Replace("linear", [{"type": "Linear", "in_features": 48, "out_features": 5}]),
        Reclassify(None, [4, 4], [48, 16, 32], 5),
        Reclassify(Place("net.layer3", 0, (4, 4), False), [2, 2], [48, 16, 32], 5),
        Replace("net.net.linear", []),
    ),
)

RECLASSIFY = {"kind": "Reclassify", "last": None, "size": [4, 4], "widths": [4, 4, 4], "classes": 5}


@pytest.mark.parametrize("factors", [{}, {"width": (0.5, 1, 0.75, 1.25)}, {"depth": (0.34, 1.0, 2.0), "width": 1}])
def test_comes_back_from_json(factors: dict[str, Any]) -> None:
    plan = replace(FULL, **factors)
    assert Blueprint.from_json(plan.to_json()) == plan


def test_lists_of_factors_are_tuples() -> None:
    assert replace(FULL, width=[0.5, 1.0], depth=[1.0]) == replace(FULL, width=(0.5, 1.0), depth=(1.0,))


def test_on_meta_it_has_the_same_shapes_and_no_memory() -> None:
    plan = replace(FULL, edits=())
    torch.manual_seed(0)
    sketch, real = plan.build("meta"), plan.build()
    assert all(value.is_meta for value in [*sketch.parameters(), *sketch.buffers()])
    shapes = {key: value.shape for key, value in real.state_dict().items()}
    assert {key: value.shape for key, value in sketch.state_dict().items()} == shapes
    assert real(torch.rand(2, 2, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": 7}, "student.name"),
        ({"num_classes": 0}, "student.num_classes"),
        ({"num_classes": "ten"}, "student.num_classes"),
        ({"in_chans": 0}, "data.channels"),
        ({"image_size": 3}, "data.image_size"),
        ({"image_size": 32.0}, "data.image_size"),
        ({"width": 0}, "student.width"),
        ({"width": float("nan")}, "student.width"),
        ({"width": []}, "student.width"),
        ({"width": [0.5, 0]}, "student.width"),
        ({"depth": -1}, "student.depth"),
        ({"depth": [0.5, "1"]}, "student.depth"),
        ({"depth": [[0.5], 1]}, "student.depth"),
        ({"depth": True}, "student.depth"),
        ({"normalize": [[0.5, 0.5, 0.5], [1, 1, 1]]}, "normalize"),
        ({"normalize": [[0.5], [0.0]]}, "normalize"),
        ({"normalize": [["0.5"], [1]]}, "normalize"),
        ({"normalize": 3}, "blueprint"),
        ({"edits": 3}, "blueprint"),
        ({"edits": [3]}, "blueprint.edits"),
        ({"edits": [{"kind": "Explode", "module": ""}]}, "blueprint.edits"),
        ({"edits": [{"kind": "Resize", "module": "conv1", "shapes": {"weight": [0, 3]}}]}, "blueprint.edits"),
        ({"edits": [{"kind": "Resize", "module": "conv1", "shapes": 3}]}, "blueprint.edits"),
        ({"edits": [{"kind": "Replace", "module": "conv1", "layers": [3]}]}, "blueprint.edits"),
        ({"edits": [RECLASSIFY | {"size": [0, 3]}]}, "blueprint.edits"),
        ({"edits": [RECLASSIFY | {"size": 3}]}, "blueprint.edits"),
        ({"edits": [RECLASSIFY | {"widths": [4, 4]}]}, "blueprint.edits"),
        ({"edits": [RECLASSIFY | {"classes": "5"}]}, "blueprint.edits"),
        ({"resize": 1}, "resize"),
        ({"version": 2}, "blueprint"),
        ({"colour": "red"}, "blueprint"),
    ],
)
def test_refuses_what_makes_no_model(change: dict[str, Any], field: str) -> None:
    values = json.loads(FULL.to_json()) | change
    with pytest.raises(InputError) as caught:
        Blueprint.from_json(json.dumps(values))
    assert caught.value.field == field


def test_reads_those_that_were_written_before_there_was_resize() -> None:
    values = json.loads(FULL.to_json())
    del values["resize"]
    assert Blueprint.from_json(json.dumps(values)) == FULL


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}"])
def test_refuses_text_that_is_no_blueprint(text: str) -> None:
    with pytest.raises(InputError, match="blueprint"):
        Blueprint.from_json(text)


def test_says_which_field_is_missing() -> None:
    values = json.loads(FULL.to_json())
    del values["depth"]
    with pytest.raises(InputError, match="depth: is missing"):
        Blueprint.from_json(json.dumps(values))


@pytest.mark.parametrize("name", ["tv_squeezenet1_1", "inception_v3"])
@pytest.mark.parametrize("device", ["meta", None])
def test_says_that_images_are_too_small(name: str, device: str | None) -> None:
    with pytest.raises(InputError, match=r"data\.image_size: 8: too small for"):
        Blueprint(name, 10, image_size=8).build(device)
