from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from compress import Export, TorchExport
from compress.exporter import TOLERANCE, agreement, metadata
from kd.errors import InputError

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Rounding(nn.Module):
    """Adds a large number to the logits of bright images and takes it off again: single precision loses digits."""

    def __init__(self, bright: float) -> None:
        super().__init__()
        self.fc, self.bright = nn.Linear(64, 10), bright

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        far = 2.0**18 * (x.amax((1, 2, 3)) > self.bright)[:, None]
        return self.fc(x.flatten(1)) + far - far


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Rounding(0.5).eval()


@pytest.fixture
def images():
    x = X.clone()
    x[0] *= 0.4  # of this one no digit is lost
    return x


def exact(model, x):
    return copy.deepcopy(model).double()(x.double()).detach()


def test_within_the_tolerance_is_alike(model, images):
    answer = model(images).detach()
    scale = float(answer.abs().max())
    assert agreement(answer, model, images) == (True, 0.0)
    alike, error = agreement(answer + 0.5 * TOLERANCE * scale, model, images)
    assert alike
    assert error == pytest.approx(0.5 * TOLERANCE, rel=0.05)


def test_what_is_nearer_to_double_precision_than_torch_is_alike(model, images):
    truth = exact(model, images)
    alike, error = agreement(truth.float(), model, images)
    assert error > 10 * TOLERANCE, "torch itself strays that far"
    assert alike


def test_a_fault_is_told_from_rounding(model, images):
    truth = exact(model, images)
    own = (model(images).detach() - truth).abs().amax(1)
    assert own[0] < own[1:].min() / 1000
    for image in range(4):
        found = truth.clone()
        found[image, 3] += 3 * max(float(own[image]), TOLERANCE * float(truth.abs().max()))
        assert not agreement(found.float(), model, images)[0], image


def test_where_torch_strays_on_every_image_nothing_is_excused(images):
    torch.manual_seed(0)
    model = Rounding(0.0).eval()
    assert not agreement(exact(model, images).float(), model, images)[0]


def test_what_is_no_number_or_has_no_double_precision_is_not_alike(model, images):
    found = model(images).detach()
    assert not agreement(found * float("nan"), model, images)[0]
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    single.double = lambda: single
    assert not agreement(single(images).detach() + 1, single, images)[0]


class Answers(nn.Module):
    """Gives what `change` makes of logits."""

    def __init__(self, change) -> None:
        super().__init__()
        self.fc, self.change = nn.Linear(64, 10), change

    def forward(self, x):
        return self.change(self.fc(x.flatten(1)))


def fail(logits):
    raise RuntimeError("no such image")


@pytest.mark.parametrize("stage", [Export, TorchExport])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda logits: (logits, logits), "answers with a tuple, where"),
        (lambda logits: logits[:, 0], r"answers of \(\d+,\), where"),
        (lambda logits: logits[:, :9], "knows 9 classes, the data has 10"),
        (lambda logits: logits / 0, "gives NaN or infinite logits"),
        (fail, r"fails on images of \(\d+, 1, 8, 8\): RuntimeError\('no such image'\)"),
    ],
)
def test_answers_of_another_kind_are_refused_before_anything_is_written(stage, change, told, digits, tmp_path):
    with pytest.raises(InputError, match=told):
        stage().write(Answers(change).eval(), digits, tmp_path / "model.x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", [Export, TorchExport])
def test_weights_that_are_computed_from_others_become_plain(stage, digits, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        weight_norm(nn.Conv2d(1, 4, 3)), nn.BatchNorm2d(4), nn.Flatten(), spectral_norm(nn.Linear(144, 10))
    ).eval()
    images = next(digits.evaluation("val", 8)).x
    expected = net(images).detach()
    found = stage().write(net, digits, tmp_path / "model.x")(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(net(images), expected), "the model that was given computes its weights as before"


def test_one_image_alone_is_compared_too(model, images):
    stage = Export()
    stage_check = super(Export, stage).check
    stage_check(lambda x: model(x).detach(), model, images, None)
    with pytest.raises(InputError, match="answers otherwise in ONNX"):
        stage_check(lambda x: model(x).detach() + (len(x) == 1), model, images, None)


def test_the_size_is_told_as_height_and_width(model):
    facts = SimpleNamespace(names=("a",), channels=1, image_size=(8, 16))
    assert metadata(model, SimpleNamespace(facts=facts))["image_size"] == "[8, 16]"
