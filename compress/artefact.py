"""An artefact in a folder: a Classifier as blueprint.json and model.safetensors, or model.onnx or model.coded alone."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import students
from compress.coded_model import CodedModel
from compress.onnx_model import OnnxModel, verify, write
from kd.checkpoint import atomic_write
from kd.errors import InputError

ONNX, CODED = "model.onnx", "model.coded"


def save_artefact(model: nn.Module | OnnxModel, folder: Path) -> None:
    """Write a model into `folder`, atomically; a file that is already there stays."""
    if isinstance(model, students.Classifier):
        students.save(model, folder)
    elif isinstance(model, OnnxModel):
        if model.path.resolve() != (folder / ONNX).resolve():
            import onnx

            write(onnx.load(model.path), folder / ONNX)
    elif isinstance(model, CodedModel):
        if model.path.resolve() != (folder / CODED).resolve():
            atomic_write(folder / CODED, model.path.read_bytes())
    else:
        kinds = "a students.Classifier, an OnnxModel or a CodedModel"
        raise TypeError(f"an artefact is {kinds}, not {type(model).__name__}")


def load_artefact(folder: Path) -> nn.Module | OnnxModel:
    """Read what `save_artefact` wrote. Raises InputError where there is nothing, or it was truncated or altered."""
    if (folder / ONNX).exists():
        verify(folder / ONNX)
        return OnnxModel(folder / ONNX)
    if (folder / CODED).exists():
        return CodedModel(folder / CODED)
    if (folder / "blueprint.json").exists():
        return students.load(folder)
    raise InputError("model", str(folder), f"holds neither {ONNX} nor {CODED} nor blueprint.json")
