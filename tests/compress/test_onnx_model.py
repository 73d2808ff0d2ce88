from __future__ import annotations

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
