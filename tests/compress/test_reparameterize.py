from __future__ import annotations

from collections import Counter

import onnx
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import students
from compress import Export, Prune, measure
from compress.cost import macs
from compress.export import TOLERANCE
from compress.reparameterize import reparameterized
from kd.data import DataConfig, load

SIZE = 32


@pytest.fixture(scope="module")
def data():
    return load(DataConfig(image_size=SIZE))


def branched(name):
    """A small net whose BatchNorms do something."""
    torch.manual_seed(0)
    model = students.create(name, num_classes=10, in_chans=1, image_size=SIZE, width=0.5, depth=0.4).eval()
    for norm in (module for module in model.modules() if isinstance(module, _BatchNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
    return model.requires_grad_(False)


def count(path):
    """Convolutions of a file."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)["Conv"]


def assert_close(found, expected):
    assert expected.abs().max() > 0.01
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "ratio"),  # of the convolutions that are left
    [("mobileone_s0", 0.25), ("repvgg_a0", 0.55), ("repvit_m1", 0.85), ("fastvit_t8", 0.8), ("lcnetv2_small", 0.85)],
)
def test_the_file_has_the_layer_and_not_its_branches(name, ratio, context, data):
    model, images = branched(name), next(data.evaluation("test", 64)).x
    exported, report = Export()(model, context(data=data))
    assert not report.notes
    assert_close(exported(images), model(images))
    assert count(exported.path) <= ratio * sum(isinstance(module, nn.Conv2d) for module in model.modules())
    cost = measure(exported, (1, SIZE, SIZE))
    assert cost.macs < macs(model, (1, SIZE, SIZE))
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    folded = sum(p.numel() for p in model.parameters()) - sum(norm.num_features for norm in norms)
    assert cost.params < folded  # without the norms alone


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0", "repghostnet_050", "fastvit_t8", "lcnetv2_small"])
def test_a_pruned_net_becomes_its_layers(name, context, data):
    """Whose blocks have other numbers of channels and groups than they were built with."""
    small, _ = Prune(0.6)(branched(name), context(data=data))
    x = torch.rand(4, 1, SIZE, SIZE)
    made, left = reparameterized(small, x, TOLERANCE)
    assert not left
    assert_close(made(x), small(x))
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in small.parameters())


def test_a_factorised_block_is_left_and_told(context, data):
    model = branched("mobileone_s0")
    factors = [
        {"type": "Conv2d", "in_channels": 64, "out_channels": 4, "kernel_size": 1, "bias": False},
        {"type": "Conv2d", "in_channels": 4, "out_channels": 64, "kernel_size": 1, "bias": False},
    ]
    path = next(
        name.removeprefix("net.")
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.weight.shape == (64, 64, 1, 1)
    )
    students.edit(model, [students.Replace(path, factors)])
    for layer in model.net.get_submodule(path):
        nn.init.normal_(layer.weight, std=0.1)
    exported, report = Export()(model, context(data=data))
    block = path.partition(".conv_kxk")[0]
    assert report.notes == (f"Left in their branches, which edits keep from becoming one layer: net.{block}.",)
    x = torch.rand(4, 1, SIZE, SIZE)
    assert_close(exported(x), model(x))
    assert 20 < count(exported.path) < 30


def test_the_model_stays_as_it_was():
    model, x = branched("repvgg_a0"), torch.rand(2, 1, SIZE, SIZE)
    names, before = [*model.state_dict()], model(x)
    reparameterized(model, x, TOLERANCE)
    assert [*model.state_dict()] == names
    assert torch.equal(model(x), before)


class Wrong(nn.Conv2d):
    """A block whose deployed form is another function."""

    def fuse(self):
        return nn.Conv2d(1, 4, 3)


class Narrow(nn.Conv2d):
    """A block whose deployed form takes no such maps."""

    def fuse(self):
        return nn.Conv2d(7, 4, 3)


@pytest.mark.parametrize("block", [Wrong, Narrow])
def test_what_answers_otherwise_is_not_deployed(block):
    model = nn.Sequential(block(1, 4, 3), nn.Flatten()).eval()
    made, left = reparameterized(model, torch.rand(2, 1, 5, 5), TOLERANCE)
    assert made is model
    assert left == ["0"]


def test_a_net_without_branches_is_as_it_was(trained):
    x = torch.rand(2, 1, 8, 8)
    made, left = reparameterized(trained, x, TOLERANCE)
    assert not left
    assert torch.equal(made(x), trained(x))
