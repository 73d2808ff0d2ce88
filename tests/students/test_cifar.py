from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

import students
from students.cifar import ZOO
from students.cifar.shufflenet import shuffle

SHARED = Path(__file__).parents[3] / "shared"
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
    with torch.device("meta"):
        assert count(timm.create_model(name, num_classes=100)) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("cifar_resnet56_a", 853_018), ("cifar_resnet56", 855_770)])
def test_the_shortcuts_of_resnet_differ_in_their_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count(timm.create_model(name, num_classes=10)) == parameters


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


def test_a_wide_resnet_hands_out_its_last_map_normalised_where_asked() -> None:
    net = timm.create_model("cifar_wrn_16_1").eval()
    x = torch.rand(1, 3, 8, 8)
    features, raw = net.forward_intermediates(x)
    _, normed = net.forward_intermediates(x, norm=True)
    torch.testing.assert_close(normed[-1], features)
    torch.testing.assert_close(net.norm(raw[-1]), features)
    torch.testing.assert_close(normed[-2], raw[-2])


def test_option_a_pads_with_zero_channels_and_takes_every_second_pixel() -> None:
    shortcut = timm.create_model("cifar_resnet8_a").layer2[0].shortcut
    x = torch.rand(1, 16, 8, 8)
    expected = torch.zeros(1, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(shortcut(x), expected)


def test_the_shuffles_mix_the_groups() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared teacher and CIFAR-10 are not on this machine")
def test_a_published_resnet56_works_in_the_option_a_net() -> None:
    from PIL import Image
    from pyarrow import parquet
    from safetensors.torch import load_file

    normalize = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    model = students.create("cifar_resnet56_a", num_classes=10, normalize=normalize).eval()
    keys = model.net.load_state_dict(load_file(SHARED / "teachers/cifar10_resnet56.safetensors"), strict=False)
    assert not keys.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in keys.missing_keys)
    rows = parquet.read_table(SHARED / "data/cifar10/test.parquet").slice(0, 500).to_pylist()
    images = [np.array(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        hits = model(x).argmax(1) == torch.tensor([row["label"] for row in rows])
    assert hits.float().mean() > 0.86
