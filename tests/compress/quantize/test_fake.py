from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.quantize.fake import fake_quantized, integers


def by_onnxruntime(x: torch.Tensor, scale: torch.Tensor, zero: int, kind: type, axis: int) -> np.ndarray:
    zeros = np.full(scale.shape, zero, kind)
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=axis)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("q", helper.np_dtype_to_tensor_dtype(np.dtype(kind)), list(x.shape))],
        [numpy_helper.from_array(scale.numpy(), "scale"), numpy_helper.from_array(zeros, "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]


@pytest.mark.parametrize("scale", [0.0123, 0.5])
@pytest.mark.parametrize(("kind", "zero"), [(np.uint8, 0), (np.uint8, 117), (np.uint8, 255), (np.int8, 0)])
def test_integers_are_those_of_onnxruntime_ties_and_all(scale, kind, zero):
    draws = torch.Generator().manual_seed(0)
    halves = torch.arange(-600, 600) / 2 * scale  # between two integers
    x = torch.cat([torch.randn(20_000, generator=draws) * 100 * scale, halves])
    limits = np.iinfo(kind)
    found = integers(x, torch.tensor(scale), limits.min - zero, limits.max - zero) + zero
    assert np.array_equal(found.numpy(), by_onnxruntime(x, torch.tensor(scale), zero, kind, 0).astype(float))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_each_slice_has_its_scale(axis):
    x = torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.01, 0.3, 6)
    found = integers(x, scale, -128, 127, axis)
    assert np.array_equal(found.numpy(), by_onnxruntime(x, scale, 0, np.int8, axis).astype(float))
    assert torch.equal(
        fake_quantized(x, scale, -128, 127, axis), found * scale.view([6 if p == axis % 3 else 1 for p in range(3)])
    )


@pytest.mark.parametrize(("low", "high", "samples"), [(-7, 7, 1), (0, 15, 3), (-3, 12, 2)])
def test_gradients_are_the_papers(low, high, samples):
    """Esser et al. 2020, equations 3 and 5, in plain loops."""
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(6, 5, generator=draws, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.11, dtype=torch.float64, requires_grad=True)
    flow = torch.randn(6, 5, generator=draws, dtype=torch.float64)
    out = fake_quantized(x, scale, low, high, samples=samples)
    out.backward(flow)

    total = 0.0
    for row, passed, told, made in zip(x.tolist(), flow.tolist(), x.grad.tolist(), out.tolist(), strict=True):
        for v, g, found, y in zip(row, passed, told, made, strict=True):
            step = v / 0.11
            inside = low < step < high
            assert found == pytest.approx(g if inside else 0.0)
            assert y == pytest.approx(0.11 * min(max(round(step), low), high))
            total += g * (round(step) - step if inside else low if step <= low else high)
    assert scale.grad.item() == pytest.approx(total / math.sqrt(30 / samples * max(-low, high)))


def test_gradients_of_scales_are_those_of_their_slices():
    draws = torch.Generator().manual_seed(2)
    x, flow = torch.randn(4, 3, generator=draws), torch.randn(4, 3, generator=draws)
    scale = torch.tensor([0.02, 0.1, 0.4], requires_grad=True)
    fake_quantized(x, scale, -7, 7, axis=1).backward(flow)
    for place in range(3):
        one = scale[place].detach().clone().requires_grad_()
        fake_quantized(x[:, place], one, -7, 7).backward(flow[:, place])
        torch.testing.assert_close(scale.grad[place], one.grad)
