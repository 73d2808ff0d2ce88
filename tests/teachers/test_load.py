from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import students
from kd.errors import InputError
from teachers import Ensemble, Teacher, load

NAME = "cifar_resnet8"
NORMALIZE = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.2))
FILE = {"classes": 10, "architecture": NAME, "normalize": NORMALIZE}


@pytest.fixture
def model() -> students.Classifier:
    torch.manual_seed(0)
    return students.create(NAME, num_classes=10, normalize=NORMALIZE).eval()


def images(channels: int = 3) -> Tensor:
    return torch.rand(4, channels, 32, 32, generator=torch.Generator().manual_seed(0))


def assert_same(teacher: Any, model: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(teacher.predict(images()), model(images()), rtol=1e-4, atol=1e-5)


def bare(model: students.Classifier) -> dict[str, Tensor]:
    return {name: value for name, value in model.net.state_dict().items() if "num_batches" not in name}


def test_a_safetensors_file_of_a_named_architecture(model: students.Classifier, tmp_path: Path) -> None:
    save_file(bare(model), tmp_path / "w.safetensors")
    teacher = load(str(tmp_path / "w.safetensors"), **FILE)
    assert_same(teacher, model)
    assert isinstance(teacher, Teacher)
    assert (teacher.image_size, teacher.channels) == (32, 3)


def test_the_weights_file_of_a_sparse_model(model: students.Classifier, tmp_path: Path) -> None:
    with torch.no_grad():
        model.net.layer1[0].conv1.weight[1:] = 0
    students.save(model, tmp_path)
    assert load_file(tmp_path / "model.safetensors")["layer1.0.conv1.weight"].dim() == 1
    assert_same(load(str(tmp_path / "model.safetensors"), **FILE), model)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": {f"module.{name}": value for name, value in weights.items()}},
    ],
)
def test_a_weights_only_checkpoint(model: students.Classifier, tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    torch.save(wrap(model.net.state_dict()), tmp_path / "w.pth")
    assert_same(load(str(tmp_path / "w.pth"), **FILE), model)


@pytest.mark.parametrize("below", ["", "teacher", "student"])
def test_a_model_folder_or_a_run_folder(model: students.Classifier, tmp_path: Path, below: str) -> None:
    students.save(model, tmp_path / below)
    assert_same(load(str(tmp_path), classes=10), model)


def test_a_list_is_an_ensemble(model: students.Classifier, tmp_path: Path) -> None:
    students.save(model, tmp_path / "a")
    students.save(students.create(NAME, num_classes=10), tmp_path / "b")
    both = load([str(tmp_path / "a"), str(tmp_path / "b")], classes=10)
    assert isinstance(both, Ensemble)
    mean = (load(str(tmp_path / "a"), classes=10).predict(images()) + both.teachers[1].predict(images())) / 2
    torch.testing.assert_close(both.predict(images()), mean)


def test_a_teacher_of_colour_sees_grey_images_at_its_own_resolution(model: students.Classifier, tmp_path: Path) -> None:
    students.save(model, tmp_path)
    teacher = load(str(tmp_path), classes=10, channels=1)
    grey = images(1)
    torch.testing.assert_close(teacher.predict(grey), teacher.predict(grey.repeat(1, 3, 1, 1)))
    assert teacher.predict(grey[..., :16, :16]).shape == (4, 10)


@pytest.mark.parametrize(
    ("name", "registry"), [("resnet18", "timm"), ("tv_squeezenet1_1", "torchvision"), ("resnet18.a1_in1k", "timm")]
)
def test_pretrained_names_ask_for_their_weights(name: str, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nowhere")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "/nowhere")
    with pytest.raises(InputError, match=rf"^teacher\.source: {name}: .*weights cannot be had"):
        load(name, classes=1000)


def test_pretrained_weights_are_loaded_with_their_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    published = timm.create_model("resnet18").eval()
    monkeypatch.setattr(
        "timm.models._builder.load_pretrained", lambda net, **_: net.load_state_dict(published.state_dict())
    )
    teacher = load("resnet18", classes=1000)
    assert isinstance(teacher, Teacher)
    assert teacher.image_size == 224
    x = torch.rand(2, 3, 224, 224)
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (published.default_cfg["mean"], published.default_cfg["std"])
    )
    with torch.no_grad():
        torch.testing.assert_close(teacher.predict(x), published((x - mean) / std), rtol=1e-4, atol=1e-4)


class Opaque:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


def _write(content: Any) -> Callable[[Path, students.Classifier], None]:
    def write(path: Path, model: students.Classifier) -> None:
        torch.save(content(model) if callable(content) else content, path)

    return write


def _drop(model: students.Classifier) -> Any:
    weights = dict(bare(model))
    return weights if weights.pop("conv1.weight") is not None else None


def _other(**kwargs: Any) -> Callable[[students.Classifier], Any]:
    return lambda model: students.create(**{"name": NAME, "num_classes": 10} | kwargs).net.state_dict()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_write(_drop), "needs conv1.weight"),
        (_write(lambda model: bare(model) | {"extra.weight": torch.zeros(1)}), "has no extra.weight"),
        (_write(_other(name="cifar_resnet20")), "has no "),
        (_write(_other(width=2.0)), "is of another architecture: conv1.weight is"),
        (_write(_other(num_classes=7)), "knows 7 classes, the data has 10"),
        (_write({"state_dict": 3}), "holds no state dict"),
        (_write(Opaque()), "pickled code"),
        (_write(lambda model: model), "pickled code"),
        (lambda path, model: path.write_bytes(pickle.dumps(Opaque())), "pickled code"),
        (lambda path, model: (_write(bare)(path, model), path.write_bytes(path.read_bytes()[:-999])), "torn"),
        (lambda path, model: path.write_bytes(b""), "torn"),
        (lambda path, model: None, "no such file"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    model: students.Classifier,
    tmp_path: Path,
    write: Callable[[Path, students.Classifier], None],
    words: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "w.pth"
    write(path, model)
    with pytest.raises(InputError) as caught:
        load(str(path), **FILE)
    message = str(caught.value)
    assert message.startswith(f"teacher.source: {path}: ")
    assert words in message
    assert "\n" not in message
    assert "code ran" not in capfd.readouterr().out


def test_a_torn_safetensors_file_is_refused(model: students.Classifier, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(bare(model), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"teacher\.source: .*torn"):
        load(str(path), **FILE)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"architecture": None}, "teacher.architecture"),
        ({"architecture": "resnet1"}, "teacher.architecture"),
        ({"normalize": None}, "teacher.normalize"),
        ({"normalize": ((0.5,) * 3, (0.0,) * 3)}, "teacher.normalize"),
    ],
)
def test_what_a_bare_file_does_not_tell_must_be_given(
    model: students.Classifier, tmp_path: Path, changed: dict[str, Any], field: str
) -> None:
    save_file(bare(model), tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load(str(tmp_path / "w.safetensors"), **FILE | changed)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("source", "classes", "words"),
    [
        ("no_such_net", 10, "no file, no folder and no model"),
        ("tv_no_such_net", 10, "no file, no folder and no model"),
        ("cifar_resnet20", 10, "no file, no folder and no model with pretrained weights"),
        ("resnet18", 10, "knows 1000 classes, the data has 10"),
        ("tv_squeezenet1_1", 10, "knows 1000 classes, the data has 10"),
    ],
)
def test_a_name_that_cannot_teach_is_refused_before_any_download(source: str, classes: int, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(source, classes=classes)
    assert caught.value.field == "teacher.source"
    assert words in str(caught.value)


def test_folders_without_a_model_or_with_other_classes_or_channels(model: students.Classifier, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"blueprint\.json"):
        load(str(tmp_path / "empty"), classes=10)
    students.save(model, tmp_path / "m")
    with pytest.raises(InputError, match="knows 10 classes, the data has 5"):
        load(str(tmp_path / "m"), classes=5)
    with pytest.raises(InputError, match="takes 3 channels, the data has 4"):
        load(str(tmp_path / "m"), classes=10, channels=4)
    with pytest.raises(InputError, match="at least one"):
        load([], classes=10)


def test_another_resolution_is_taken_where_the_net_can_and_refused_where_not(
    model: students.Classifier, tmp_path: Path
) -> None:
    students.save(model, tmp_path / "m")
    teacher = load(tmp_path / "m", classes=10, image_size=48)
    assert (teacher.image_size, teacher.predict(images()).shape) == (48, (4, 10))
    fixed = students.create("vit_tiny_patch16_224", num_classes=10, image_size=32, width=0.34, depth=0.1)
    students.save(fixed, tmp_path / "vit")
    assert load(tmp_path / "vit", classes=10).predict(images()).shape == (4, 10)
    with pytest.raises(InputError, match=r"teacher\.image_size: 48: vit_tiny_patch16_224 cannot take it"):
        load(tmp_path / "vit", classes=10, image_size=48)
