"""One small model of every module of timm, half as wide and half as deep."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _registry as registry
from torch import Tensor

import students
from kd import taps
from kd.errors import InputError
from students import Blueprint, zoo
from students.scaling import FAMILIES, Family

NAMES = (Path(__file__).parents[2] / "experiments/zoo.txt").read_text().split()
SOME = [
    "mobileone_s1",
    "crossvit_tiny_240",
    "cs3darknet_focus_s",
    "densenet121",
    "edgenext_xx_small",
    "hgnetv2_b0",
    "inception_v3",
    "mobilenetv3_small_050",
    "pvt_v2_b0",
    "regnetx_002",
    "starnet_s050",
    "swiftformer_xs",
]
NOT_SCALED = {
    ("selecsls60", "depth"): "its blocks are of different shapes but for two",
    ("vgg11", "depth"): "nine tenths of its parameters are in its classifier",
}
"""What does not meet the bounds, and why."""
NOT_EASED = {
    "crossvit_tiny_240": "the side of its second image is 14/15 of that of the first, and patches have to divide it",
    "efficientformer_l1": "its attention is for maps of 7 x 7",
    "halonet_h1": "its attention cuts maps into blocks of 8 x 8",
    "inception_v3": "pools that are no modules lose the border of the map",
}
"""What has no last map of 4 x 4 where images have 32 or 64 pixels a side, and why."""
NOT_LENGTHENED = {
    *("inception_resnet_v2", "inception_v3", "inception_v4", "legacy_xception", "nasnetalarge", "pnasnet5large"),
    "selecsls60",
}
"""What is shortened as built, so has no place for more blocks."""
MISNAMED = {"gemma4_vit_167m", "hrnet_w18_small_v2", "mobilenetv5_base", "mvitv2_tiny", "twins_svt_small"}
"""By timm itself: what their feature_info calls modules is none."""

RELOAD = """
import sys, torch, students
from pathlib import Path
from safetensors.torch import load_file
for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    told = load_file(folder.with_suffix(".answers"))
    with torch.no_grad():
        if torch.equal(students.load(folder)(told["x"]), told["logits"]):
            print(folder.name)
