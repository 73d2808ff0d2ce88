from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import students
from kd.errors import InputError
from kd.losses.feature.sim_kd import Reclassified, projector
from kd.taps import ports
from students import Classifier, Replace, Resize

NORM = ("weight", "bias", "running_mean", "running_var")
NORMALIZE = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
LOAD_ALL = """
import sys, torch, students
from pathlib import Path
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[1])
x = load_file(folder / "x.safetensors")["x"]
state = torch.random.get_rng_state()
save_file({p.name: students.load(p)(x).detach() for p in folder.iterdir() if p.is_dir()}, folder / "y.safetensors")
assert torch.equal(state, torch.random.get_rng_state())
"""


def plain(name: str = "cifar_resnet20", width: float = 0.5) -> Classifier:
    torch.manual_seed(0)
    model = students.create(name, num_classes=5, image_size=16, width=width, normalize=NORMALIZE)
    model(torch.rand(8, 3, 16, 16))  # running statistics of its own
    return model.eval()


def prune(model: Classifier) -> Classifier:
    block, keep = model.net.layer1[1], torch.tensor([0, 2, 3, 7])
    weights = {f"layer1.1.bn1.{k}": v[keep] for k, v in block.bn1.state_dict().items() if v.dim()}
    weights["layer1.1.conv1.weight"] = block.conv1.weight.detach()[keep]
    weights["layer1.1.conv2.weight"] = block.conv2.weight.detach()[:, keep]
    edits = [
        Resize("layer1.1.conv1", {"out_channels": 4}, {"weight": [4, 8, 3, 3]}),
        Resize("layer1.1.bn1", {"num_features": 4}, {key: [4] for key in NORM}),
        Resize("layer1.1.conv2", {"in_channels": 4}, {"weight": [8, 4, 3, 3]}),
    ]
    students.edit(model, edits, weights)
    return model


def factorise(model: Classifier) -> Classifier:
    conv = model.net.layer1[1].conv1
    inputs, outputs = conv.in_channels, conv.out_channels
    tucker = [
        {"type": "Conv2d", "in_channels": inputs, "out_channels": 3, "kernel_size": 1, "bias": False},
        {"type": "Conv2d", "in_channels": 3, "out_channels": 3, "kernel_size": 3, "padding": 1, "bias": False},
        {"type": "Conv2d", "in_channels": 3, "out_channels": outputs, "kernel_size": 1, "bias": False},
    ]
    low = [
        {"type": "Linear", "in_features": 32, "out_features": 2, "bias": False},
        {"type": "Linear", "in_features": 2, "out_features": 5},
    ]
    students.edit(model, [Replace("layer1.1.conv1", tucker), Replace("linear", low)])
    return model


def reclassify(model: Classifier) -> Reclassified:
    """What SimKD ships of it."""
    told = ports(model, 3, (16, 16))
    return Reclassified(model, projector(told.stages[-1][0], 4, 8), nn.Linear(8, 5), (2, 1), told.last).eval()


def prune_a_factor(model: Classifier) -> Classifier:
    edits = [
        Resize("layer1.1.conv1.0", {"out_channels": 2}, {"weight": [2, 8, 1, 1]}),
        Resize("layer1.1.conv1.1", {"in_channels": 2}, {"weight": [3, 2, 3, 3]}),
    ]
    students.edit(model, edits)
    return model


def test_models_answer_exactly_alike_in_a_new_process(tmp_path: Path) -> None:
    models: dict[str, nn.Module] = {
        "plain": plain(),
        "pruned": prune(plain()),
        "factorised": factorise(plain()),
        "pruned_factorised": factorise(prune(plain())),
        "factorised_pruned": prune_a_factor(factorise(plain())),
        "mobilenet": plain("mobilenetv2_050"),
        "vit": plain("vit_tiny_patch16_224"),
        "pruned_reclassified": reclassify(prune(plain())),
        "reclassified_vit": reclassify(plain("vit_tiny_patch16_224")),
        "torchvision": plain("tv_mnasnet0_5", width=1.0),
        "reclassified_torchvision": reclassify(plain("tv_mnasnet0_5", width=1.0)),
    }
    x = torch.rand(3, 3, 16, 16)
    for name, model in models.items():
        students.save(model, tmp_path / name)
    save_file({"x": x}, tmp_path / "x.safetensors")
    subprocess.run([sys.executable, "-c", LOAD_ALL, str(tmp_path)], check=True)
    found = load_file(tmp_path / "y.safetensors")
    assert found.keys() == models.keys()
    for name, model in models.items():
        assert torch.equal(found[name], model(x)), name
        assert students.load(tmp_path / name).blueprint == students.adopt(model).blueprint


def test_comes_back_ready_for_training_and_with_its_types(tmp_path: Path) -> None:
    model = plain()
    model.net.double()
    students.save(model, tmp_path)
    again = students.load(tmp_path)
    assert not again.training
    assert all(p.requires_grad and p.dtype == torch.float64 for p in again.parameters())
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(again(x), model(x))


def test_saving_again_replaces(tmp_path: Path) -> None:
    students.save(plain(), tmp_path)
    students.save(prune(plain()), tmp_path)
    assert len(students.load(tmp_path).blueprint.edits) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blueprint.json", "model.safetensors"]


def other_width(plan: dict[str, object]) -> None:
    plan["width"] = 1.0


