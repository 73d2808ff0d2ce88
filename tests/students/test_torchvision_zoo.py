from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model_weights

import students

LIGHT = [
    "tv_mobilenet_v2",
    "tv_mobilenet_v3_small",
    "tv_mobilenet_v3_large",
    "tv_shufflenet_v2_x0_5",
    "tv_shufflenet_v2_x1_0",
    "tv_squeezenet1_0",
    "tv_squeezenet1_1",
    "tv_mnasnet0_5",
    "tv_mnasnet1_0",
    "tv_efficientnet_b0",
    "tv_resnet18",
]


@pytest.mark.parametrize("name", LIGHT)
def test_trains_with_any_classes_and_channels(name: str) -> None:
    model = students.create(name, num_classes=6, in_chans=2, image_size=32)
    logits = model(torch.rand(2, 2, 32, 32))
    assert logits.shape == (2, 6)
    logits.sum().backward()


@pytest.mark.parametrize("name", LIGHT)
def test_has_the_published_number_of_parameters(name: str) -> None:
    model = students.Blueprint(name, num_classes=1000, image_size=64).build("meta")
    published = get_model_weights(name.removeprefix("tv_")).DEFAULT.meta["num_params"]
    assert sum(parameter.numel() for parameter in model.parameters()) == published
