from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import nn

import students
from compress.export import convert
from compress.onnx_model import OnnxModel, session_options, write
from compress.quantize.graph_module import GraphModule
from compress.quantize.integer import Ready, prepared
from compress.quantize.scheme import Scheme
from kd import taps
from kd.batch import Needs
from kd.errors import InputError

NETS = {
    "a residual net": ("cifar_resnet8", {}),
    "MobileNetV2": ("mobilenetv2_050", {"depth": 0.34, "width": 0.5}),
    "a vision transformer": ("vit_tiny_patch16_224", {"width": 0.34, "depth": 0.17}),
}


@pytest.fixture(scope="module", params=NETS)
def files(request, tmp_path_factory) -> tuple[OnnxModel, OnnxModel]:
    """A net in float and statically quantised."""
    torch.manual_seed(0)
    name, factors = NETS[request.param]
    folder, images = tmp_path_factory.mktemp("net"), torch.rand(8, 3, 32, 32)
    model = students.create(name, num_classes=10, image_size=32, **factors).eval()
    exported = write(convert(model, images, 18), folder / "float.onnx")
    return exported, write(Ready(exported, images, Scheme(reduce_range=True)).coded(), folder / "int8.onnx")


def literally(path, x: torch.Tensor) -> torch.Tensor:
    """What onnxruntime answers where it fuses nothing."""
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_a_float_file_answers_alike(files):
    exported, _ = files
    graph, x = GraphModule(prepared(exported.path)), torch.rand(5, 3, 32, 32)
    torch.testing.assert_close(graph(x), exported(x), rtol=1e-4, atol=1e-4 * float(exported(x).abs().max()))
    assert not list(graph.parameters())
    assert graph.image_shape == (3, 32, 32)


def test_a_quantised_file_answers_alike_but_for_sums_that_end_between_two_integers(files):
    _, small = files
    graph = GraphModule(onnx.load(small.path))
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found, expected = graph(x), literally(small.path, x)
    scale = next(float(graph.constant(code.scale)) for code in [graph.codes[graph._output]])
    assert (found - expected).abs().max() < 4.5 * scale
    assert ((found - expected).abs() < scale / 2).float().mean() > 0.6
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.85
    small_integers = found / scale
    torch.testing.assert_close(small_integers, small_integers.round(), rtol=0, atol=1e-3)


def test_losses_read_logits_and_the_embedding_and_no_stage_maps(files):
    exported, _ = files
    graph, x = GraphModule(prepared(exported.path)), torch.rand(3, 3, 32, 32)
    ports = taps.ports(graph, 3, (32, 32))
    assert (ports.classes, ports.stages) == (10, ())
    read = taps.read(graph, x, Needs(embedding=True))
    torch.testing.assert_close(read.logits, graph(x))
    assert read.embedding.shape == (3, ports.embedding)
    torch.testing.assert_close(graph.get_classifier()(read.embedding), graph(x))


def test_it_computes_in_full_precision_within_autocast(files):
    graph, x = GraphModule(prepared(files[0].path)), torch.rand(2, 3, 32, 32)
    expected = graph(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(graph(x.bfloat16().float()), graph(x.bfloat16()))
        assert graph(x).dtype == torch.float32
        assert torch.equal(graph(x), expected)


def test_a_classifier_that_averages_its_maps(tmp_path):
    """As SqueezeNet does."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = torch.rand(2, 3, 8, 8)
    graph = GraphModule(prepared(write(convert(net.eval(), x, 18), tmp_path / "net.onnx").path))
    read = taps.read(graph, x, Needs(embedding=True))
    torch.testing.assert_close(read.logits, net(x))
    torch.testing.assert_close(read.embedding, net[:2](x).mean((2, 3)))
    assert taps.ports(graph, 3, (8, 8)).classes == 10


def graph_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    weight = onnx.numpy_helper.from_array(torch.rand(10, 3, 8, 8).numpy(), "weight")
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", 1, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", 1, None)],
        [weight],
    )
    return helper.make_model(graph)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([("Conv", ["image", "weight"], "a"), ("Mish", ["a"], "logits")], "there is no gradient here of Mish"),
        (
            [("Conv", ["image", "weight"], "logits", {"auto_pad": "SAME_UPPER"})],
            "there is no gradient here of Conv with auto_pad SAME_UPPER",
        ),
        (
            [("Conv", ["image", "weight"], "a"), ("Softmax", ["a"], "logits", {"beta": 2.0})],
            "there is no gradient here of such a Softmax",
        ),
        ([("Flatten", ["image"], "logits")], "does not end in one classifier"),
        (
            [
                ("Relu", ["image"], "r"),
                ("Conv", ["image", "weight"], "a"),
                ("Conv", ["r", "weight"], "b"),
                ("Add", ["a", "b"], "logits"),
            ],
            "does not end in one classifier",
        ),
    ],
)
def test_what_it_cannot_run_is_refused_by_name(nodes, words):
    made = [helper.make_node(kind, inputs, [output], **dict(*rest)) for kind, inputs, output, *rest in nodes]
    with pytest.raises(InputError, match=words) as refused:
        GraphModule(graph_of(*made))
    assert refused.value.field == "quantize.mode"
