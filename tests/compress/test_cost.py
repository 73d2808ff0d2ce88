from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import nn

import students
from compress import Cost, LowRank, Prune, measure
from compress.cost import macs, sketch
from compress.export import convert
from compress.onnx_model import write
from kd.errors import InputError
from students import zoo


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)  # 8 * 27 + 8 parameters
        self.norm = nn.BatchNorm2d(8)  # 16
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False)  # 72
        self.fc = nn.Linear(8, 5)  # 45

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.depthwise(self.norm(self.conv(x)).relu()).mean((2, 3)))


MACS = 8 * 27 * 64 + 8 * 9 * 16 + 8 * 5  # on 8 x 8 images


def test_cost_of_a_module_by_hand():
    model = Plain()
    nn.init.ones_(model.conv.weight)
    nn.init.zeros_(model.conv.bias)
    nn.init.ones_(model.fc.bias)
    with torch.no_grad():
        model.depthwise.weight[0].zero_()
    cost = measure(model, (3, 8, 8))

    assert cost.params == 224 + 16 + 72 + 45
    assert cost.nonzero == cost.params - 8 - 8 - 9  # the convolution's and the norm's bias, a depthwise kernel
    assert cost.macs == MACS
    assert 4 * cost.params < cost.file_bytes < 4 * cost.params + 2000


def test_macs_on_the_meta_device_and_without_a_trace():
    model = Plain().to("meta").train()
    assert macs(model, (3, 8, 8)) == MACS
    assert model.training
    assert model.norm.training
    assert torch.backends.mha.get_fastpath_enabled()


NAMES = (Path(__file__).parents[2] / "experiments/zoo.txt").read_text().split()


def assert_sketched(plan):
    built = plan.build()
    params = sum(parameter.numel() for parameter in built.parameters())
    assert sketch(plan) == (params, macs(built, (plan.in_chans, plan.image_size, plan.image_size)))


@pytest.mark.parametrize(
    "plan",
    [
        students.Blueprint("cifar_resnet20", 10, 1, 8, width=0.5, depth=0.67),
        students.Blueprint("mobilenetv2_050", 10, depth=0.34),  # of an eased stem
        students.Blueprint("vit_tiny_patch16_224", 10, width=0.5, depth=0.25),
        students.Blueprint("tv_mnasnet0_5", 10),
        students.Blueprint("tv_squeezenet1_1", 10, width=0.5),
        students.Blueprint("inception_v3", 10, image_size=128, width=0.5, depth=0.5),  # reshaped
        students.Blueprint("crossvit_tiny_240", 10, image_size=240, depth=0.5),
        *(students.Blueprint(name, 10, image_size=64) for name in ("mobileone_s1", "densenet121", "pvt_v2_b0")),
        *(students.Blueprint(name, 10, image_size=64, width=0.5) for name in ("hgnetv2_b0", "edgenext_xx_small")),
        *(students.Blueprint(name, 10, image_size=64, depth=0.5) for name in ("regnetx_002", "swiftformer_xs")),
    ],
    ids=lambda plan: plan.name,
)
def test_a_blueprint_costs_what_the_built_model_costs(plan):
    assert_sketched(plan)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # two of them take images of 546 and 768 pixels
@pytest.mark.parametrize("name", NAMES)
def test_every_family_costs_what_is_sketched(name):
    assert_sketched(students.Blueprint(name, 100, image_size=zoo.published(name).image_size))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "sequencer2d_s"])
def test_a_sketch_takes_no_second(name):
    plan = students.Blueprint(name, 100, image_size=zoo.published(name).image_size)

    def seconds():
        start = time.process_time()
        sketch(plan)
        return time.process_time() - start

    assert any(seconds() < 1 for _ in range(10))  # a core that is shared is slow for a while


def test_a_sketch_of_what_cannot_be_built_says_why():
    with pytest.raises(InputError, match=r"data\.image_size: 8: too small for inception_v3"):
        sketch(students.Blueprint("inception_v3", 10, image_size=8))


def test_a_pruned_and_factorised_blueprint_on_meta_costs_what_the_model_costs(trained, context):
    small, _ = LowRank(0.8)(Prune(0.7)(trained, context())[0], context())
    assert macs(small.blueprint.build("meta"), (1, 8, 8)) == macs(small, (1, 8, 8)) < 0.7 * macs(trained, (1, 8, 8))


def test_a_parameter_that_is_handed_to_a_module_is_no_obstacle():
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.fc = nn.Parameter(torch.rand(1, 12)), nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.token.expand(len(x), -1)) + self.fc(x.flatten(1))

    assert macs(Token(), (3, 2, 2)) == 2 * 12 * 5


def test_attention_is_counted_in_every_guise():
    """One layer: 4 projections and 2 products among 16 tokens of width 8, and the feed-forward of width 12."""
    expected = 4 * 16 * 8 * 8 + 2 * 16 * 16 * 8 + 2 * 16 * 8 * 12
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    tokens = nn.Sequential(nn.Flatten(2), layer)  # (1, 16, 2, 4) images as 16 tokens of 8
    assert macs(tokens.eval(), (16, 2, 4)) == expected


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_recurrence_is_counted(device):
    """Both ways, four gates of width 6 read 5 steps of width 8 and the state before."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 6, num_layers=2, batch_first=True, bidirectional=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x[:, 0])[0]

    assert macs(Rows().to(device), (1, 5, 8)) == 2 * 5 * 4 * 6 * (8 + 6 + 12 + 6)


def test_a_classifier_weighs_what_its_files_weigh(trained, tmp_path):
    students.save(trained, tmp_path)
    assert measure(trained, (1, 8, 8)).file_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_cost_of_an_onnx_file_by_hand(tmp_path):
    model = Plain().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    exported = write(convert(model, torch.rand(1, 3, 8, 8), 18), tmp_path / "model.onnx")
    norm = 16  # folded away
    assert exported.macs == MACS
    assert measure(exported, (3, 8, 8)) == Cost(
        params=measure(model, (3, 8, 8)).params - norm,
        nonzero=measure(model, (3, 8, 8)).params - norm,
        macs=MACS,
        file_bytes=exported.path.stat().st_size,
    )


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("cifar_resnet8", 32, {}),
        ("mobilenetv2_050", 32, {"depth": 0.34}),  # depthwise
        ("vit_tiny_patch16_224", 32, {"depth": 0.17}),  # fused attention
    ],
)
def test_torch_and_onnx_agree_on_macs(name, size, options, tmp_path):
    model = students.create(name, num_classes=10, image_size=size, **options).eval()
    exported = write(convert(model, torch.rand(1, 3, size, size), 18), tmp_path / "model.onnx")
    assert exported.macs == macs(model, (3, size, size)) > 0
