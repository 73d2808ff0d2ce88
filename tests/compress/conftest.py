from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import students
from compress import Context, Export, OnnxModel
from compress.latency import torch_threads
from kd.data import Data, DataConfig, load
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import CrossEntropy


@pytest.fixture(scope="session")
def digits() -> Data:
    return load(DataConfig())


@pytest.fixture(scope="session")
def trained(digits: Data) -> nn.Module:
    """A small residual net that has learnt the digits in a few epochs. Tests must not change it."""
    torch.manual_seed(0)
    model = students.create("cifar_resnet8", num_classes=10, in_chans=1, image_size=8, normalize=((0.3,), (0.4,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    with torch_threads(1):  # of more another net comes out, and tests ask for figures of this one
        for epoch in range(4):
            for (view,) in digits.batches(epoch, batch_size=64):
                optimizer.zero_grad()
                cross_entropy(model(view.x), view.y).backward()
                optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def exported(trained: nn.Module, digits: Data, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The trained net as ONNX."""
    return Export().write(trained, digits, tmp_path_factory.mktemp("exported") / "model.onnx")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[type]]:
    """A clock of our own, where a share of the time is to be met: an image takes `milliseconds(name, model)`, of names
    "model" and "reference". Returns the types of what is measured, as they come."""

    def run(milliseconds: Callable[[str, object], float]) -> list[type]:
        seen: list[type] = []

        def timed(models: dict[str, object], shape: tuple[int, int, int], **_: object) -> dict[str, object]:
            seen.extend(map(type, models.values()))
            return {name: {"batch1": {"p50": milliseconds(name, model)}} for name, model in models.items()}

        monkeypatch.setattr("compress.target.latency", timed)
        return seen

    return run


@pytest.fixture
def context(digits: Data, tmp_path: Path) -> Callable[..., Context]:
    def make(**changes: object) -> Context:
        settings = {
            "data": digits,
            "teacher": None,
            "folder": tmp_path,
            "fit": Fit(epochs=1, trackers=()),
            "objective": lambda: Objective({"ce": Term(CrossEntropy())}),
        }
        return Context(**(settings | changes))

    return make
