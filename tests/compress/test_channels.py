from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import students
from compress import channels
from compress.channels import Group


def net_of(name: str, size: int = 16, width: float = 1.0) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return students.create(name, num_classes=10, image_size=size, width=width).net.eval(), torch.randn(2, 3, size, size)


@pytest.fixture
def resnet() -> tuple[nn.Module, torch.Tensor]:
    return net_of("cifar_resnet8")


def named(groups: list[Group], name: str) -> Group:
    return next(group for group in groups if group.name == name)


def test_groups_are_the_residual_streams_and_the_insides_of_blocks_but_not_the_logits(resnet):
    groups = channels.find(*resnet)

    assert {group.name: group.channels for group in groups} == {
        "conv1": 16,
        "layer1.0.conv1": 16,
        "layer2.0.conv1": 32,
        "layer2.0.conv2": 32,
        "layer3.0.conv1": 64,
        "layer3.0.conv2": 64,
    }
    stream = named(groups, "layer3.0.conv2")
    made = {axis.path for axis in stream.axes if axis.makes}
    assert made == {f"layer3.0.{path}" for path in ("conv2", "bn2", "shortcut.0", "shortcut.1")}
    assert {axis.path for axis in stream.axes} - made == {"linear"}


def test_a_groups_weights_are_rows_of_what_makes_and_columns_of_what_reads_its_channels(resnet):
    net, x = resnet
    weights = named(channels.find(net, x), "layer1.0.conv1").weights(net)
    block = net.get_submodule("layer1.0")

    assert len(weights.matrices) == 2
    assert len(weights.scales) == 1
    rows, columns = block.conv1.weight.flatten(1), block.conv2.weight.transpose(0, 1).flatten(1)
    assert any(torch.equal(matrix, rows) for matrix in weights.matrices)
    assert any(torch.equal(matrix, columns) for matrix in weights.matrices)
    assert torch.equal(weights.scales[0], block.bn1.weight)


def test_slicing_takes_out_what_silencing_makes_zero(resnet):
    net, x = resnet
    inner = named(channels.find(net, x), "layer1.0.conv1")
    weight = net.get_submodule("layer1.0.conv1").weight.clone()
    small, quiet = channels.sliced(net, {inner: [0, 5]}), channels.silenced(net, {inner: [0, 5]})
    seen = []
    quiet.get_submodule("layer1.0.bn1").register_forward_hook(lambda module, args, output: seen.append(output))

    assert torch.allclose(small(x), quiet(x), atol=1e-5)
    assert not torch.allclose(quiet(x), net(x), atol=1e-3)
    assert small.get_submodule("layer1.0.conv1").weight.shape == (14, 16, 3, 3)
    assert small.get_submodule("layer1.0.conv2").in_channels == 14
    assert (seen[0].abs().amax((0, 2, 3)) == 0).nonzero().flatten().tolist() == [0, 5]
    assert torch.equal(net.get_submodule("layer1.0.conv1").weight, weight)  # the net itself is as it was


def test_a_group_that_mistakes_which_channels_are_read_is_not_sound(resnet):
    net, x = resnet
    inner, other = (named(channels.find(net, x), f"layer{n}.0.conv1") for n in (1, 2))
    turned = replace(inner, axes={a: e if a.makes else [*e[1:], e[0]] for a, e in inner.axes.items()})
    short = replace(inner, axes={a: e for a, e in inner.axes.items() if a.makes})  # forgets who reads

    assert channels.sound(net, x, {inner: [1, 2], other: [3]}) == [inner, other]
    assert channels.sound(net, x, {turned: [1, 2], other: [3]}) == [other]
    assert channels.sound(net, x, {other: [3], short: [1, 2]}) == [other]
    assert channels.separable(net, x, [turned, other, short]) == [other]


def test_mistakes_in_branches_that_begin_mute_are_found():
    """timm begins the last norm of a block with zeros: the fresh net answers the same whatever is in the branch."""
    net, x = net_of("resnet18", 32, width=0.25)
    inner = named(channels.find(net, x), "layer1.0.conv1")
    turned = replace(inner, axes={a: e if a.makes else [*e[1:], e[0]] for a, e in inner.axes.items()})

    assert channels.sound(net, x, {turned: [1, 2]}) == [turned]
    assert channels.separable(net, x, [turned, inner]) == [inner]


def test_a_layer_norm_keeps_its_channels():
    """Fewer channels have another mean and deviation, even if those that went were zero."""
    net, x = net_of("convnext_atto", 32, width=0.25)
    groups = channels.find(net, x)
    able = {group.name for group in channels.separable(net, x, groups)}

    assert "stages.0.blocks.0.mlp.fc1" in able
    assert "stem.0" in {group.name for group in groups} - able


def test_changes_name_what_differs_and_nothing_else(resnet):
    net, x = resnet
    inner = named(channels.find(net, x), "layer1.0.conv1")
    edits = channels.changes(net, channels.sliced(net, {inner: [0, 5]}))

    assert {edit.module: edit.attributes for edit in edits} == {
        "layer1.0.conv1": {"out_channels": 14},
        "layer1.0.bn1": {"num_features": 14},
        "layer1.0.conv2": {"in_channels": 14},
    }
    assert {edit.module: edit.shapes for edit in edits}["layer1.0.bn1"] == {
        name: [14] for name in ("weight", "bias", "running_mean", "running_var")
    }
    assert channels.changes(net, channels.sliced(net, {})) == []