def other_depth(plan: dict[str, object]) -> None:
    plan["depth"] = 3.0


def other_mean(plan: dict[str, object]) -> None:
    plan["normalize"] = [[0.4, 0.5, 0.7], [0.2, 0.3, 0.4]]


def other_name(plan: dict[str, object]) -> None:
    plan["name"] = "cifar_resnet99"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_width, r"another architecture: conv1.weight is \(8, 3, 3, 3\), cifar_resnet20 needs \(16, 3, 3, 3\)"),
        (other_depth, r"cifar_resnet20 needs layer1.3.conv1.weight"),
        (other_mean, "altered"),
        (other_name, "cifar_resnet99: unknown"),
        (lambda plan: plan.pop("digest"), "altered"),
        (lambda plan: plan.pop("name"), "missing"),
    ],
)
def test_refuses_a_blueprint_of_another_model(
    tmp_path: Path, change: Callable[[dict[str, object]], None], message: str
) -> None:
    students.save(plain(), tmp_path)
    path = tmp_path / "blueprint.json"
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    with pytest.raises(InputError, match=message):
        students.load(tmp_path)


def flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type[Path.touch], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flipped, "altered"),
        (lambda content: content[:-7], "torn or no safetensors"),
        (lambda content: content[:3], "torn or no safetensors"),
        (lambda content: b"", "torn or no safetensors"),
        (lambda content: pickle.dumps({"conv1.weight": 3}), "torn or no safetensors"),
    ],
)
def test_refuses_weights_that_were_touched(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    students.save(plain(), tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        students.load(tmp_path)


@pytest.mark.parametrize("name", ["blueprint.json", "model.safetensors"])
def test_never_unpickles(tmp_path: Path, name: str) -> None:
    students.save(plain(), tmp_path)
    trap = {"conv1.weight": Trap(tmp_path / "sprung")}
    torch.save(trap, tmp_path / "weights.pt")
    for content in (pickle.dumps(trap), (tmp_path / "weights.pt").read_bytes()):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: is torn or no"):
            students.load(tmp_path)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "sprung").exists()  # so the trap works


@pytest.mark.parametrize("name", ["blueprint.json", "model.safetensors"])
def test_no_altered_byte_goes_unseen(tmp_path: Path, name: str) -> None:
    model = students.create("cifar_resnet8", num_classes=2, image_size=8, width=0.125).eval()
    students.edit(model, [Replace("linear", [{"type": "Linear", "in_features": 8, "out_features": 2}])])
    students.save(model, tmp_path)
    x = torch.rand(1, 3, 8, 8)
    path, expected = tmp_path / name, model(x)
    content = path.read_bytes()
    places = torch.linspace(0, len(content) - 1, 40).long().tolist()
    if name == "model.safetensors":  # its header as well: the length, the names, types, shapes and offsets
        places += [0, 7, *torch.linspace(8, 7 + int.from_bytes(content[:8], "little"), 40).long().tolist()]
    refused = 0
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            assert torch.equal(students.load(tmp_path)(x), expected)  # white space, or 1.0 written in another way
        except InputError:
            refused += 1
    assert refused > 0.8 * len(places)


@pytest.mark.parametrize(("old", "new"), [(b'"F32"', b'"I32"'), (b'"F32"', b'"U32"'), (b'"I64"', b'"F64"')])
def test_refuses_weights_whose_type_was_altered(tmp_path: Path, old: bytes, new: bytes) -> None:
    students.save(plain(), tmp_path)
    path = tmp_path / "model.safetensors"
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(InputError, match="was altered"):
        students.load(tmp_path)


def test_weights_are_taken_whole_but_for_what_is_optional() -> None:
    given, model = plain(), students.create("cifar_resnet20", num_classes=5, image_size=16, width=0.5).eval()
    state = {k: v for k, v in given.net.state_dict().items() if not k.endswith("num_batches_tracked")}
    with pytest.raises(InputError, match=r"file: is of another architecture: cifar_resnet20 needs bn1\.num_batches"):
        students.load_weights(model, state, "file")
    students.load_weights(model, state, "file", optional="num_batches_tracked")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.net(x), given.net(x))
    assert model.net.bn1.num_batches_tracked == 0
    state["head.bias"] = torch.zeros(5)
    with pytest.raises(InputError, match=r"cifar_resnet20 has no head\.bias"):
        students.load_weights(model, state, "file", optional="num_batches_tracked")


def test_saves_classifiers_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"only a students\.Classifier"):
        students.save(plain().net, tmp_path)


def test_refuses_the_weights_of_another_model(tmp_path: Path) -> None:
    students.save(plain(), tmp_path / "a")
    students.save(factorise(plain()), tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").rename(tmp_path / "a" / "model.safetensors")
    with pytest.raises(InputError, match=r"needs layer1\.1\.conv1\.weight"):
        students.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["blueprint.json", "model.safetensors"])
def test_says_which_file_is_missing(tmp_path: Path, name: str) -> None:
    students.save(plain(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name}: cannot be read"):
        students.load(tmp_path)


@pytest.mark.parametrize("text", ["", '{"name": ', "[]"])
def test_refuses_a_torn_blueprint(tmp_path: Path, text: str) -> None:
    students.save(plain(), tmp_path)
    (tmp_path / "blueprint.json").write_text(text)
    with pytest.raises(InputError, match="blueprint"):
        students.load(tmp_path)
