from __future__ import annotations

import pytest
import torch

import students
from compress import cost, traced
from compress.prune import Prune
from compress.traced import Traced

WORK = 2_000_000  # multiply-accumulates that images of 16 pixels stay below in the convnet, and of 32 do not


@pytest.fixture(scope="module")
def convnet():
    torch.manual_seed(0)
    model = students.create("cifar_resnet8", num_classes=10, image_size=32, width=0.5, normalize=((0.4,), (0.3,)))
    model(torch.rand(16, 3, 32, 32))
    return model.eval()


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return students.create("vit_tiny_patch16_224", num_classes=10, image_size=32, width=0.25, depth=0.25).eval()


def work(model, side):
    return cost.macs(model, (3, side, side))


def test_slices_of_a_light_net_are_tried_on_two_images_of_its_size(convnet):
    assert Traced(convnet).x.shape == (2, 3, 32, 32)


def test_slices_of_a_heavy_net_are_tried_on_smaller_images(convnet, monkeypatch, context):
    """What is left of the cost is told for its own size all the same."""
    assert work(convnet, 16) < WORK < work(convnet, 32)
    monkeypatch.setattr(traced, "_LIGHT", WORK)
    found = Traced(convnet)
    pruned, report = Prune(0.5, round_to=1)(convnet, context())

    assert found.x.shape == (2, 3, 16, 16)
    assert found.able == found.channels.groups != []
    assert work(pruned, 32) / work(convnet, 32) == pytest.approx(report.details["kept_macs"])
    assert report.details["kept_macs"] == pytest.approx(0.5, abs=0.03)


def test_sides_are_cut_in_three_where_half_of_them_is_no_size(monkeypatch):
    """As of an odd number of patches."""
    monkeypatch.setattr(traced, "_LIGHT", 1)
    monkeypatch.setattr(Traced, "_takes", lambda self, side: side in (36, 12))
    net = students.create("cifar_resnet8", num_classes=10, image_size=108, width=0.25).eval()

    assert Traced(net).x.shape == (1, 3, 12, 12)


def test_the_heaviest_nets_are_traced_on_smaller_images_too(convnet, monkeypatch, context):
    monkeypatch.setattr(traced, "_HEAVY", WORK)
    monkeypatch.setattr(traced, "_LIGHT", WORK)
    pruned, report = Prune(0.5, round_to=1)(convnet, context())

    assert Traced(convnet).channels.cost("macs", {}) == pytest.approx(work(convnet, 16), rel=0.01)
    assert work(pruned, 32) / work(convnet, 32) == pytest.approx(report.details["kept_macs"])
    assert report.details["kept_macs"] == pytest.approx(0.5, abs=0.03)


def test_a_heavy_net_that_takes_no_other_size_has_one_image_of_its_own(transformer, monkeypatch):
    monkeypatch.setattr(traced, "_LIGHT", 1)
    found = Traced(transformer)

    assert found.x.shape == (1, 3, 32, 32)
    assert found.able == found.channels.groups != []


def test_looking_at_a_model_leaves_it_as_it_is(convnet):
    before = {name: value.clone() for name, value in convnet.state_dict().items()}
    Traced(convnet)

    assert {value.device.type for value in convnet.state_dict().values()} == {"cpu"}
    assert all(torch.equal(value, before[name]) for name, value in convnet.state_dict().items())
