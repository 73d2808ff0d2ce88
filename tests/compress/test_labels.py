from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import students
from compress import channels, labels
from compress.channels import Channels
from compress.cost import macs

SIZE = 8  # of the images


class Net(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor], **layers: object) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, run: str = "plain", **more: object) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.run = heads, dim // heads, run
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        packed = self.qkv(x).reshape(count, length, 3, self.num_heads, self.head_dim)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        if self.run == "plain":
            weights = q @ k.transpose(-2, -1)
            if hasattr(self, "table"):  # of a bias for each head and pair of places
                weights = weights + self.table[self.index].permute(2, 0, 1)
            mixed = weights.softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0 if self.run == "scaled" else None)
        return self.proj(mixed.transpose(1, 2).reshape(count, length, -1))


def conv(wide: int, out: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(wide, out, 3, padding=1, groups=groups)


def head(wide: int) -> nn.Linear:
    return nn.Linear(wide, 5)


def answer(net: Net, x: Tensor) -> Tensor:
    return net.head(x.mean((2, 3)))


def places(net: Net, x: Tensor) -> Tensor:
    """(N, 4, 12)"""
    return net.a(x).flatten(2).transpose(1, 2)


def patches() -> nn.Conv2d:
    return nn.Conv2d(3, 12, 4, 4)


def between(run: Callable[[Tensor], Tensor], wide: int = 8, read: int | None = None, **layers: object) -> Net:
    """A convolution makes channels, `run` does something with them, another reads what comes out."""
    return Net(
        lambda net, x: answer(net, net.b(run(net.a(x)) if not layers else run(net, net.a(x)))),
        **{"a": conv(3, wide), **layers, "b": conv(read or wide, 6), "head": head(6)},
    )


def shuffled(x: Tensor) -> Tensor:
    return x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).reshape(len(x), -1, *x.shape[2:])


def windowed(x: Tensor) -> Tensor:
    """In windows of 4 x 4 places, and back."""
    side, wide = SIZE // 4, x.shape[1]
    windows = x.view(-1, wide, side, 4, side, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, wide).softmax(1)
    return windows.view(-1, side, side, 4, 4, wide).permute(0, 5, 1, 3, 2, 4).reshape(-1, wide, SIZE, SIZE)


def gate(x: Tensor) -> Tensor:
    value, switch = x.chunk(2, dim=1)
    return value * switch.sigmoid()


def separate(net: Net, x: Tensor) -> Tensor:
    """Heads of 2 for q and k, of 3 for v."""
    q, k, v = (
        layer(x).unflatten(2, (-1, wide)).transpose(1, 2) for layer, wide in ((net.q, 2), (net.k, 2), (net.v, 3))
    )
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


def row(count: int, start: int = 0) -> list[list[int]]:
    """Of each channel one entry."""
    return [[start + index] for index in range(count)]


def runs(count: int, length: int, starts: Sequence[int] = (0,)) -> list[list[int]]:
    """Of each channel as many entries side by side, behind each of the starts."""
    return [[s + length * c + i for s in starts for i in range(length)] for c in range(count)]


def apart(count: int, *starts: int) -> list[list[int]]:
    """Of each channel one entry behind each of the starts."""
    return [[start + c for start in starts] for c in range(count)]


def entries(found: Channels) -> dict[str, dict[str, list[list[int]]]]:
    return {
        group.name: {
            f"{axis.path} {axis.dim}": [list(several) for several in each] for axis, each in group.axes.items()
        }
        for group in found.groups
    }


B = {"b": {"b.weight 0": row(6), "b.bias 0": row(6), "head.weight 1": row(6)}}


def made(wide: list[list[int]], read: list[list[int]]) -> dict[str, dict[str, list[list[int]]]]:
    return {"a": {"a.weight 0": wide, "a.bias 0": wide, "b.weight 1": read}, **B}


def ended(run: Callable[[Tensor], Tensor], wide: int, **layers: object) -> Net:
    return Net(lambda net, x: answer(net, run(net, net.a(x))), a=conv(3, 8), **layers, head=head(wide))


SAME = made(row(8), row(8))
PAIRS = made(runs(4, 2), runs(4, 2))
HALVES = apart(4, 0, 4)

