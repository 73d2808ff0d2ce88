from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from compress.quantize.net import Net


@pytest.fixture(scope="session")
def make_net() -> Callable[..., Net]:
    """A net of `nodes` from "image", of one image's `shape`, to "out"."""

    def make(nodes: Sequence[NodeProto], weights: Mapping[str, np.ndarray], shape: Sequence[int]) -> Net:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        arrays = [numpy_helper.from_array(array, name) for name, array in weights.items()]
        graph = helper.make_graph(nodes, "g", [image], [out], arrays)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        return Net(onnx.shape_inference.infer_shapes(model, strict_mode=True))

    return make


@pytest.fixture(scope="session")
def uneven(trained: nn.Module) -> nn.Module:
    """The same function as `trained`, of which one channel in each stage is so large that eight bits leave the others a
    few."""
    made = copy.deepcopy(trained)
    with torch.no_grad():
        for block in (made.net.get_submodule(f"layer{stage}.0") for stage in (1, 2, 3)):
            block.bn1.weight[0] *= 200
            block.bn1.bias[0] *= 200
            block.conv2.weight[:, 0] /= 200
    return made
