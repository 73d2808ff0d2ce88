"""The light designs, each by one name: from a small image to a file that runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import students
from compress import Export
from compress.export import TOLERANCE
from kd import taps
from kd.batch import Needs
from kd.data import DataConfig, load
from students import Blueprint

SIZE = 32
DESIGNS = {
    "MobileNetV2": "mobilenetv2_050",
    "MobileNetV3": "mobilenetv3_small_050",
    "MobileNetV4": "mobilenetv4_conv_small_050",
    "ShuffleNetV2": "tv_shufflenet_v2_x0_5",
    "SqueezeNet": "tv_squeezenet1_1",
    "MNASNet": "mnasnet_050",
    "GhostNet": "ghostnet_050",
    "EfficientNet-Lite": "efficientnet_lite0",
    "MobileOne": "mobileone_s0",
    "RepVGG": "repvgg_a0",
    "RepViT": "repvit_m1",
    "EdgeNeXt": "edgenext_xx_small",
    "MobileViT": "mobilevit_xxs",
    "TinyViT": "tiny_vit_5m_224",
    "StarNet": "starnet_s050",
}
NO_DEPTH = {"SqueezeNet"}  # no two of its blocks are alike


@pytest.fixture(scope="module")
def data():
    return load(DataConfig(image_size=SIZE))


def light(design, **factors):
    torch.manual_seed(0)
    return students.create(DESIGNS[design], num_classes=10, in_chans=1, image_size=SIZE, **factors)


def taught(model, data):
    """After a training step."""
    view = next(data.evaluation("train", 8))
    cross_entropy(model.train()(view.x), view.y).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    return model.eval()


@pytest.mark.parametrize("width", [pytest.param(1.0, marks=pytest.mark.slow), 0.5])
@pytest.mark.parametrize("design", DESIGNS)
def test_learns_and_is_read_and_comes_back(design, width, data, tmp_path):
    model = taught(light(design, width=width), data)
    x = next(data.evaluation("val", 4)).x
    ports = taps.ports(model, 1, (SIZE, SIZE))
    outputs = taps.read(model, x, Needs(embedding=True, stages=(-1,)))
    assert len(ports.stages) == len(outputs.stages) >= 3
    assert outputs.embedding.shape == (4, ports.embedding)
    assert outputs.logits.shape == (4, 10)
    students.save(model, tmp_path)
    assert torch.equal(students.load(tmp_path)(x), model(x))


OF_TORCHVISION = {"ShuffleNetV2", "SqueezeNet"}  # the others are exported in the slow tests


@pytest.mark.parametrize(
    "design", [pytest.param(each, marks=[] if each in OF_TORCHVISION else pytest.mark.slow) for each in DESIGNS]
)
def test_half_of_it_answers_alike_in_a_file(design, context, data):
    halves = {"width": 0.5} | ({} if design in NO_DEPTH else {"depth": 0.5})
    model = taught(light(design, **halves), data)
    images = next(data.evaluation("test", 64)).x
    exported, report = Export()(model, context(data=data))
    expected = model(images)
    assert not report.notes
    assert (exported(images) - expected).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("design", DESIGNS)
def test_shrinks(design):
    def params(**factors):
        model = Blueprint(DESIGNS[design], 100, image_size=SIZE, **factors).build("meta")
        return sum(parameter.numel() for parameter in model.parameters())

    assert 0.15 < params(width=0.5) / params() < 0.65
    if design not in NO_DEPTH:
        assert params(depth=0.5) / params() < 0.95
