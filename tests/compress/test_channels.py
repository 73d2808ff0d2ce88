from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import students
from compress import channels
from compress.channels import Axis, Channels, Group


def net_of(name: str, size: int = 16, width: float = 1.0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return students.create(name, num_classes=10, image_size=size, width=width).net.eval(), torch.randn(2, 3, size, size)


@pytest.fixture
def resnet() -> tuple[nn.Module, Tensor]:
    return net_of("cifar_resnet8")


def named(found: Channels, name: str) -> Group:
    return next(group for group in found.groups if group.name == name)


def turned(group: Group) -> Group:
    """Mistakes which channels are read."""
    return replace(group, axes={a: np.roll(e, -1, axis=0) if a.dim == 1 else e for a, e in group.axes.items()})


def short(group: Group) -> Group:
    """Forgets who reads."""
    return replace(group, axes={axis: entries for axis, entries in group.axes.items() if axis.dim != 1})


def test_groups_are_the_residual_streams_and_the_insides_of_blocks_but_not_the_logits(resnet):
    found = channels.find(*resnet)

    assert {group.name: group.channels for group in found.groups} == {
        "conv1": 16,
        "layer1.0.conv1": 16,
        "layer2.0.conv1": 32,
        "layer2.0.conv2": 32,
        "layer3.0.conv1": 64,
        "layer3.0.conv2": 64,
    }
    stream = named(found, "layer3.0.conv2")
    norms = [f"layer3.0.{norm}.{each}" for norm in ("bn2", "shortcut.1") for each in ("weight", "bias")]
    statistics = [f"layer3.0.{norm}.running_{each}" for norm in ("bn2", "shortcut.1") for each in ("mean", "var")]
    made = {Axis(f"layer3.0.{path}.weight", 0) for path in ("conv2", "shortcut.0")}
    made |= {Axis(path, 0) for path in (*norms, *statistics)}
    assert stream.axes.keys() == made | {Axis("linear.weight", 1), Axis("num_features", None)}
    assert all([list(each) for each in entries] == [[n] for n in range(64)] for entries in stream.axes.values())


def test_each_channel_has_a_number_of_its_own_in_the_net(resnet):
    found = channels.find(*resnet)
    numbers = [number for group in found.groups for number in group.classes.tolist()]

    assert sorted(numbers) == list(range(1, 1 + sum(group.channels for group in found.groups)))


def test_groups_at_one_place_of_several_blocks_are_of_one_kind():
    found = channels.find(*net_of("cifar_resnet20"))
    one, two, other = (named(found, f"layer2.{path}") for path in ("1.conv1", "2.conv1", "0.conv2"))

    assert one.kind == two.kind != other.kind


def test_a_groups_rows_are_what_belongs_to_each_of_its_channels(resnet):
    net, x = resnet
    inner = named(channels.find(net, x), "layer1.0.conv1")
    block = net.get_submodule("layer1.0")
    rows = inner.rows(dict(net.named_parameters()))

    expected = [
        block.conv1.weight.flatten(1),
        block.bn1.weight[:, None],
        block.bn1.bias[:, None],
        block.conv2.weight.transpose(0, 1).flatten(1),
    ]
    assert [row.shape for row in rows] == [row.shape for row in expected]
    assert all(torch.equal(*pair) for pair in zip(rows, expected, strict=True))
    assert len(inner.rows({"layer1.0.bn1.weight": block.bn1.weight})) == 1


def test_channels_of_several_entries_have_them_in_one_row():
    net, x = net_of("deit_tiny_patch16_224", 32)
    heads = named(channels.find(net, x), "blocks.0.attn.qkv")
    bias = torch.arange(3.0 * 192)
    (row,) = heads.rows({"blocks.0.attn.qkv.bias": bias})

    assert torch.equal(row, bias.view(3, 3, 64).transpose(0, 1).reshape(3, -1))


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
    assert (quiet.get_submodule("layer1.0.conv2").weight == 0).all((0, 2, 3)).nonzero().flatten().tolist() == [0, 5]
    assert torch.equal(net.get_submodule("layer1.0.conv1").weight, weight)  # the net itself is as it was


def test_a_silenced_channel_says_nothing_even_where_its_activation_is_not_0_at_0():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 1))
    x = torch.randn(1, 3, 4, 4)
    (group,) = channels.find(net, x).groups

    assert torch.allclose(channels.silenced(net, {group: [2]})(x), channels.sliced(net, {group: [2]})(x), atol=1e-6)


