from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import pytest
import torch
from ml_dtypes import int4
from onnx import helper, numpy_helper
from torch.nn.functional import conv2d

from compress.onnx_graph import observed
from compress.quantize.integer import Ready
from compress.quantize.scheme import Scheme
from compress.quantize.weights import drift, learned, nearest, settle, settled, steps

WHOLE = Scheme(reduce_range=False)


def problem(seed: int, out: int, fan: int, groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of weights, and second moments of what they meet, which is correlated as activations are."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(groups, fan, fan, generator=draw)
    x = torch.randn(groups, 400, fan, generator=draw) @ mixed + 1
    return torch.randn(out, fan, generator=draw), x.mT @ x / 400


def error(rows: torch.Tensor, integers: torch.Tensor, step: torch.Tensor, moments: torch.Tensor) -> list[float]:
    """Of each row, by plain loops."""
    off, size = (step * integers - rows).double(), len(rows) // len(moments)
    return [float(row @ moments[place // size].double() @ row) for place, row in enumerate(off)]


def test_steps_are_those_of_the_largest_weight():
    rows = torch.tensor([[0.5, -2.0], [0.1, 0.3], [0.0, 0.0]])
    for most, reduced in ((127, False), (64, True)):
        found = steps(rows, Scheme(reduce_range=reduced))
        assert found[:2, 0].tolist() == pytest.approx([2.0 / most, 0.3 / most], rel=2e-3)
        assert torch.equal(found, found.half().float())
        assert nearest(rows, found, most).abs().amax(1).tolist() == [most, most, 0]
    whole = steps(rows, Scheme(reduce_range=False, per_channel=False))
    assert whole.shape == ()
    assert whole.item() == pytest.approx(2.0 / 127, rel=2e-3)


@pytest.mark.parametrize("groups", [1, 2])
def test_learned_rounding_comes_near_the_best_of_all(groups):
    """Which trying each way to round every weight finds."""
    rows, moments = problem(0, 6, 7, groups)
    step = rows.abs().amax(1, keepdim=True) / 7
    found = learned(rows, step, 7, moments)
    assert ((found - rows / step).abs() <= 1 + 1e-5).all()
    assert found.abs().max() <= 7
    ours, plain = (error(rows, integers, step, moments) for integers in (found, nearest(rows, step, 7)))
    for place, row in enumerate(rows / step):
        ways = torch.tensor(list(product(*zip(row.floor().tolist(), row.ceil().tolist(), strict=True)))).clamp(-7, 7)
        group = moments[place * groups // 6].expand(len(ways), -1, -1)
        alone = rows[place : place + 1].expand(len(ways), -1)
        off = (step[place] * ways - alone).double()
        best = float(torch.einsum("wi,wij,wj->w", off, group.double(), off).min())
        assert best - 1e-9 <= ours[place] <= plain[place] + 1e-9
    assert sum(ours) < 0.9 * sum(plain)


def relaxed(rows: torch.Tensor, step: torch.Tensor, most: int, moments: torch.Tensor) -> torch.Tensor:
    """AdaRound as published (Nagel et al. 2020, eq. 21 to 24), on second moments."""
    exact = rows / step
    part = (exact - exact.floor()).clamp(0.001, 0.999)
    v = torch.logit((part + 0.1) / 1.2).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=1e-2)
    for now in range(1000):
        h = (v.sigmoid() * 1.2 - 0.1).clamp(0, 1)
        off = step * ((exact.floor() + h).clamp(-most, most) - exact)
        loss = torch.einsum("oi,ij,oj->", off, moments[0], off) / float((step**2).mean())
        if now > 200:
            loss = loss + 0.1 * (1 - (2 * h - 1).abs() ** (20 - 18 * (now - 200) / 800)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (exact.floor() + (v.sigmoid() * 1.2 - 0.1).clamp(0, 1).round()).clamp(-most, most).detach()


def test_turning_one_weight_after_the_other_beats_the_relaxation_of_the_paper():
    rows, moments = problem(1, 8, 36)
    step = rows.abs().amax(1, keepdim=True) / 7
    ours, published, plain = (
        sum(error(rows, integers, step, moments))
        for integers in (learned(rows, step, 7, moments), relaxed(rows, step, 7, moments), nearest(rows, step, 7))
    )
    assert published < 0.95 * plain  # so it is a fair rival
    assert ours <= published


def conv(make_net, weight: torch.Tensor, bias: torch.Tensor | None, **attributes):
    node = helper.make_node("Conv", ["image", "w", *(["b"] if bias is not None else [])], ["out"], "c", **attributes)
    weights = {"w": weight.numpy()} | ({} if bias is None else {"b": bias.numpy()})
    return make_net([node], weights, (4, 9, 9))


@pytest.mark.parametrize(
    ("groups", "stride", "pads", "dilation"),
    [(1, 1, (1, 1, 1, 1), 1), (4, 2, (0, 1, 2, 1), 1), (2, 1, (2, 2, 2, 2), 2)],
)
def test_a_layer_computes_what_onnxruntime_does_and_its_columns_are_what_weights_meet(
    make_net, groups, stride, pads, dilation
):
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(8, 4 // groups, 3, 3, generator=draw), torch.rand(3, 4, 9, 9, generator=draw)
    net = conv(make_net, weight, None, group=groups, strides=[stride] * 2, pads=pads, dilations=[dilation] * 2)
    (layer,) = net.layers
    (found,) = observed(net.model, ["out"], x.numpy(), 3)
    out = layer(x, weight)
    torch.testing.assert_close(out, torch.from_numpy(found["out"]))
    columns = layer.columns(x, weight)
    rows = layer.rows(weight).unflatten(0, (groups, -1))
    products = torch.einsum("gpf,gof->gop", columns, rows).flatten(0, 1)  # (out, positions)
    torch.testing.assert_close(products, out.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("biased", [True, False])
def test_what_rounding_adds_to_means_is_taken_out(make_net, biased):
    """All weights rounded down by half a step, as planted here, shift every output; padding counts exactly."""
    draw = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(5, 4, 3, 3, generator=draw), torch.randn(5, generator=draw)
    images = torch.rand(20, 4, 9, 9, generator=draw)
    added = torch.rand(5, 4, 3, 3, generator=draw)
    expected = (conv2d(images, weight + added, padding=1) - conv2d(images, weight, padding=1)).mean((0, 2, 3))
    net = conv(make_net, weight, bias if biased else None, pads=[1, 1, 1, 1])
    torch.testing.assert_close(drift(net.layers[0], images.mean(0), added), expected)

    means = {}
    for correct in (False, True):
        net = conv(make_net, weight, bias if biased else None, pads=[1, 1, 1, 1])
        exact = observed(net.model, ["out"], images.numpy(), 20)
        before = next(exact)["out"].mean((0, 2, 3))
        scheme = Scheme(reduce_range=False, per_channel=False, correct_bias=correct)
        settle(net, settled(net, images, scheme))
        means[correct] = np.abs(next(observed(net.model, ["out"], images.numpy(), 20))["out"].mean((0, 2, 3)) - before)
    assert means[False].max() > 1e-3
    assert means[True].max() < 1e-5


@pytest.mark.parametrize("bits", [8, 5, 4, 2])
@pytest.mark.parametrize("rounding", ["nearest", "learned"])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_the_file_holds_the_integers_that_were_chosen(exported, digits, tmp_path, rounding, mode, bits):
    images = next(digits.evaluation("val", 16)).x
    scheme = Scheme(bits=bits, reduce_range=False, rounding=rounding, correct_bias=True)
    ready = Ready(exported, images, scheme)
    file = ready.static(tmp_path / "q.onnx") if mode == "static" else ready.dynamic(tmp_path / "q.onnx")
    stored = [numpy_helper.to_array(tensor) for tensor in onnx.load(file.path).graph.initializer]
    stored = [array.astype(int) for array in stored if array.dtype in (np.int8, int4) and array.size > 64]
    assert len(stored) == len(ready.net.layers)
    assert max(np.abs(array).max() for array in stored) == 2 ** (bits - 1) - 1
    chosen = []
    for layer in ready.net.layers:
        if mode == "static" or layer.kind == "Gemm":
            rows = layer.rows(ready.net[layer.weight])
            alike = [each for array in stored if array.size == rows.size for each in (layer.rows(array), array.T)]
            chosen.append(any(np.allclose(multiples(each, rows), rows, rtol=1e-5) for each in alike))
    assert chosen
    assert all(chosen)


def multiples(integers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What they stand for, by steps for which the largest of each row are those of `rows`."""
    if integers.shape != rows.shape:
        return np.zeros_like(rows)
    return integers * np.abs(rows).max(1, keepdims=True) / np.abs(integers).max(1, keepdims=True).clip(1)


@pytest.mark.parametrize("per_channel", [True, False])
def test_few_integers_leave_the_least_error_of_all_steps(per_channel):
    rows = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)).double()
    rows[0] = 0
    scheme = Scheme(bits=3, reduce_range=False, per_channel=per_channel)
    found = steps(rows.float(), scheme).double()
    for group, step in zip(rows[1:] if per_channel else [rows], found[1:] if per_channel else [found], strict=True):
        ours, *others = (
            float((size * nearest(group, size, 3) - group).square().sum())
            for size in (step, *torch.linspace(0.2, 1.2, 400).double() * group.abs().max() / 3)
        )
        assert ours <= 1.01 * min(others)
        assert step < 0.9 * group.abs().max() / 3


def test_of_eight_bits_the_largest_weight_is_never_clipped():
    rows = torch.randn(6, 4000, generator=torch.Generator().manual_seed(0))
    rows[:, 0] = 100.0  # the squared error would rather lose it
    step = steps(rows, Scheme(reduce_range=False))
    assert (step * 127 >= 99.9).all()


@pytest.mark.parametrize("seed", range(8))
def test_learned_rounding_ends_where_most_inputs_are_dead(seed):
    """Nothing is gained by turning a weight that meets zeros, and rounding must not make it seem so."""
    draws = torch.Generator().manual_seed(seed)
    x = torch.relu(torch.randn(1, 512, generator=draws))
    rows = torch.randn(256, 512, generator=draws)
    moments = (x.T @ x)[None]
    step = steps(rows, Scheme(bits=4))
    found = learned(rows, step, 7, moments)
    assert (found - (rows / step).clamp(-7, 7)).abs().max() <= 1
