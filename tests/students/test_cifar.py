from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import students
from students import Blueprint
from students.cifar import ZOO
from students.cifar.shufflenet import ShuffleUnitV1, shuffle

SHARED = Path(__file__).parents[2].parent / "shared"
TEACHER, TEST_SET = SHARED / "teachers/cifar10_resnet56.safetensors", SHARED / "data/cifar10/test.parquet"
PUBLISHED = {  # at 100 classes: Tian et al. 2020, and the tables that followed it
    "cifar_resnet20": 278_324,
    "cifar_resnet56": 861_620,
    "cifar_resnet110": 1_736_564,
    "cifar_resnet8x4": 1_233_540,
    "cifar_resnet32x4": 7_433_860,
    "cifar_wrn_16_2": 703_284,
    "cifar_wrn_40_1": 569_780,
    "cifar_wrn_40_2": 2_255_156,
    "cifar_vgg8": 3_965_028,
    "cifar_vgg13": 9_462_180,
    "cifar_mobilenetv2_x0_5": 812_836,
    "cifar_shufflenetv1": 949_258,
    "cifar_shufflenetv2": 1_355_528,
}
BLOCKS = 97_216  # parameters of one block in each of the three stages: (110 - 56) / 6 = 9 of them are 874,944
DERIVED = {
    "cifar_resnet8": 278_324 - 2 * BLOCKS,
    "cifar_resnet14": 278_324 - BLOCKS,
    "cifar_resnet32": 278_324 + 2 * BLOCKS,
    "cifar_resnet44": 278_324 + 4 * BLOCKS,
    "cifar_wrn_16_1": 569_780 - 4 * BLOCKS,
}


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(("name", "parameters"), [*PUBLISHED.items(), *DERIVED.items()])
def test_has_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert count(Blueprint(name, 100).build("meta")) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("cifar_resnet56_a", 853_018), ("cifar_resnet56", 855_770)])
def test_the_shortcuts_of_resnet_differ_in_their_parameters(name: str, parameters: int) -> None:
    assert count(Blueprint(name, 10).build("meta")) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("cifar_deepnn", 1_186_986), ("cifar_lightnn", 267_738)])
def test_the_nets_of_the_tutorial_have_the_parameters_that_it_prints(name: str, parameters: int) -> None:
    assert count(Blueprint(name, 10).build("meta")) == parameters