def test_groups_that_meet_on_one_axis_are_taken_out_at_once():
    """Behind a concatenation: the places of the second group do not shift because of the first."""
    net, x = net_of("densenet121", 32, width=0.25)
    read = Axis("features.denseblock1.denselayer3.conv1.weight", 1)
    groups = [group for group in channels.find(net, x).groups if read in group.axes]
    removal = {group: [0, group.channels - 1] for group in groups}

    assert len(groups) == 3
    assert channels.sound(net, x, removal) == groups
    small = channels.sliced(net, removal).get_parameter(read.path)
    gone = [index for group in groups for channel in removal[group] for index in group.axes[read][channel]]
    assert torch.equal(small, net.get_parameter(read.path)[:, [i for i in range(32) if i not in gone]])


def test_a_group_that_mistakes_which_channels_are_read_is_not_sound(resnet):
    net, x = resnet
    inner, other = (named(channels.find(net, x), f"layer{n}.0.conv1") for n in (1, 2))
    wrong, less = turned(inner), short(inner)

    assert channels.sound(net, x, {inner: [1, 2], other: [3]}) == [inner, other]
    assert channels.sound(net, x, {wrong: [1, 2], other: [3]}) == [other]
    assert channels.sound(net, x, {other: [3], less: [1, 2]}) == [other]
    assert channels.separable(net, x, [wrong, other, less]) == [other]


def mute_norm(net: nn.Module) -> None:
    nn.init.zeros_(net.get_submodule("layer1.0.bn2").weight)


def mute_weight(net: nn.Module) -> None:
    nn.init.zeros_(net.get_submodule("layer1.0.conv2").weight)


