"""An artefact in a folder: a Classifier as blueprint.json and model.safetensors, or one file as model.onnx alone."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import students
from compress.coded_model import CodedModel
from compress.file_model import FileModel
from compress.mobile import MobileModel
from compress.onnx_model import OnnxModel
from compress.torch_model import TorchModel
from kd.errors import InputError
from students.storage import PLAN, WEIGHTS

FILES: dict[str, type[FileModel]] = {kind.file: kind for kind in (OnnxModel, TorchModel, MobileModel, CodedModel)}
ONNX = OnnxModel.file


def save_artefact(model: nn.Module | FileModel, folder: Path) -> None:
    """Write a model into `folder`, atomically; a file that is already there stays."""
    if isinstance(model, FileModel):
        model.save(folder)
    elif isinstance(model, students.Classifier):
        students.save(model, folder)
    else:
        raise TypeError(f"an artefact is a students.Classifier or a file, not {type(model).__name__}")


def load_artefact(path: Path) -> nn.Module | FileModel:
    """Read what `save_artefact` wrote, from its folder or from the file itself.

    Raises InputError where there is nothing, or it was truncated or altered.
    """
    if path.suffix in _suffixes() and not path.is_dir():
        return _verified(_suffixes()[path.suffix](path))
    for name, kind in FILES.items():
        if (path / name).exists():
            return _verified(kind(path / name))
    if (path / PLAN).exists():
        return students.load(path)
    raise InputError("model", str(path), f"holds neither {', '.join(FILES)} nor {PLAN}")


def is_artefact(folder: Path) -> bool:
    """Whether something lies there that `load_artefact` reads, or refuses."""
    return any((folder / name).exists() for name in (*FILES, WEIGHTS))


def _suffixes() -> dict[str, type[FileModel]]:
    return {Path(name).suffix: kind for name, kind in FILES.items()}


def _verified(model: FileModel) -> FileModel:
    model.verify()
    return model
