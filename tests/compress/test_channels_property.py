"""Nets that hypothesis grows: whatever group is said to be separable can go, in any part."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from compress import channels
from compress.cost import macs
from kd.evaluate import inference

ACTIVATIONS = [torch.relu, torch.sigmoid, F.hardswish, F.gelu, F.silu, torch.cos]  # two of them are not 0 at 0
EXAMPLES = 20  # of each family


def conv(wide: int, out: int, kernel: int = 1, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(wide, out, kernel, padding=kernel // 2, groups=groups, bias=bias)


class Dense(nn.Module):
    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.conv = conv(wide, [4, 8, 12][choice % 3], [1, 3][choice // 3 % 2], bias=choice % 2 == 0)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return self.conv(x)


class Grouped(nn.Module):
    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        groups = [2, 4][choice % 2] if wide % 4 == 0 else 1
        self.conv = conv(wide, [4, 8, 16][choice % 3], 3, groups)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return self.conv(x)


class Depthwise(nn.Module):
    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.conv = conv(wide, wide * [1, 2][choice % 2], 3, wide)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return self.conv(x)


class Norm(nn.Module):
    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(wide)
        nn.init.uniform_(self.norm.weight, -1.5, 1.5)
        nn.init.uniform_(self.norm.bias, -1, 1)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.2, 2)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return self.norm(x)


class Activation(nn.Module):
    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.run = ACTIVATIONS[choice % len(ACTIVATIONS)]

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return self.run(x)


class Residual(nn.Module):
    """A sum, behind a projection where widths differ."""

    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.shortcut = conv(other, wide) if wide != other else nn.Identity()

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x + self.shortcut(other)


class Concatenation(nn.Module):
    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.twice = choice % 3 == 0

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.cat([x, other, x] if self.twice else [x, other], dim=1)


class Glu(nn.Module):
    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.conv, self.run = conv(wide, 8), ACTIVATIONS[choice % len(ACTIVATIONS)]

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        value, gate = self.conv(x).chunk(2, dim=1)
        return value * self.run(gate)


class SqueezeExcite(nn.Module):
    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.squeeze, self.excite = conv(wide, 4), conv(4, wide)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Shuffle(nn.Module):
    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.groups = 2 if wide % 2 == 0 else 1
        self.module = nn.ChannelShuffle(self.groups) if choice % 2 else None

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        if self.module is not None:
            return self.module(x)
        return x.view(len(x), self.groups, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


class Attention(nn.Module):
    """Over places; q, k and v of one layer or of three."""

    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = [1, 2, 3][choice % 3], 4, choice % 2 == 0
        width = self.num_heads * self.head_dim
        self.qkv = nn.ModuleList(nn.Linear(wide, 3 * width) for _ in range(choice // 2 % 2))
        self.each = nn.ModuleList(nn.Linear(wide, width) for _ in range(0 if self.qkv else 3))
        self.project = nn.Linear(width, wide)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        count, length, _ = tokens.shape
        if self.qkv:
            packed = self.qkv[0](tokens).reshape(count, length, 3, self.num_heads, self.head_dim)
            q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            shape = (count, length, self.num_heads, self.head_dim)
            q, k, v = (layer(tokens).reshape(shape).transpose(1, 2) for layer in self.each)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        mixed = self.project(mixed.transpose(1, 2).reshape(count, length, -1))
        return x + mixed.transpose(1, 2).reshape(x.shape)


class Mlp(nn.Module):
    """Channels last."""

    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(wide, 8), nn.Linear(8, wide)
        self.run = ACTIVATIONS[choice % len(ACTIVATIONS)]

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return self.two(self.run(self.one(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class Mixer(nn.Module):
    """Linear layers over places."""

    def __init__(self, wide: int, other: int, size: int, choice: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(size * size, 8), nn.Linear(8, size * size)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        return x + self.two(self.one(x.flatten(2)).relu()).reshape(x.shape)


class Net(nn.Module):
    """Each step of the program makes a map of the last map and an earlier one."""

    def __init__(self, program: list[tuple[type[nn.Module], int, int]], size: int, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.layers, self.back = nn.ModuleList(), {}  # no list of numbers: they would be taken for lengths
        maps = [torch.zeros(1, 3, size, size)]
        for step, back, choice in program:
            other = max(0, len(maps) - 1 - back)
            layer = step(maps[-1].shape[1], maps[other].shape[1], size, choice)
            self.back[len(self.layers)] = other
            self.layers.append(layer)
            maps.append(layer.eval()(maps[-1], maps[other]))
        self.head = nn.Linear(maps[-1].shape[1] * (size * size if flat else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for index, layer in enumerate(self.layers):
            maps.append(layer(maps[-1], maps[self.back[index]]))
        return self.head(maps[-1].flatten(1) if self.flat else maps[-1].mean((2, 3)))


CONVOLUTIONS = (Dense, Norm, Activation, Residual)
WHATEVER = (Grouped, Depthwise, Concatenation, Shuffle, Glu, SqueezeExcite, Mlp, Attention, Mixer)
# the steps of a family, and the least share of its groups that can go: a single head of attention cannot lose channels
# of q and k, by which its scale is told, nor where the stream happens to be as wide
FAMILIES: dict[str, tuple[tuple[type[nn.Module], ...], float]] = {
    "residual": (CONVOLUTIONS, 1.0),
    "grouped": ((*CONVOLUTIONS, Grouped, Depthwise), 1.0),
    "concatenated": ((*CONVOLUTIONS, Concatenation, Shuffle), 1.0),
    "gated": ((*CONVOLUTIONS, Glu, SqueezeExcite, Mlp), 1.0),
    "attention": ((*CONVOLUTIONS, Attention, Mixer), 0.9),
    "all": ((*CONVOLUTIONS, *WHATEVER), 0.95),
}


def check(net: nn.Module, size: int, draw: random.Random) -> tuple[int, int]:
    """How many groups there are and can go, where all is as it should be."""
    image = (3, size, size)
    x = torch.randn(2, *image)
    found = channels.find(net, x[:1])
    groups = [group for group in found.groups if group.channels > 1]
    able = channels.separable(net, x, groups)
    removal = {group: draw.sample(range(group.channels), draw.randint(1, group.channels - 1)) for group in able}
    small = channels.sliced(net, removal)

    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        whole, images = copy.deepcopy(net).to(dtype), torch.randn(3, *image, dtype=dtype)
        one, two = channels.sliced(whole, removal), channels.silenced(whole, removal)
        with inference(one), inference(two):
            answers, expected = one(images), two(images)
        assert (answers - expected).abs().max() <= tolerance * expected.abs().max()
    small.train()(torch.randn(5, *image)).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    for by, count in (("params", lambda n: sum(p.numel() for p in n.parameters())), ("macs", lambda n: macs(n, image))):
        assert count(net) - found.cost(by, {}) == count(small) - found.cost(by, removal)
    return len(groups), len(able)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_separable_can_go_in_any_part(family):
    steps, floor = FAMILIES[family]
    programs = st.lists(
        st.tuples(st.sampled_from(steps), st.integers(0, 4), st.integers(0, 11)), min_size=3, max_size=9
    )
    counts = []

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
    @given(programs, st.sampled_from([3, 4]), st.booleans(), st.integers(0, 99))
    def grow(program, size, flat, seed):
        torch.manual_seed(seed)
        net = Net([(Dense, 0, 1), *program], size, flat).eval()
        counts.append(check(net, size, random.Random(seed)))

    grow()
    found, able = (sum(each) for each in zip(*counts, strict=True))
    assert found > 2 * len(counts)
    assert able >= floor * found
