from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision

import students
from kd.errors import InputError
from students import timm_zoo


def test_builds_by_name_with_what_suits_the_net() -> None:
    model = students.create("cifar_resnet8", num_classes=7)
    assert model.blueprint.image_size == 32
    assert model.blueprint.normalize == ((0.0,), (1.0,))
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_normalises_as_told_exactly() -> None:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    model = students.create("cifar_resnet8", num_classes=3, image_size=8, normalize=(mean, std)).eval()
    assert model.blueprint.normalize == (tuple(mean), tuple(std))
    x = torch.rand(2, 3, 8, 8)
    expected = torch.stack([(x[:, i] - mean[i]) / std[i] for i in range(3)], 1)
    assert torch.equal(model.normalize(x), expected)
    assert torch.equal(model(x), model.net(expected))
    plain = students.create("cifar_resnet8", num_classes=3, image_size=8)
    assert torch.equal(plain.normalize(x), x)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["cifar_wrn_16_1", "mobilenetv2_050", "tv_mnasnet0_5"])
def test_takes_any_number_of_channels(name: str, channels: int) -> None:
    model = students.create(name, num_classes=3, in_chans=channels, image_size=16, normalize=((0.5,), (0.25,))).eval()
    x = torch.rand(2, channels, 16, 16)
    assert model(x).shape == (2, 3)
    torch.testing.assert_close(model(x), model.net(x * 4 - 2), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.rand(2, channels + 1, 16, 16))


def test_normalisation_of_other_channels_is_refused() -> None:
    with pytest.raises(InputError, match=r"normalize: .*needs 1 or 1 values"):
        students.create("cifar_resnet8", num_classes=3, in_chans=1, normalize=((0.1, 0.2, 0.3), (1, 1, 1)))


def test_images_too_small_for_the_net_are_refused() -> None:
    with pytest.raises(InputError, match="too small for tv_squeezenet1_1") as caught:
        students.create("tv_squeezenet1_1", num_classes=3, image_size=8)
    assert (caught.value.field, caught.value.value) == ("data.image_size", 8)


def test_an_image_size_of_nothing_is_not_the_default() -> None:
    with pytest.raises(InputError, match=r"data\.image_size: 0"):
        students.create("cifar_resnet8", num_classes=7, image_size=0)


@pytest.mark.parametrize(
    ("name", "close"),
    [("restnet18", "resnet18"), ("cifar_resnet21", "cifar_resnet2"), ("tv_mobilenet_v9", "tv_mobilenet_v")],
)
def test_an_unknown_name_is_told_with_close_ones(name: str, close: str) -> None:
    with pytest.raises(InputError, match=f"student.name: {name}: unknown; did you mean .*{close}"):
        students.create(name, num_classes=2)


@pytest.mark.parametrize("name", ["resnet18.no_such_tag", "tv_fasterrcnn_resnet50_fpn", "", "zzzzzzzzzz"])
def test_what_is_no_classifier_of_any_zoo_is_unknown(name: str) -> None:
    with pytest.raises(InputError, match=r"student\.name: .*unknown"):
        students.create(name, num_classes=2)


def test_published_weights_are_adapted_to_channels_classes_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    published = timm.create_model("resnet18", num_classes=1000).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(published))
    model = students.create("resnet18", num_classes=4, in_chans=1, image_size=32, pretrained=True)
    mean, std = model.blueprint.normalize
    assert mean == pytest.approx((sum((0.485, 0.456, 0.406)) / 3,))
    assert std == pytest.approx((sum((0.229, 0.224, 0.225)) / 3,))
    torch.testing.assert_close(model.net.conv1.weight, published["conv1.weight"].sum(1, keepdim=True))
    torch.testing.assert_close(model.net.layer4[0].conv1.weight, published["layer4.0.conv1.weight"])
    assert [info["reduction"] for info in model.feature_info] == [1, 1, 2, 4, 8]
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 4)


def test_torchvisions_weights_are_adapted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.mnasnet0_5().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: published)
    model = students.create("tv_mnasnet0_5", num_classes=4, in_chans=1, pretrained=True)
    assert model.blueprint.image_size == 224
    first = next(iter(published.values()))
    torch.testing.assert_close(model.net.layers[0].weight, first.sum(1, keepdim=True))
    assert model.net.classifier[1].out_features == 4
    whole = students.create("tv_mnasnet0_5", num_classes=1000, image_size=32, pretrained=True)
    assert whole.blueprint.normalize == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(whole.net.classifier[1].weight, published["classifier.1.weight"])


def offline(*_: object, **__: object) -> None:
    raise FileNotFoundError("no route to the hub")


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("resnet18", "timm.models._builder.load_state_dict_from_hf"),
        ("tv_mnasnet0_5", "torchvision.models._api.load_state_dict_from_url"),
    ],
)
def test_weights_that_cannot_be_fetched_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, function: str
) -> None:
    monkeypatch.setattr(function, offline)
    with pytest.raises(InputError, match=r"student\.name: .* cannot be had .no route to the hub"):
        students.create(name, num_classes=4, pretrained=True)


@pytest.mark.parametrize("error", [OSError("line one\nline two"), RuntimeError("torn"), ValueError("torn")])
def test_whatever_fails_in_fetching_is_one_input_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    build = timm_zoo.build

    def torn(*given: Any) -> torch.nn.Module:
        if given[-1]:  # pretrained
            raise error
        return build(*given)

    monkeypatch.setattr(timm_zoo, "build", torn)
    with pytest.raises(InputError, match=r"student\.name: resnet18: its weights cannot be had") as caught:
        students.create("resnet18", num_classes=4, pretrained=True)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("resnet18", {"width": 0.5}, "student.pretrained"),
        ("tv_resnet18", {"depth": 0.5}, "student.pretrained"),
        ("cifar_resnet20", {}, "student.name"),
    ],
)
def test_weights_that_there_are_not_are_refused(name: str, change: dict[str, float], field: str) -> None:
    with pytest.raises(InputError) as caught:
        students.create(name, num_classes=4, pretrained=True, **change)
    assert caught.value.field == field
