from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model, get_model_weights

import students
from kd.errors import InputError

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


@pytest.mark.parametrize("name", [name for name in LIGHT if not name.startswith(("tv_resnet", "tv_efficient"))])
def test_the_light_ones_scale(name: str) -> None:
    def size(width: float, depth: float = 1) -> int:
        model = students.Blueprint(name, num_classes=100, image_size=64, width=width, depth=depth).build("meta")
        return sum(parameter.numel() for parameter in model.parameters())

    sizes = [size(width) for width in (0.01, 0.25, 0.5, 1, 1.5)]
    assert sizes == sorted(set(sizes))
    assert 0.15 < sizes[2] / sizes[3] < 0.65
    if "squeeze" in name or "mnas" in name:
        with pytest.raises(InputError, match=f"student.depth: 0.5: {name} cannot be scaled so: no blocks of it can"):
            size(1, 0.5)
    else:
        assert size(1, 0.01) <= size(1, 0.5) < 0.95 * sizes[3]
        with pytest.raises(InputError, match=r"student.depth: 2: blocks of .* can be taken out, not added"):
            size(1, 2)


def test_factors_of_one_are_torchvisions_own() -> None:
    torch.manual_seed(0)
    expected = get_model("shufflenet_v2_x0_5", num_classes=4).state_dict()
    torch.manual_seed(0)
    found = students.Blueprint("tv_shufflenet_v2_x0_5", 4, width=1.0).build().net.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
