"""Names of the zoo. The literature's names with cifar_ before them, for timm has a vgg13 of its own."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from students.cifar.mobilenetv2 import CifarMobileNetV2
from students.cifar.net import CifarNet
from students.cifar.resnet import CifarResNet
from students.cifar.shufflenet import CifarShuffleNetV1, CifarShuffleNetV2
from students.cifar.tutorial import CifarTutorialNet
from students.cifar.vgg import CifarVGG
from students.cifar.wide_resnet import CifarWideResNet

NARROW, WIDE, VGG = (16, 16, 32, 64), (32, 64, 128, 256), (64, 128, 256, 512, 512)


def _resnet(layers: int, channels: tuple[int, ...], **more: str) -> tuple[type[CifarNet], dict[str, Any]]:
    return CifarResNet, {"channels": channels, "layers": ((layers - 2) // 6,) * 3, **more}


def _wide(layers: int, k: int) -> tuple[type[CifarNet], dict[str, Any]]:
    return CifarWideResNet, {"channels": (16, 16 * k, 32 * k, 64 * k), "layers": ((layers - 4) // 6,) * 3}


ZOO: dict[str, tuple[type[CifarNet], dict[str, Any]]] = {
    **{f"cifar_resnet{n}": _resnet(n, NARROW) for n in (8, 14, 20, 32, 44, 56, 110)},
    **{f"cifar_resnet{n}_a": _resnet(n, NARROW, option="A") for n in (8, 14, 20, 32, 44, 56, 110)},
    **{f"cifar_resnet{n}x4": _resnet(n, WIDE) for n in (8, 32)},
    **{f"cifar_wrn_{n}_{k}": _wide(n, k) for n in (16, 40) for k in (1, 2)},
    "cifar_vgg8": (CifarVGG, {"channels": VGG, "layers": (1, 1, 1, 1, 1)}),
    "cifar_vgg13": (CifarVGG, {"channels": VGG, "layers": (2, 2, 2, 2, 2)}),
    "cifar_mobilenetv2_x0_5": (
        CifarMobileNetV2,
        {"channels": (16, 8, 12, 16, 32, 48, 80, 160, 1280), "layers": (1, 2, 3, 4, 3, 3, 1)},
    ),
    "cifar_shufflenetv1": (CifarShuffleNetV1, {"channels": (24, 240, 480, 960), "layers": (4, 8, 4)}),
    "cifar_deepnn": (CifarTutorialNet, {"channels": (64, 32), "layers": (2, 2), "hidden": 512}),
    "cifar_lightnn": (CifarTutorialNet, {"channels": (16, 16), "layers": (1, 1), "hidden": 256}),
    "cifar_shufflenetv2": (CifarShuffleNetV2, {"channels": (24, 116, 232, 464, 1024), "layers": (3, 7, 3)}),
}

CONFIG = {"num_classes": 10, "input_size": (3, 32, 32), "mean": (0.0,) * 3, "std": (1.0,) * 3}
default_cfgs = generate_default_cfgs(dict.fromkeys(ZOO, CONFIG))  # timm looks here, by this name


def _register(name: str) -> None:
    net, architecture = ZOO[name]

    def entrypoint(pretrained: bool = False, **options: Any) -> CifarNet:
        return build_model_with_cfg(net, name, pretrained, **(architecture | options))

    entrypoint.__name__ = entrypoint.__qualname__ = name
    register_model(entrypoint)


for _name in ZOO:
    _register(_name)
