from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from compress import TorchExport, TorchModel, latency, load_artefact, measure, save_artefact
from compress.exporter import TOLERANCE
from kd.errors import InputError

ALONE = """
import json, sys
import numpy as np, torch
facts = {"retort.json": ""}
module = torch.export.load(sys.argv[1], extra_files=facts).module()
images = torch.from_numpy(np.load(sys.argv[2]))
for size in (1, 3, 64):
    np.save(f"{sys.argv[2]}.{size}.npy", module(images[:size]).detach().numpy())
assert not {"compress", "students", "timm"} & set(sys.modules)
print(facts["retort.json"])
"""


@pytest.fixture(scope="module")
def file(trained, digits, tmp_path_factory):
    return TorchExport().write(trained, digits, tmp_path_factory.mktemp("program") / "model.pt2")


def test_the_file_alone_answers_as_the_model_does(trained, digits, file, tmp_path):
    """In a process of its own that knows torch and none of the code that made it, at several batch sizes."""
    images = next(digits.evaluation("test", 64)).x
    np.save(tmp_path / "images.npy", images.numpy())
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(file.path), str(tmp_path / "images.npy")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        expected = trained(images)
    for size in (1, 3, 64):
        found = np.load(tmp_path / f"images.npy.{size}.npy")
        assert found.shape == (size, 10)
        assert np.abs(found - expected[:size].numpy()).max() < TOLERANCE * expected.abs().max()
    facts = json.loads(ran.stdout)
    assert json.loads(facts["classes"]) == [str(digit) for digit in range(10)]
    assert (facts["channels"], json.loads(facts["image_size"])) == ("1", [8, 8])
    assert json.loads(facts["normalize"]) == [[0.3], [0.4]]


def test_it_is_an_artefact_with_costs_and_a_latency(trained, digits, file, tmp_path):
    save_artefact(file, tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt2"]
    loaded = load_artefact(tmp_path)
    assert isinstance(loaded, TorchModel)
    x = torch.cat([view.x for view in digits.evaluation("val")] * 2)
    with torch.no_grad():
        assert torch.allclose(loaded(x), trained(x), atol=1e-3)
        assert torch.equal(loaded.on(1)(x[:5]), file.on(1)(x[:5]))

    cost, whole = measure(loaded, (1, 8, 8)), measure(trained, (1, 8, 8))
    norms = [module for module in trained.modules() if isinstance(module, nn.BatchNorm2d)]
    assert cost.params == whole.params - sum(norm.num_features for norm in norms), "two vectors became one bias"
    assert cost.macs == whole.macs
    assert cost.file_bytes == loaded.path.stat().st_size
    times = latency({"file": loaded}, (1, 8, 8), (1,), repeats=2, seconds=0)["file"]
    assert times["runtime"] == "torch.export"
    assert times["batch1"]["p50"] > 0


def tensors(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: info.file_size for info in archive.infolist() if "data/" in info.filename}


class Idle(nn.Module):
    """Two layers and one that nothing reads, with a norm that cannot be folded and counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc, self.idle = nn.BatchNorm2d(1), nn.Linear(64, 10), nn.Linear(300, 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.norm(x).flatten(1))


def test_the_file_holds_what_is_read_and_no_more(file, digits, tmp_path):
    for model in (file, TorchExport().write(Idle().eval(), digits, tmp_path / "model.pt2")):
        names = tensors(model.path)
        stored = sum(size for name, size in names.items() if "/weight_" in name or "/tensor_" in name)
        told = 4 * model.count().params
        assert told <= stored <= told + 4 * 4, "also the mean and deviation of pixels, or of a norm"
        assert sum(size for name, size in names.items() if "sample_inputs" in name) == 0


def test_it_tells_nothing_of_this_machine_and_has_no_norms(file):
    content = file.path.read_bytes()
    for word in (b"site-packages", b".py", b"batch_norm"):
        assert word not in content
    assert b"conv2d" in content


class Branching(Idle):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.mean() > 0 else -x)


class Treacherous(Idle):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + float(torch.compiler.is_compiling())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branching(), r"export: Branching: torch.export cannot follow it: "),
        (Treacherous(), r"export: Treacherous: answers otherwise in torch.export: \d.*of the logits' scale"),
        (nn.Flatten(), r"model: Flatten: knows 64 classes, the data has 10"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_written(context, tmp_path, model, message):
    with pytest.raises(InputError, match=message):
        TorchExport()(model.eval(), context())
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_not_exported_again_and_other_images_are_refused(file, context, tmp_path):
    with pytest.raises(InputError, match=r"TorchExport: .*model.pt2 is exported already"):
        TorchExport()(file, context())
    with pytest.raises(InputError, match=r"images: \(3, 8, 8\): model.pt2 takes \(1, 8, 8\)"):
        file(torch.rand(2, 3, 8, 8))
    (tmp_path / "other.pt2").write_bytes(b"hello")
    with pytest.raises(InputError, match=r"other.pt2: torch.export cannot load it"):
        TorchModel(tmp_path / "other.pt2")(torch.rand(2, 1, 8, 8))
