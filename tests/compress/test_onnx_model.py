from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from compress import OnnxModel
from compress.onnx_model import verify, write
from kd.errors import InputError


def test_any_batch_size_in_chunks_on_so_many_threads(exported, digits):
    x = torch.cat([view.x for view in digits.evaluation("val")] * 3)
    whole = exported(x)
    assert len(whole) == len(x) > 512
    torch.testing.assert_close(exported.on(2)(x[:7]), whole[:7], rtol=1e-5, atol=1e-5)
    assert exported.on(2).session.get_session_options().intra_op_num_threads == 2


def test_images_of_another_shape_are_refused(exported):
    with pytest.raises(InputError, match=r"images: \(3, 8, 8\): model.onnx takes \(1, 8, 8\)"):
        exported(torch.rand(2, 3, 8, 8))


def test_what_is_no_onnx_file_is_refused_by_name(tmp_path):
    (tmp_path / "other.onnx").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"other\.onnx"):
        _ = OnnxModel(tmp_path / "other.onnx").session
    with pytest.raises(InputError, match=r"none.onnx: there is no such file"):
        verify(tmp_path / "none.onnx")


def test_the_seal_survives_rewriting_but_no_change(exported, tmp_path):
    model = write(onnx.load(exported.path), tmp_path / "model.onnx")
    verify(model.path)
    assert model.path.read_bytes() == exported.path.read_bytes()

    content = exported.path.read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        altered = bytearray(content)
        altered[place] ^= 1
        model.path.write_bytes(altered)
        with pytest.raises(InputError, match="truncated or altered"):
            verify(model.path)
    for size in (0, 50, len(content) - 1):
        model.path.write_bytes(content[:size])
        with pytest.raises(InputError, match="truncated or altered"):
            verify(model.path)


def test_an_operator_that_the_runtime_lacks_is_named(tmp_path):
    image, logits = (onnx.helper.make_tensor_value_info(name, 1, ["n", 3]) for name in ("image", "logits"))
    node = onnx.helper.make_node("Fancy", ["image"], ["logits"], domain="strange")
    opsets = [onnx.helper.make_opsetid(domain, 1) for domain in ("ai.onnx.ml", "strange")]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [image], [logits]), opset_imports=opsets)
    with pytest.raises(InputError, match=r"onnxruntime cannot load it: .*strange:Fancy"):
        _ = write(model, tmp_path / "model.onnx").session


def foreign(path, shape, kind=onnx.TensorProto.FLOAT):
    """Adds up the pixels of an image, as three logits, in a file of another program."""
    image = onnx.helper.make_tensor_value_info("x", kind, shape)
    logits = onnx.helper.make_tensor_value_info("y", kind, [shape[0], 3])
    nodes = [
        onnx.helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=0),
        onnx.helper.make_node("Unsqueeze", ["sum", "one"], ["column"]),
        onnx.helper.make_node("Concat", ["column"] * 3, ["y"], axis=1),
    ]
    stored = {"axes": np.arange(1, len(shape)), "one": np.array([1])}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = onnx.helper.make_graph(nodes, "g", [image], [logits], tensors)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)
    return OnnxModel(path)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_file_of_others_with_a_fixed_batch_takes_any(batch, tmp_path):
    x = torch.rand(10, 1, 8, 8)
    found = foreign(tmp_path / "x.onnx", [batch, 1, 8, 8])(x)
    torch.testing.assert_close(found, x.sum((1, 2, 3))[:, None].expand(10, 3))


@pytest.mark.parametrize(
    ("shape", "kind", "told"),
    [
        (["n", 64], onnx.TensorProto.FLOAT, r"takes x: tensor\(float\) \['n', 64\], not one"),
        (["n", 1, 8, 8], onnx.TensorProto.DOUBLE, r"takes x: tensor\(double\)"),
    ],
)
def test_a_file_of_others_that_takes_no_images_is_refused(shape, kind, told, tmp_path):
    with pytest.raises(InputError, match=told):
        foreign(tmp_path / "x.onnx", shape, kind)(torch.rand(2, 1, 8, 8))


def test_what_fails_as_it_runs_is_told(tmp_path):
    model = foreign(tmp_path / "x.onnx", ["n", 1, 8, 8])
    graph = onnx.load(model.path)
    graph.graph.node[1].op_type = "Reshape"  # of several sums to one
    onnx.save(graph, model.path)
    with pytest.raises(InputError, match=r"x\.onnx: onnxruntime cannot "):
        OnnxModel(model.path)(torch.rand(2, 1, 8, 8))