@pytest.mark.parametrize("name", ZOO)
def test_speaks_timms_protocol(name: str) -> None:
    net = timm.create_model(name, num_classes=7, in_chans=2).eval()
    x = torch.rand(2, 2, 32, 32)
    with torch.no_grad():
        logits = net(x)
        features, maps = net.forward_intermediates(x)
        embedding = net.forward_head(features, pre_logits=True)
        last = net.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(net.forward_head(net.forward_features(x)), logits)
    torch.testing.assert_close(net.get_classifier()(embedding), logits)
    assert embedding.shape == (2, net.num_features)
    assert [(info["num_chs"], 32 // info["reduction"]) for info in net.feature_info] == [m.shape[1:3] for m in maps]
    assert all(net.get_submodule(info["module"]) for info in net.feature_info)
    torch.testing.assert_close(last[0], maps[1])
    assert net.default_cfg["input_size"] == (3, 32, 32)
    net.reset_classifier(0)
    torch.testing.assert_close(net(x), embedding)
    net.reset_classifier(4)
    assert (net.num_classes, net(x).shape) == (4, (2, 4))


def test_hands_out_the_maps_asked_for() -> None:
    net = timm.create_model("cifar_resnet8").eval()
    x = torch.rand(2, 3, 8, 8)
    features, maps = net.forward_intermediates(x)
    assert len(maps) == 3
    for indices, expected in ((1, [2]), (2, [1, 2]), ([0], [0]), ([0, 2], [0, 2]), ([-1], [2]), ([-3], [0])):
        found = net.forward_intermediates(x, indices=indices, intermediates_only=True)
        torch.testing.assert_close(found, [maps[index] for index in expected])
        again, _ = net.forward_intermediates(x, indices=indices)
        torch.testing.assert_close(again, features)
    with pytest.raises(AssertionError):
        net.forward_intermediates(x, indices=[3])
    with pytest.raises(ValueError, match="only NCHW"):
        net.forward_intermediates(x, output_fmt="NLC")


def test_stopping_early_runs_no_stage_beyond_the_last_one_asked_for() -> None:
    net = timm.create_model("cifar_resnet8").eval()
    ran: list[int] = []
    for index, stage in enumerate(net.stages()):
        stage.register_forward_hook(lambda *_, index=index: ran.append(index))
    x = torch.rand(1, 3, 8, 8)
    unfinished, maps = net.forward_intermediates(x, indices=[1], stop_early=True)
    assert ran == [0, 1]
    torch.testing.assert_close(unfinished, maps[0])
    net.forward_intermediates(x, indices=[1])
    assert ran == [0, 1, 0, 1, 2]


def test_a_wide_resnet_hands_out_its_last_map_normalised_where_asked() -> None:
    net = timm.create_model("cifar_wrn_16_1").eval()
    x = torch.rand(1, 3, 8, 8)
    features, raw = net.forward_intermediates(x)
    _, normed = net.forward_intermediates(x, norm=True)
    torch.testing.assert_close(normed[-1], features)
    torch.testing.assert_close(net.norm(raw[-1]), features)
    torch.testing.assert_close(normed[-2], raw[-2])


@pytest.mark.parametrize("stage", ["layer2", "layer3"])
def test_option_a_pads_with_zero_channels_and_takes_every_second_pixel(stage: str) -> None:
    block = timm.create_model("cifar_resnet8_a").get_submodule(stage)[0]
    assert count(block.shortcut) == 0
    inputs, outputs = block.conv1.in_channels, block.conv1.out_channels
    x = torch.randn(2, inputs, 8, 8)
    expected = torch.zeros(2, outputs, 4, 4)
    for image in range(2):
        for channel in range(inputs):
            for row in range(4):
                for column in range(4):
                    value = x[image, channel, 2 * row, 2 * column]
                    expected[image, (outputs - inputs) // 2 + channel, row, column] = value
    assert torch.equal(block.shortcut(x), expected)


def test_the_shuffles_mix_the_groups() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(("inputs", "outputs", "stride", "first"), [(6, 30, 2, 1), (24, 24, 1, 3)])
def test_a_shufflenetv1_unit_is_that_of_the_published_tables(
    inputs: int, outputs: int, stride: int, first: int
) -> None:
    torch.manual_seed(0)
    unit, x = ShuffleUnitV1(inputs, outputs, stride, first, 3).eval(), torch.randn(2, inputs, 8, 8)
    convs = [module.weight for module in unit.modules() if isinstance(module, nn.Conv2d)]
    middle = len(convs[1])
    y = F.conv2d(x, convs[0], groups=first).div((1 + 1e-5) ** 0.5).relu()  # norms as they begin
    y = torch.stack([y[:, channel * (middle // first) % middle + channel // first] for channel in range(middle)], 1)
    y = F.conv2d(y, convs[1], stride=stride, padding=1, groups=middle).div((1 + 1e-5) ** 0.5).relu()
    y = F.conv2d(y, convs[2], groups=3).div((1 + 1e-5) ** 0.5)
    expected = torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if stride == 2 else y + x
    torch.testing.assert_close(unit(x), expected.relu())


@pytest.mark.skipif(not all(map(Path.is_file, (TEACHER, TEST_SET))), reason="no shared teacher and CIFAR-10 here")
def test_a_published_resnet56_works_in_the_option_a_net() -> None:
    from PIL import Image
    from pyarrow import parquet
    from safetensors.torch import load_file

    normalize = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    model = students.create("cifar_resnet56_a", num_classes=10, normalize=normalize).eval()
    students.load_weights(model, load_file(TEACHER), TEACHER.name, optional="num_batches_tracked")
    rows = next(parquet.ParquetFile(TEST_SET).iter_batches(500)).to_pylist()
    images = [np.array(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        hits = model(x).argmax(1) == torch.tensor([row["label"] for row in rows])
    assert len(hits) == 500
    assert hits.float().mean() >= 0.87
