from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import students
from kd.data import Data, DataConfig, load
from kd.errors import InputError
from students import Classifier, inherit


def make(name: str = "cifar_resnet8", seed: int = 0, **options: float) -> Classifier:
    """A net whose every entry is drawn, statistics of BatchNorms too."""
    torch.manual_seed(seed)
    size = 8 if name.startswith("cifar") else 32
    model = students.create(name, **{"num_classes": 5, "image_size": size, **options}).eval()  # type: ignore[arg-type]
    for key, value in model.net.state_dict().items():
        if value.is_floating_point():
            value.copy_(0.2 * torch.randn(value.shape))
        if key.endswith("running_var"):
            value.abs_().add_(0.1)
    return model


def places(large: Tensor, small: Tensor) -> tuple[np.ndarray, ...]:
    return np.ix_(*([i * t // s for i in range(s)] for s, t in zip(small.shape, large.shape, strict=True)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar_resnet8", {"width": 0.5}),
        ("cifar_resnet20", {"width": 0.63, "depth": 0.34}),  # 10 of 16 channels, a block of three
        ("mobilenetv2_035", {"width": 0.5, "depth": 0.5}),
        ("convnext_atto", {"width": 0.5, "depth": 0.5}),
        ("vit_tiny_patch16_224", {"width": 0.5, "depth": 0.17}),
    ],
)
def test_takes_evenly_spaced_entries_of_the_first_blocks(name: str, options: dict[str, float]) -> None:
    student, source = make(name, **options), make(name, seed=1)
    count = inherit(student, source)
    given = source.net.state_dict()
    for key, value in student.net.state_dict().items():
        if value.dim():
            assert np.array_equal(value, given[key].numpy()[places(given[key], value)]), key
    assert count == sum(parameter.numel() for parameter in student.parameters())


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("cifar_resnet8", 0.5),
        ("cifar_resnet8", 0.63),
        ("cifar_resnet8_a", 0.5),
        ("cifar_vgg8", 0.25),
        ("mobilenetv2_100", 0.5),
        ("densenet121", 0.5),
    ],
)
def test_a_channel_of_one_layer_is_the_one_that_the_next_reads(name: str, width: float) -> None:
    """A student of a net that is small, but for channels without weights, is that small net."""
    small, large, student = make(name, width=width), make(name), make(name, seed=1, width=width)
    given = large.net.state_dict()
    for key, value in small.net.state_dict().items():
        if value.dim():
            given[key].fill_(float(key.endswith("running_var")))
            given[key].numpy()[places(given[key], value)] = value
    inherit(student, large)
    x = torch.rand(2, 3, *(student.blueprint.image_size,) * 2).double()
    expected = small.double()(x)
    torch.testing.assert_close(large.double()(x), expected)
    assert torch.equal(student.double()(x), expected)


def test_a_net_of_the_same_shapes_is_copied() -> None:
    student, source = make(), make(seed=1)
    source.net.bn1.num_batches_tracked += 7
    inherit(student, source)
    own = student.net.state_dict()
    assert all(torch.equal(own[key], value) for key, value in source.net.state_dict().items())
    source.net.conv1.weight.data.zero_()
    assert student.net.conv1.weight.all()


def test_classifiers_of_other_classes_are_left_alone() -> None:
    student, source = make(width=0.5, num_classes=3), make(seed=1)
    before = copy.deepcopy(student)
    count = inherit(student, source)
    assert torch.equal(student.net.linear.weight, before.net.linear.weight)
    assert torch.equal(student.net.linear.bias, before.net.linear.bias)
    assert torch.equal(student.net.conv1.weight, source.net.conv1.weight[::2])
    assert count == sum(p.numel() for p in student.parameters()) - 3 * 33


def test_what_is_larger_or_new_stays() -> None:
    student, source = make("cifar_resnet14", width=0.5), make(seed=1, width=0.75)
    student.net.layer3[0].conv1.weight.data.zero_()
    wide = torch.nn.Conv2d(student.net.layer3[0].conv1.in_channels, 99, 3)
    student.net.layer3[0].conv1, before = wide, wide.weight.clone()
    second = student.net.layer1[1].conv1.weight.clone()
    inherit(student, source)
    assert torch.equal(student.net.layer3[0].conv1.weight, before)
    assert torch.equal(student.net.layer1[1].conv1.weight, second)
    assert not torch.equal(student.net.conv1.weight, make("cifar_resnet14", width=0.5).net.conv1.weight)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cifar_vgg8"])
def test_nets_of_another_family_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"^search.inherit: {name}: is of another family than cifar_resnet8: no weigh"):
        inherit(make(), make(name), "search.inherit")


@pytest.fixture(scope="module")
def digits() -> Data:
    return load(DataConfig())


def learn(model: Classifier, data: Data, epochs: range) -> float:
    """The mean loss of so many epochs."""
    optimizer, losses = torch.optim.SGD(model.train().parameters(), lr=0.1, momentum=0.9), []
    for epoch in epochs:
        for (view,) in data.batches(epoch, batch_size=64):
            optimizer.zero_grad()
            loss = cross_entropy(model(view.x), view.y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("name", "options"),
    [("cifar_resnet8", {"width": 0.5}), pytest.param("cifar_resnet14", {"depth": 0.5}, marks=pytest.mark.slow)],
)
def test_half_of_a_trained_net_learns_faster_than_a_fresh_one(
    name: str, options: dict[str, float], digits: Data
) -> None:
    sort = {"num_classes": 10, "in_chans": 1, "image_size": 8}
    torch.manual_seed(0)
    source = students.create(name, **sort)  # type: ignore[arg-type]
    learn(source, digits, range(4))
    for seed in range(3):
        torch.manual_seed(seed)
        fresh = students.create(name, **sort, **options)  # type: ignore[arg-type]
        heir = copy.deepcopy(fresh)
        inherit(heir, source)
        epoch = range(10 + seed, 11 + seed)
        assert learn(heir, digits, epoch) < 0.7 * learn(fresh, digits, epoch)