# name: the net and its groups, all of which can go
SEPARABLE: dict[str, tuple[Callable[[], nn.Module], dict[str, dict[str, list[list[int]]]]]] = {
    "activation": (lambda: between(F.gelu), SAME),
    "hardswish": (lambda: between(F.hardswish), SAME),
    "a slope of each channel": (
        lambda: between(lambda net, x: net.p(x), p=nn.PReLU(8)),
        {"a": {**SAME["a"], "p.weight 0": row(8), "p.num_parameters None": row(8)}, **B},
    ),
    "product with itself": (lambda: between(lambda x: x * x.tanh() + 1), SAME),
    "dense": (lambda: between(lambda x: x), SAME),
    "groups of many channels lose the same places": (
        lambda: Net(lambda net, x: answer(net, net.b(net.a(x))), a=conv(3, 8), b=conv(8, 12, 2), head=head(12)),
        {
            "a": {"a.weight 0": HALVES, "a.bias 0": HALVES, "b.weight 1": row(4)},
            "b": {name: apart(6, 0, 6) for name in ("b.weight 0", "b.bias 0", "head.weight 1")},
        },
    ),
    "many groups go whole": (
        lambda: Net(lambda net, x: answer(net, net.b(net.a(x))), a=conv(3, 8), b=conv(8, 16, 4), head=head(16)),
        {
            "a": {
                **{name: runs(4, 2) for name in ("a.weight 0", "a.bias 0")},
                **{name: runs(4, 4) for name in ("b.weight 0", "b.bias 0", "head.weight 1")},
                "b.groups None": row(4),
            }
        },
    ),
    "depthwise": (
        lambda: Net(lambda net, x: answer(net, net.b(net.a(x))), a=conv(3, 8), b=conv(8, 16, 8), head=head(16)),
        {
            "a": {
                **{name: row(8) for name in ("a.weight 0", "a.bias 0", "b.groups None")},
                **{name: runs(8, 2) for name in ("b.weight 0", "b.bias 0", "head.weight 1")},
            }
        },
    ),
    "transposed": (
        lambda: Net(
            lambda net, x: answer(net, net.b(net.a(x))), a=conv(3, 8), b=nn.ConvTranspose2d(8, 6, 2), head=head(6)
        ),
        {
            "a": {"a.weight 0": row(8), "a.bias 0": row(8), "b.weight 0": row(8)},
            "b": {"b.weight 1": row(6), "b.bias 0": row(6), "head.weight 1": row(6)},
        },
    ),
    "linear over channels": (
        lambda: Net(
            lambda net, x: net.head(net.b(places(net, x)).sigmoid().mean(1)),
            a=patches(),
            b=nn.Linear(12, 6),
            head=head(6),
        ),
        made(row(12), row(12)),
    ),
    "concatenation": (
        lambda: Net(
            lambda net, x: answer(net, net.b(torch.cat([net.a(x), x, net.c(x)], dim=1))),
            a=conv(3, 8),
            c=conv(3, 4),
            b=conv(15, 6),
            head=head(6),
        ),
        {**SAME, "c": {"c.weight 0": row(4), "c.bias 0": row(4), "b.weight 1": row(4, 11)}},
    ),
    "twice the same": (lambda: between(lambda x: torch.cat([x, x.relu()], 1), 8, 16), made(row(8), apart(8, 0, 8))),
    "stack": (
        lambda: Net(
            lambda net, x: answer(net, net.b(torch.stack([net.a(x), net.c(x)], dim=1).sum(1))),
            a=conv(3, 8),
            c=conv(3, 8),
            b=conv(8, 6),
            head=head(6),
        ),
        {"a": {**SAME["a"], "c.weight 0": row(8), "c.bias 0": row(8)}, **B},
    ),
    "windows": (lambda: between(windowed), SAME),
    "chunk": (lambda: between(gate, 8, 4), made(HALVES, row(4))),
    "chunks that part": (
        lambda: Net(
            lambda net, x: answer(
                net, sum(layer(x) for layer, x in zip((net.b, net.c), net.a(x).chunk(2, 1), strict=True))
            ),
            a=conv(3, 8),
            b=conv(4, 6),
            c=conv(4, 6),
            head=head(6),
        ),
        {
            "a": {"a.weight 0": HALVES, "a.bias 0": HALVES, "b.weight 1": row(4), "c.weight 1": row(4)},
            "b": {**B["b"], "c.weight 0": row(6), "c.bias 0": row(6)},
        },
    ),
    "sum over channels": (
        lambda: Net(
            lambda net, x: answer(net, net.b(x * net.a(x).sum(1, keepdim=True))),
            a=conv(3, 8),
            b=conv(3, 6),
            head=head(6),
        ),
        {"a": {"a.weight 0": row(8), "a.bias 0": row(8)}, **B},
    ),
    "softmax over places": (lambda: between(lambda x: x.softmax(3)), SAME),
    "pool": (lambda: between(lambda x: F.avg_pool2d(F.max_pool2d(x, 2), 2)), SAME),
    "resample": (lambda: between(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")), SAME),
    "batch norm": (
        lambda: between(lambda net, x: net.n(x), n=nn.BatchNorm2d(8)),
        {
            "a": {**SAME["a"], **{f"n.{each} 0": row(8) for each in ("weight", "bias", "running_mean", "running_var")}},
            **B,
        },
    ),
    "group norm": (
        lambda: between(lambda net, x: net.n(x), n=nn.GroupNorm(4, 8)),
        {"a": {**PAIRS["a"], "n.weight 0": runs(4, 2), "n.bias 0": runs(4, 2), "n.num_groups None": row(4)}, **B},
    ),
    "layer norm over places": (
        lambda: between(lambda net, x: net.n(x), n=nn.LayerNorm((SIZE, SIZE), elementwise_affine=False)),
        SAME,
    ),
    "heads": (
        lambda: Net(
            lambda net, x: net.head(net.n(places(net, x)).mean(1)),
            a=patches(),
            n=Attention(12, 2),
            head=head(12),
        ),
        {
            "a": {"a.weight 0": row(12), "a.bias 0": row(12), "n.qkv.weight 1": row(12)},
            "n.qkv": {
                "n.qkv.weight 0": runs(2, 6, (0, 12, 24)),
                "n.qkv.bias 0": runs(2, 6, (0, 12, 24)),
                "n.proj.weight 1": runs(2, 6),
                "n.num_heads None": row(2),
            },
            "n.proj": {"n.proj.weight 0": row(12), "n.proj.bias 0": row(12), "head.weight 1": row(12)},
        },
    ),
    "heads of layers of their own": (
        lambda: Net(
            lambda net, x: net.head(separate(net, places(net, x)).mean(1)),
            a=patches(),
            q=nn.Linear(12, 8),
            k=nn.Linear(12, 8),
            v=nn.Linear(12, 12),
            head=head(12),
        ),
        {
            "a": {name: row(12) for name in ("a.weight 0", "a.bias 0", "q.weight 1", "k.weight 1", "v.weight 1")},
            "q": {
                **{f"{layer}.{each} 0": runs(4, 2) for layer in "qk" for each in ("weight", "bias")},
                **{name: runs(4, 3) for name in ("v.weight 0", "v.bias 0", "head.weight 1")},
            },
        },
    ),
    "a table of biases for heads": (
        lambda: Net(
            lambda net, x: net.head(net.n(places(net, x)).mean(1)),
            a=patches(),
            n=Attention(12, 4, table=nn.Parameter(torch.randn(9, 4)), index=torch.arange(16).view(4, 4) % 9),
            head=head(12),
        ),
        {
            "a": {"a.weight 0": row(12), "a.bias 0": row(12), "n.qkv.weight 1": row(12)},
            "n": {
                "n.table 1": row(4),
                "n.qkv.weight 0": runs(4, 3, (0, 12, 24)),
                "n.qkv.bias 0": runs(4, 3, (0, 12, 24)),
                "n.proj.weight 1": runs(4, 3),
                "n.num_heads None": row(4),
            },
            "n.proj": {"n.proj.weight 0": row(12), "n.proj.bias 0": row(12), "head.weight 1": row(12)},
        },
    ),
    "padding": (lambda: between(lambda x: F.pad(x, (1, 1, 2, 0))), SAME),
    "padding with -inf": (lambda: between(lambda x: F.pad(x, (1, 1, 1, 1), value=-math.inf).relu()), SAME),
    "padded channels": (
        lambda: between(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), 8, 11),
        made(row(8), row(8, 1)),
    ),
    "roll of places": (lambda: between(lambda x: x.roll((1, 2), (2, 3))), SAME),
    "shuffle": (lambda: between(shuffled), made(HALVES, runs(4, 2))),
    "shuffle as a module": (lambda: between(nn.ChannelShuffle(2)), made(HALVES, runs(4, 2))),
    "flattened": (
        lambda: Net(lambda net, x: net.head(net.a(x).flatten(1)), a=conv(3, 4), head=head(4 * SIZE**2)),
        {"a": {"a.weight 0": row(4), "a.bias 0": row(4), "head.weight 1": runs(4, SIZE**2)}},
    ),
    "tokens are mixed": (
        lambda: Net(
            lambda net, x: net.head((places(net, x).transpose(1, 2) + net.d(net.c(places(net, x).mT).relu())).mean(2)),
            a=patches(),
            c=nn.Linear(4, 7),
            d=nn.Linear(7, 4),
            head=head(12),
        ),
        {
            "a": {"a.weight 0": row(12), "a.bias 0": row(12), "head.weight 1": row(12)},
            "c": {"c.weight 0": row(7), "c.bias 0": row(7), "d.weight 1": row(7)},
        },
    ),
    "squeeze and excite": (
        lambda: between(
            lambda net, x: x * net.e(net.s(x.mean((2, 3), keepdim=True)).relu()).sigmoid(),
            s=nn.Conv2d(8, 2, 1),
            e=nn.Conv2d(2, 8, 1),
        ),
        {
            "a": {**SAME["a"], "s.weight 1": row(8), "e.weight 0": row(8), "e.bias 0": row(8)},
            "s": {"s.weight 0": row(2), "s.bias 0": row(2), "e.weight 1": row(2)},
            **B,
        },
    ),
    "one head, told its scale": (
        lambda: Net(
            lambda net, x: net.head(net.n(places(net, x)).mean(1)),
            a=patches(),
            n=Attention(12, 1, "scaled"),
            head=head(12),
        ),
        {
            "a": {"a.weight 0": row(12), "a.bias 0": row(12), "n.qkv.weight 1": row(12)},
            "n.qkv": {
                "n.qkv.weight 0": apart(12, 0, 12, 24),
                "n.qkv.bias 0": apart(12, 0, 12, 24),
                "n.proj.weight 1": row(12),
                "n.head_dim None": row(12),
            },
            "n.proj": {"n.proj.weight 0": row(12), "n.proj.bias 0": row(12), "head.weight 1": row(12)},
        },
    ),
    "a shape of a module's own": (
        lambda: between(lambda net, x: x.flatten(1).view(-1, *net.shape), 6, shape=(6, SIZE, SIZE)),
        {"a": {**made(row(6), row(6))["a"], "shape 0": row(6)}, **B},
    ),
    "scales of a net's own": (
        lambda: Net(
            lambda net, x: answer(net, net.b(net.a(x) * net.g + net.h[:, None, None])),
            a=conv(3, 8),
            g=nn.Parameter(torch.rand(8, 1, 1)),
            h=nn.Parameter(torch.rand(8)),
            b=conv(8, 6),
            head=head(6),
        ),
        {"g": {"g 0": row(8), "h 0": row(8), **SAME["a"]}, **B},
    ),
}

# name: the net, in which the channels of `a` stay
WHOLE: dict[str, Callable[[], nn.Module]] = {
    "mean over channels": lambda: Net(
        lambda net, x: answer(net, net.b(x * net.a(x).mean(1, keepdim=True))),
        a=conv(3, 8),
        b=conv(3, 6),
        head=head(6),
    ),
    "greatest over channels": lambda: Net(
        lambda net, x: answer(net, net.b(x * net.a(x).amax(1, keepdim=True))),
        a=conv(3, 8),
        b=conv(3, 6),
        head=head(6),
    ),
    "softmax over channels": lambda: between(lambda x: x.softmax(1)),
    "normalised width": lambda: Net(
        lambda net, x: answer(net, net.b(F.instance_norm(net.a(x)))),
        a=nn.Linear(SIZE, 10),
        b=conv(3, 6),
        head=head(6),
    ),
    "one head, told no scale": lambda: Net(
        lambda net, x: net.head(
            F.scaled_dot_product_attention(net.a(x.flatten(2).mT), net.k(x.flatten(2).mT), net.v(x.flatten(2).mT)).mean(
                1
            )
        ),
        a=nn.Linear(3, 6),
        k=nn.Linear(3, 6),
        v=nn.Linear(3, 6),
        head=head(6),
    ),
    "pooled width": lambda: Net(
        lambda net, x: answer(net, net.b(F.avg_pool2d(net.a(x), 3, 1))),
        a=nn.Linear(SIZE, 10),
        b=conv(3, 6),
        head=head(6),
    ),
    "layer norm": lambda: between(lambda net, x: net.n(x.movedim(1, 3)).movedim(3, 1), n=nn.LayerNorm(8)),
    "group norm of one group": lambda: between(lambda net, x: net.n(x), n=nn.GroupNorm(1, 8)),
    "length over channels": lambda: between(lambda x: F.normalize(x, dim=1)),
    "unknown": lambda: between(lambda x: x.sort(1).values),
    "cumulated": lambda: between(lambda x: x.cumsum(1)),
    "grouped transposed": lambda: Net(
        lambda net, x: answer(net, net.b(net.a(x))), a=conv(3, 8), b=nn.ConvTranspose2d(8, 6, 2, groups=2), head=head(6)
    ),
    "standardised weights": lambda: between(
        lambda net, x: F.conv2d(
            x,
            F.batch_norm(net.w.weight.view(1, len(net.w.weight), -1), None, None, training=True).view_as(net.w.weight),
        ),
        w=nn.Conv2d(8, 8, 1),
    ),
    "channels as places": lambda: between(
        lambda net, x: x * net.c(x.mean((2, 3)).unsqueeze(1)).sigmoid().view(len(x), -1, 1, 1),
        c=nn.Conv1d(1, 1, 3, padding=1),
    ),
}

# the same, where only the trial shows it
WRONG: dict[str, Callable[[], nn.Module]] = {
    "sum of what is not 0 at 0": lambda: Net(
        lambda net, x: answer(net, net.b(x * net.a(x).sigmoid().sum(1, keepdim=True))),
        a=conv(3, 8),
        b=conv(3, 6),
        head=head(6),
    ),
    "roll of channels": lambda: between(lambda x: x.roll(1, 1)),
    "pieces of a written length": lambda: between(lambda x: x.split(4, 1)[0] * x.split(4, 1)[1], 8, 4),
    "a written shape": lambda: between(lambda x: x.view(-1, 8, SIZE**2).sigmoid().view(-1, 8, SIZE, SIZE)),
}


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def params(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def removed(found: Channels, groups: Sequence[channels.Group]) -> channels.Removal:
    draw = random.Random(3)
    return {group: draw.sample(range(group.channels), draw.randint(1, group.channels - 1)) for group in groups}


@pytest.mark.parametrize("name", SEPARABLE)
def test_what_goes_together_is_known_by_its_entries(name):
    torch.manual_seed(0)
    make, expected = SEPARABLE[name]
    net = make().eval()
    found = channels.find(net, images(1))

    assert entries(found) == expected
    assert channels.separable(net, images(), found.groups) == found.groups


@pytest.mark.parametrize("name", SEPARABLE)
def test_the_cost_of_what_is_left_is_known_without_slicing(name):
    torch.manual_seed(0)
    net = SEPARABLE[name][0]().eval()
    found = channels.find(net, images(1))
    removal = removed(found, found.groups)
    small = channels.sliced(net, removal)

    assert (found.cost("macs", {}), found.cost("params", {})) == (macs(net, (3, SIZE, SIZE)), params(net))
    assert found.cost("macs", removal) == macs(small, (3, SIZE, SIZE)) < macs(net, (3, SIZE, SIZE))
    assert found.cost("params", removal) == params(small)


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_go_is_in_no_group(name):
    torch.manual_seed(0)
    net = WHOLE[name]().eval()
    found = channels.find(net, images(1))

    assert "a" not in {group.name for group in found.groups}
    assert channels.separable(net, images(), found.groups) == found.groups
    assert found.cost("macs", {}) == macs(net, (3, SIZE, SIZE))


@pytest.mark.parametrize("name", WRONG)
def test_what_the_trace_takes_for_a_group_by_mistake_is_found_out(name):
    torch.manual_seed(0)
    net = WRONG[name]().eval()
    groups = channels.find(net, images(1)).groups
    able = channels.separable(net, images(), groups)

    assert [group.name for group in groups if group not in able] == ["a"]


NETS = {
    "cifar_resnet8": (16, 1.0),
    "cifar_shufflenetv2": (16, 0.5),
    "regnety_002": (32, 0.5),
    "mobilenetv3_small_050": (32, 1.0),
    "convnext_atto": (32, 0.25),
    "densenet121": (32, 0.25),
    "deit_tiny_patch16_224": (32, 0.5),
    "mixer_s32_224": (64, 0.25),
}


@pytest.mark.parametrize("name", NETS)
def test_the_cost_of_nets_as_they_come_is_known_before_and_after(name):
    size, width = NETS[name]
    torch.manual_seed(0)
    net = students.create(name, num_classes=10, image_size=size, width=width).net.eval()
    found = channels.find(net, torch.randn(1, 3, size, size))
    able = channels.separable(net, torch.randn(2, 3, size, size), found.groups)
    removal = removed(found, able)
    small = channels.sliced(net, removal)

    assert able
    assert (found.cost("macs", {}), found.cost("params", {})) == (macs(net, (3, size, size)), params(net))
    assert found.cost("macs", removal) == macs(small, (3, size, size))
    assert found.cost("params", removal) == params(small)


def test_what_is_called_as_no_rule_expects_stays(monkeypatch):
    def surprised(*given):
        raise IndexError

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(20, 2)).eval()
    x = torch.rand(1, 3, 2, 2)
    assert [group.channels for group in channels.find(net, x).groups] == [4, 5]
    monkeypatch.setitem(labels._RULES, "addmm", surprised)
    assert [group.channels for group in channels.find(net, x).groups] == [4]