"""


@cache
def parameters(name: str, width: float = 1.0, depth: float = 1.0) -> int:
    model = Blueprint(name, 100, image_size=zoo.published(name).image_size, width=width, depth=depth).build("meta")
    return sum(parameter.numel() for parameter in model.parameters())


def meets(name: str, axis: str) -> bool:
    try:
        ratio = parameters(name, **{axis: 0.5}) / parameters(name)
    except InputError:
        return False
    return 0.15 < ratio < 0.65 if axis == "width" else ratio < 0.9


def is_eased(name: str, size: int) -> bool:
    """Whether the last map of such an image has 4 pixels a side. Asserts that feature_info is true."""
    try:
        model = Blueprint(name, 100, image_size=size).build("cpu" if name == "gemma4_vit_167m" else "meta").eval()
    except InputError:
        return False
    x = torch.zeros(1, 3, size, size, device=model.mean.device)
    maps = model.forward_intermediates(x, output_fmt="NCHW", intermediates_only=True)
    for told, each in zip(model.feature_info, maps, strict=True):
        side = size // told["reduction"]
        assert each.shape[1:] == (told["num_chs"], side, side)
        assert size % told["reduction"] == 0
        assert name in MISNAMED or model.net.get_submodule(told["module"])
    return min(maps[-1].shape[2:]) >= 4


def taught(name: str) -> tuple[students.Classifier, Tensor]:
    """Half of a net after a training step, and the images."""
    torch.manual_seed(0)
    half = {axis: 0.5 for axis in ("width", "depth") if (name, axis) not in NOT_SCALED}
    size = zoo.published(name).image_size if name in NOT_EASED else 32
    model = students.create(name, num_classes=4, image_size=size, **half)
    x = torch.rand(2, 3, size, size)
    torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1])).backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    offered = taps.ports(model.eval(), 3, (size, size))
    assert offered.classes == 4
    assert offered.stages
    return model, x


@pytest.mark.parametrize("name", SOME)
def test_some_families_scale_on_both_axes(name: str) -> None:
    assert meets(name, "width")
    assert meets(name, "depth")
    assert all(is_eased(name, size) != (name in NOT_EASED) for size in (32, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_family_scales_or_is_listed(name: str) -> None:
    for axis in ("width", "depth"):
        assert meets(name, axis) != ((name, axis) in NOT_SCALED)
    for size in (32, 64):
        assert is_eased(name, size) != (name in NOT_EASED)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("names", [SOME, pytest.param(NAMES, marks=pytest.mark.slow)], ids=["some", "all"])
def test_learns_and_comes_back_in_a_new_process(names: list[str], tmp_path: Path) -> None:
    for name in names:
        model, x = taught(name)
        students.save(model, tmp_path / name)
        with torch.no_grad():
            save_file({"x": x, "logits": model(x)}, tmp_path / f"{name}.answers")
    command = [sys.executable, "-W", "ignore", "-c", RELOAD, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == sorted(names)


def test_every_module_of_timm_has_its_model() -> None:
    of_timm = {name for name in registry._module_to_models if name != "registry"}  # which is that of the CIFAR zoo
    assert sorted(registry._model_to_module[name] for name in NAMES) == sorted(of_timm)
    assert {name for name, _ in NOT_SCALED} <= set(NAMES)
    assert {*NOT_EASED, *NOT_LENGTHENED, *MISNAMED} <= set(NAMES)


@pytest.mark.parametrize(
    ("name", "axis", "factor"),
    [
        ("eca_botnext26ts_256", "width", 0.37),
        ("efficientformerv2_s0", "depth", 1.5),
        ("efficientvit_m0", "width", 1.5),
        ("ese_vovnet19b_slim_dw", "depth", 2.0),
        ("fastvit_t8", "width", 0.75),
        ("mobileone_s1", "width", 1.3),
        ("regnetx_002", "width", 0.45),
        ("sam2_hiera_tiny", "depth", 0.4),
        ("sam2_hiera_tiny", "depth", 1.5),
        ("xception41p", "depth", 1.5),
    ],
)
def test_rounds_odd_factors_to_what_the_family_can_take(name: str, axis: str, factor: float) -> None:
    assert (parameters(name, **{axis: factor}) > parameters(name)) == (factor > 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_family_takes_odd_factors_or_is_listed(name: str) -> None:
    for axis, factors in (("width", (0.25, 0.37, 0.75, 1.3, 1.5)), ("depth", (0.34, 0.4, 0.75, 1.5, 2.0))):
        for factor in factors:
            if axis == "depth" and factor > 1 and name in NOT_LENGTHENED:
                with pytest.raises(InputError, match=f"student.depth: {factor}: blocks of .* not added"):
                    parameters(name, depth=factor)
            else:
                parameters(name, **{axis: factor})


def test_a_factor_without_effect_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "ResNet", Family(lambda arguments, width, depth: {}))
    with pytest.raises(InputError, match=r"student.width: 0.5: resnet18 cannot be scaled"):
        Blueprint("resnet18", 10, width=0.5).build("meta")


@pytest.mark.parametrize(
    ("field", "plan"),
    [
        ("data.image_size", Blueprint("inception_v3", 10, image_size=32, width=0.5, depth=0.5)),
        ("student.width", Blueprint("efficientvit_b0", 10, image_size=224, width=0.05)),
        ("student.width", Blueprint("efficientvit_b0", 10, image_size=224, width=0.05, depth=0.5)),
        ("student.depth", Blueprint("inception_v3", 10, image_size=299, depth=2.0)),
    ],
)
def test_names_what_a_net_fails_for(field: str, plan: Blueprint) -> None:
    with pytest.raises(InputError) as told:
        plan.build("meta")
    assert told.value.field == field


@pytest.mark.parametrize("name", ["regnetx_002", "mobilenetv3_small_050", "edgenext_xx_small"])
def test_factors_of_one_draw_the_weights_of_timm(name: str) -> None:
    size = zoo.published(name).image_size
    torch.manual_seed(0)
    expected = timm.create_model(name, num_classes=10).state_dict()
    torch.manual_seed(0)
    found = Blueprint(name, 10, image_size=size).build().net.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