class Gained(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.gain = layer, nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.gain


def mute_gain(net: nn.Module) -> None:
    net.set_submodule("layer1.0.bn2", Gained(net.get_submodule("layer1.0.bn2")))


@pytest.mark.parametrize("mute", [mute_norm, mute_weight, mute_gain])
def test_mistakes_in_branches_that_begin_mute_are_found(resnet, mute):
    """timm begins the last norm or layer of a block with zeros: the fresh net answers the same whatever is before."""
    net, x = resnet
    inner = named(channels.find(net, x), "layer1.0.conv1")
    mute(net)
    wrong = turned(inner)

    assert channels.sound(net, x, {wrong: [1, 2]}) == [wrong]
    assert channels.separable(net, x, [wrong, inner]) == [inner]


class Viewed(nn.Module):
    """Two layers of which the module views what they make: by a number of its own, or by the width of the first."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own
        self.a, self.b, self.head = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(6, 2)
        if own:
            self.width = 6

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x.flatten(1)), self.b(x.flatten(1))
        shape = (-1, self.width if self.own else a.shape[1])
        return self.head(a.view(shape).relu()) + b.view(shape).sum(1, keepdim=True)


def test_what_is_viewed_by_one_number_goes_together():
    torch.manual_seed(0)
    net, x = Viewed(own=True), torch.randn(2, 3, 2, 2)
    (group,) = found = channels.find(net, x).groups

    assert {axis.path for axis in group.axes} == {"a.weight", "a.bias", "b.weight", "b.bias", "head.weight", "width"}
    assert channels.separable(net, x, found) == found


def test_halves_that_happen_to_fit_do_not_make_groups_separable():
    torch.manual_seed(0)
    net, x = Viewed(own=False), torch.randn(2, 3, 2, 2)
    one, two = channels.find(net, x).groups

    assert channels.sound(net, x, {one: [0, 1, 2], two: [3, 4, 5]}) == [one, two]
    assert len(channels.separable(net, x, [one, two])) < 2


def test_a_layer_norm_keeps_its_channels():
    """Fewer channels have another mean and deviation, even if those that went were zero."""
    net, x = net_of("convnext_atto", 32, width=0.25)
    groups = channels.find(net, x).groups

    assert len(groups) == 12
    assert all(group.name.endswith("mlp.fc1") for group in groups)
    assert channels.separable(net, x, groups) == groups


def test_weights_that_are_standardised_keep_what_they_are_standardised_over():
    """timm begins the gains of the last ones with zeros, which would hide it."""
    net, x = net_of("nf_resnet26", 32, width=0.25)

    assert channels.separable(net, x, channels.find(net, x).groups) == []


class Attention(nn.Module):
    """Of two heads over the places of a map of 16 x 16, in windows."""

    def __init__(self, pieces: int, name: str = "pieces") -> None:
        super().__init__()
        self.num_heads, self.grid, self.dim, self.name = 2, (16, 16), 8, name
        setattr(self, name, pieces)
        self.stem, self.qkv, self.proj = nn.Conv2d(3, 6, 1), nn.Linear(6, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        count, wide = x.shape[:2]
        tokens = self.cut(x.view(count, wide, *self.grid))
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.mT).softmax(-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(len(tokens), -1, self.dim)).view(count, -1, 4).mean(1)

    def cut(self, x: Tensor) -> Tensor:
        """Windows of places."""
        return x.unflatten(2, (-1, 4)).unflatten(4, (-1, 4)).permute(0, 2, 4, 3, 5, 1).flatten(0, 2).flatten(1, 2)


class Cut(Attention):
    """Its number of windows along a side is its own."""

    def cut(self, x: Tensor) -> Tensor:
        pieces = getattr(self, self.name)
        windows = x.view(*x.shape[:2], pieces, 16 // pieces, pieces, 16 // pieces)
        return windows.permute(0, 2, 4, 3, 5, 1).flatten(0, 2).flatten(1, 2)


def test_a_modules_own_numbers_follow_and_no_others():
    torch.manual_seed(0)
    net, x = Attention(pieces=7).eval(), torch.randn(2, 3, 16, 16)
    heads = named(found := channels.find(net, x), "qkv")
    small = channels.sliced(net, {heads: [1]})

    assert channels.separable(net, x, found.groups) == found.groups
    assert (small.num_heads, small.dim, small.pieces, small.grid) == (1, 4, 7, (16, 16))
    assert (net.num_heads, net.dim) == (2, 8)
    assert small.qkv.weight.shape == (12, 6)
    edits = {edit.module: edit.attributes for edit in channels.changes(net, small)}
    assert edits == {"": {"num_heads": 1, "dim": 4}, "qkv": {"out_features": 12}, "proj": {"in_features": 4}}


@pytest.mark.parametrize(("kind", "name"), [(Attention, "pieces"), (Cut, "pieces"), (Cut, "window_size")])
def test_a_number_that_is_equal_by_chance_leads_to_no_wrong_answer(kind, name):
    """A window as long as there are heads, of use or not: the group is right as it is found, or left whole; a name that
    tells of places leads to no such mistake."""
    torch.manual_seed(0)
    net, x = kind(2, name).eval(), torch.randn(2, 3, 16, 16)
    found = channels.find(net, x)
    able = channels.separable(net, x, found.groups)

    assert "stem" in {group.name for group in able}
    assert ("qkv" in {group.name for group in able}) == (kind is Attention or name == "window_size")
    removal = {group: list(range(group.channels // 2)) for group in able}
    small, quiet = channels.sliced(net, removal), channels.silenced(net, removal)
    assert torch.allclose(small(x), quiet(x), atol=1e-5)


def test_one_image_is_enough_for_a_norm_of_one_value_a_channel():
    torch.manual_seed(0)
    pooled = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2)
    )
    net, x = pooled.eval(), torch.randn(1, 3, 8, 8)
    groups = channels.find(net, x).groups

    assert channels.separable(net, x, groups) == groups
    assert [group.channels for group in groups] == [4]


def test_a_net_that_cannot_be_run_with_less_is_left_whole(resnet):
    net, x = resnet
    net.register_forward_hook(lambda module, args, output: output.view(len(output), module.conv1.out_channels - 6))
    groups = channels.find(net, x).groups

    assert {group.name for group in groups} - {g.name for g in channels.separable(net, x, groups)} == {"conv1"}


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


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [("regnety_002", 32, 0.5), ("deit_tiny_patch16_224", 32, 0.5), ("cifar_shufflenetv2", 16, 0.5)],
)
def test_changes_make_the_net_what_the_sliced_one_is(name, size, width):
    net, x = net_of(name, size, width)
    able = channels.separable(net, x, channels.find(net, x).groups)
    small = channels.sliced(net, {group: [0] for group in able})
    made = copy.deepcopy(net)
    for edit in channels.changes(net, small):
        edit.apply(made)
    made.load_state_dict(small.state_dict())

    assert torch.equal(made(x), small(x))
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in net.parameters())


def test_what_a_net_keeps_of_its_weights_between_calls_is_not_taken_for_them():
    net, x = net_of("levit_128s", 64)
    fresh = [group.name for group in channels.find(net, x[:1]).groups]
    with torch.no_grad():
        net(x)
    found = channels.find(net, x[:1])
    removal = {group: [0] for group in channels.separable(net, x, found.groups)}

    assert [group.name for group in found.groups] == fresh
    assert any(axis.path.endswith("attention_biases") for group in removal for axis in group.axes)
    assert channels.sound(net, x, removal) == [*removal]
