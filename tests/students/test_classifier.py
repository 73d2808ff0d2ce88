from __future__ import annotations

import copy

import pytest
import torch

import students
from kd import taps
from kd.batch import Needs

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def model(name: str = "cifar_resnet8") -> students.Classifier:
    return students.create(name, num_classes=5, image_size=16, normalize=(MEAN, STD)).eval()


def test_normalises_what_it_is_given() -> None:
    made, x = model(), torch.rand(2, 3, 16, 16)
    y = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(made(x), made.net(y))
    torch.testing.assert_close(made.forward_features(x), made.net.forward_features(y))
    torch.testing.assert_close(made.forward_intermediates(x)[1], made.net.forward_intermediates(y)[1])


def test_resizes_to_its_resolution_where_it_is_told_to() -> None:
    small, x = model(), torch.rand(2, 3, 24, 24)
    resizing = students.Blueprint("cifar_resnet8", 5, 3, 16, normalize=(MEAN, STD), resize=True).build().eval()
    resizing.load_state_dict(small.state_dict())
    fitting = torch.nn.functional.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(resizing(x), small(fitting))
    assert torch.equal(resizing(fitting), small(fitting))
    assert taps.ports(resizing, 3, (24, 24)).stages == ((16, 16, 16), (32, 8, 8), (64, 4, 4))
    assert taps.ports(small, 3, (24, 24)).stages[0] == (16, 24, 24)


def test_offers_what_its_net_offers_and_no_more() -> None:
    made = model()
    assert (made.num_classes, made.num_features) == (5, 64)
    assert made.feature_info is made.net.feature_info
    assert made.get_classifier() is made.net.linear
    other = students.create("tv_mnasnet0_5", num_classes=5, image_size=32)
    assert not hasattr(other, "forward_intermediates")
    with pytest.raises(AttributeError):
        _ = made.no_such_thing


def test_normalisation_is_no_state() -> None:
    made = model()
    assert all(key.startswith("net.") for key in made.state_dict())
    assert {name for name, _ in made.named_buffers() if not name.startswith("net.")} == {"mean", "std"}


def test_copies_answer_alike() -> None:
    made, x = model(), torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(copy.deepcopy(made)(x), made(x))


def test_works_in_half_precision() -> None:
    made, x = model(), torch.rand(2, 3, 16, 16)
    expected = made(x)
    made.net.bfloat16()  # the buffers stay as they are
    torch.testing.assert_close(made(x.bfloat16()).float(), expected, rtol=0.1, atol=0.1)


def test_losses_can_tap_it() -> None:
    made = model()
    ports = taps.ports(made, 3, (16, 16))
    assert ports.embedding == 64
    assert ports.stages == ((16, 16, 16), (32, 8, 8), (64, 4, 4))
    outputs = taps.read(made, torch.rand(2, 3, 16, 16), Needs(embedding=True, stages=(-1,)))
    assert outputs.embedding is not None


def test_images_become_what_its_weights_are() -> None:
    made, x = model(), torch.rand(2, 3, 16, 16)
    expected = made(x)
    for kind in (torch.bfloat16, torch.float64):
        cast = copy.deepcopy(made).to(kind)
        assert cast(x).dtype == kind
        torch.testing.assert_close(cast(x).float(), expected, rtol=0.1, atol=0.1)
