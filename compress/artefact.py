"""An artefact in a folder: a Classifier as blueprint.json and model.safetensors, or model.onnx alone."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import students
from compress.onnx_model import OnnxModel, verify, write
from kd.errors import InputError

ONNX = "model.onnx"


def save_artefact(model: nn.Module | OnnxModel, folder: Path) -> None:
    """Write a model into `folder`, atomically; an ONNX file that is already there stays."""
    if not isinstance(model, OnnxModel):
        if not isinstance(model, students.Classifier):
            raise TypeError(f"an artefact is a students.Classifier or an OnnxModel, not {type(model).__name__}")
        students.save(model, folder)
    elif model.path.resolve() != (folder / ONNX).resolve():
        import onnx

        write(onnx.load(model.path), folder / ONNX)


def load_artefact(folder: Path) -> nn.Module | OnnxModel:
    """Read what `save_artefact` wrote. Raises InputError where there is nothing, or it was truncated or altered."""
    if (folder / ONNX).exists():
        verify(folder / ONNX)
        return OnnxModel(folder / ONNX)
    if (folder / "blueprint.json").exists():
        return students.load(folder)
    raise InputError("model", str(folder), f"holds neither {ONNX} nor blueprint.json")
