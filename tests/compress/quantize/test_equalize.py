from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from compress.export import convert
from compress.onnx_graph import observed
from compress.onnx_model import write
from compress.quantize.equalize import equalize
from compress.quantize.integer import quantized
from compress.quantize.scheme import Scheme

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def node(kind: str, inputs: str, output: str, **attributes: object):
    return helper.make_node(kind, inputs.split(), [output], output, **attributes)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def answers(net) -> np.ndarray:
    return next(observed(net.model, ["out"], IMAGES.numpy(), len(IMAGES)))["out"]


def test_the_net_answers_as_before_and_ranges_are_alike(make_net):
    """Through a ReLU and a pool, a depthwise layer and a grouped one."""
    nodes = [
        node("Conv", "image w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("MaxPool", "r1", "p1", kernel_shape=[2, 2]),
        node("Conv", "p1 w2 b2", "c2", group=8, pads=[1, 1, 1, 1]),
        node("Relu", "c2", "r2"),
        node("Conv", "r2 w3", "out", group=2),
    ]
    made = weights(w1=(8, 3, 3, 3), b1=(8,), w2=(8, 1, 3, 3), b2=(8,), w3=(6, 4, 1, 1))
    made["w1"] *= np.logspace(-2, 2, 8, dtype=np.float32)[:, None, None, None]
    net = make_net(nodes, made, (3, 8, 8))
    before = answers(net)
    assert equalize(net, IMAGES) == 2
    np.testing.assert_allclose(answers(net), before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    first, second, third = (np.abs(net[name]) for name in ("w1", "w2", "w3"))
    made_by, read_by = second.max((1, 2, 3)), third.reshape(2, 3, 4).max(1).flatten()
    np.testing.assert_allclose(made_by, read_by, rtol=0.01)
    np.testing.assert_allclose(first.max((1, 2, 3)), second.max((1, 2, 3)), rtol=0.01)


@pytest.mark.parametrize(
    ("between", "pairs"),
    [
        ([node("Sigmoid", "c1", "r1")], 0),  # passes no factor on
        ([node("Relu", "c1", "r1"), node("Add", "r1 c1", "twice")], 0),  # others read it
        ([node("Relu", "c1", "r1")], 1),
    ],
)
def test_only_what_passes_factors_on_stands_between(make_net, between, pairs):
    nodes = [node("Conv", "image w1 b1", "c1"), *between, node("Conv", "r1 w2", "out")]
    net = make_net(nodes, weights(w1=(4, 3, 1, 1), b1=(4,), w2=(5, 4, 1, 1)), (3, 8, 8))
    before = answers(net)
    assert equalize(net, IMAGES) == pairs
    np.testing.assert_allclose(answers(net), before, rtol=1e-4, atol=1e-5)


def test_a_clip_passes_factors_on_below_its_limit(make_net):
    """The channel that reaches it is left alone, the others keep below."""
    nodes = [
        node("Conv", "image w1 b1", "c1"),
        node("Clip", "c1 zero six", "r1"),
        node("Conv", "r1 w2", "out"),
    ]
    made = weights(w1=(4, 3, 1, 1), b1=(4,), w2=(5, 4, 1, 1)) | {"zero": np.float32(0), "six": np.float32(6)}
    made["w1"] = np.abs(made["w1"]) * np.array([0.01, 1, 1, 9], np.float32)[:, None, None, None]
    made["w2"] *= np.array([9, 1, 0.01, 9], np.float32)[None, :, None, None]
    made["b1"] *= 0
    net = make_net(nodes, made | {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}, (3, 8, 8))
    before, first = answers(net), net["w1"].copy()
    assert before.std() > 0
    assert equalize(net, IMAGES) == 1
    np.testing.assert_allclose(answers(net), before, rtol=1e-4, atol=1e-4)
    changed = net["w1"][:, 0, 0, 0] / first[:, 0, 0, 0]
    assert changed[3] == 1
    assert changed[0] > 3


def test_of_unequal_channels_integers_lose_far_less(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )
    with torch.no_grad():
        factors = torch.logspace(-1.5, 1.5, 16)
        net[0].weight *= factors[:, None, None, None]
        net[0].bias *= factors
        net[2].weight /= factors[None, :, None, None]
    exported = write(convert(net.eval(), IMAGES, 18), tmp_path / "float.onnx")
    whole, errors = exported(IMAGES), {}
    for equal in (False, True):
        scheme = Scheme(reduce_range=False, equalize=equal)
        errors[equal] = float(
            (quantized(exported, "static", IMAGES, tmp_path / "q.onnx", scheme)(IMAGES) - whole).norm()
        )
    assert errors[True] < 0.3 * errors[False]


def test_no_channel_is_scaled_beyond_the_limit_of_a_clip(make_net):
    """Of which the second layer would have the first make more than the images bring near the limit."""
    made = weights(w1=(8, 3, 1, 1), b1=(8,), w2=(6, 8, 1, 1))
    made["w1"] *= 0.01
    made |= {"none": np.float32(0), "six": np.float32(0.2)}
    nodes = [
        node("Conv", "image w1 b1", "c1"),
        node("Clip", "c1 none six", "r1"),
        node("Conv", "r1 w2", "out"),
    ]
    made["b1"] = np.full(8, 0.05, np.float32)
    net = make_net(nodes, made, (3, 8, 8))
    before = answers(net)
    assert equalize(net, IMAGES) == 1
    assert np.abs(net["w1"]).max() > 1.5 * np.abs(made["w1"]).max(), "something was scaled up"
    np.testing.assert_allclose(answers(net), before, rtol=1e-4, atol=1e-5)
