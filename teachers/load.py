"""`load`: a teacher from whatever names one."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import students
from kd.console import say
from kd.errors import InputError
from kd.evaluate import inference
from students.packing import unpack
from teachers.ensemble import Ensemble
from teachers.teacher import Teacher

Normalize = tuple[Sequence[float], Sequence[float]]
FILES = {".safetensors", ".pt", ".pth", ".bin"}
NESTED = ("state_dict", "model")  # where training scripts put the weights in a checkpoint


def load(
    source: str | Path | Sequence[str | Path],
    *,
    classes: int,
    channels: int = 3,
    image_size: int | None = None,
    architecture: str | None = None,
    normalize: Normalize | None = None,
) -> Teacher | Ensemble:
    """The teacher that `source` names; a list of sources gives an ensemble.

    A source is one of:

    - a model folder (`students.save`), or a run folder that holds one as `teacher/` or `student/`;
    - a weights file, `.safetensors` or a weights-only checkpoint (`.pt`, `.pth`, `.bin`): it does not tell its
      `architecture` and `normalize` (mean and std, a value a channel, of pixels in [0, 1]), so these must be given;
    - the name of a pretrained model of timm, or of torchvision as `tv_<name>`.

    Args:
        classes, channels: of the data. A teacher of colour images sees grey ones with the channel repeated.
        image_size: resolution at which the teacher works; None: its own.

    Raises InputError where the source cannot be read, or the teacher knows another number of classes or cannot take
    images of that size.
    """
    one = partial(
        _one,
        classes=classes,
        channels=channels,
        image_size=image_size,
        architecture=architecture,
        normalize=normalize,
    )
    return one(str(source)) if isinstance(source, (str, Path)) else Ensemble([one(str(each)) for each in source])


def _one(
    source: str,
    classes: int,
    channels: int,
    image_size: int | None,
    architecture: str | None,
    normalize: Normalize | None,
) -> Teacher:
    path = Path(source)
    if path.is_dir():
        with _telling({"model": "teacher.source", "blueprint": "teacher.source"}):
            model = students.load(_model_folder(path))
    elif path.suffix in FILES:
        model = _from_weights(path, classes, image_size, architecture, normalize)
    else:
        model = _pretrained(source, classes, image_size)
    plan = model.blueprint
    if plan.num_classes != classes:
        raise _other_classes(source, plan.num_classes, classes)
    if channels not in (1, plan.in_chans):
        raise InputError("teacher.source", source, f"takes {plan.in_chans} channels, the data has {channels}")
    side = image_size or plan.image_size
    try:
        with inference(model):
            model(torch.zeros(1, plan.in_chans, side, side))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError("teacher.image_size", side, f"{plan.name} cannot take it ({error})") from error
    return Teacher(model, image_size=side, channels=plan.in_chans)


def _other_classes(source: str, found: int, classes: int) -> InputError:
    return InputError("teacher.source", source, f"knows {found} classes, the data has {classes}")


def _model_folder(path: Path) -> Path:
    for folder in (path, path / "teacher", path / "student"):
        if (folder / "blueprint.json").exists():
            return folder
    raise InputError("teacher.source", str(path), "holds no blueprint.json, nor do teacher/ and student/ in it")


def _pretrained(name: str, classes: int, image_size: int | None) -> students.Classifier:
    found = _pretrained_classes(name)
    if found is None:
        allowed = "is no file, no folder and no model with pretrained weights in timm or torchvision (tv_<name>)"
        raise InputError("teacher.source", name, allowed)
    if found != classes:
        raise _other_classes(name, found, classes)
    say(f"loading the pretrained weights of {name}")
    with _telling({"student.name": "teacher.source"}):
        return students.create(name, num_classes=classes, image_size=image_size, pretrained=True)


def _pretrained_classes(name: str) -> int | None:
    """How many classes the published weights know; None where there are none."""
    if name.startswith("tv_"):
        from torchvision import models

        if name[3:] not in models.list_models():
            return None
        return len(models.get_model_weights(name[3:]).DEFAULT.meta["categories"])
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name) else None
    return config.num_classes if config is not None and config.has_weights else None


def _from_weights(
    path: Path, classes: int, image_size: int | None, architecture: str | None, normalize: Normalize | None
) -> students.Classifier:
    if not path.is_file():
        raise InputError("teacher.source", str(path), "no such file")
    bare = f"{path.name} holds weights only"
    if architecture is None:
        raise InputError("teacher.architecture", "null", f"{bare}: name the model that they are for")
    if normalize is None:
        raise InputError("teacher.normalize", "null", f"{bare}: give the mean and std of its inputs")
    weights = _read(path)
    with _telling({"student.name": "teacher.architecture", "normalize": "teacher.normalize"}):
        model = students.create(
            architecture, num_classes=classes, in_chans=len(normalize[0]), image_size=image_size, normalize=normalize
        )
    expected = model.net.state_dict()
    others = [name for name in expected if name in weights and weights[name].shape != expected[name].shape]
    if others and all(_is_head(weights[name], expected[name], classes) for name in others):
        raise _other_classes(str(path), len(weights[others[0]]), classes)
    with _telling({"model": "teacher.source"}):
        # counts of training steps, on which no answer depends, may be missing
        students.load_weights(model, weights, str(path), optional="num_batches_tracked")
    return model


def _is_head(found: Tensor, expected: Tensor, classes: int) -> bool:
    """Whether two tensors of other shapes would fit but for the number of classes."""
    return found.shape[1:] == expected.shape[1:] and len(expected) == classes


@contextmanager
def _telling(names: dict[str, str]) -> Iterator[None]:
    """Errors about a field of students are told of the field that the user gave."""
    try:
        yield
    except InputError as error:
        raise InputError(names.get(error.field, error.field), error.value, error.allowed) from error


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by name. No code in it is run."""
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = unpack(path.read_bytes())
        else:
            with warnings.catch_warnings(action="ignore"):  # what is odd about a file is said once, in the error
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        allowed = "holds pickled code, which is never run: save its state_dict()"
        raise InputError("teacher.source", str(path), allowed) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise InputError("teacher.source", str(path), f"is torn or holds no weights ({error})") from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError("teacher.source", str(path), "holds no state dict, neither at the top nor under 'state_dict'")
    return {name.removeprefix("module."): value for name, value in content.items()}
