"""The model card of an artefact, a README.md in the Hub's format: what it is, how to run it, what it is worth."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import students
from compress.artefact import load_artefact
from compress.coded_model import CodedModel
from compress.file_model import FileModel
from compress.mobile import MobileModel
from compress.onnx_model import INPUT, OnnxModel
from compress.stage import Artefact
from compress.torch_model import TorchModel
from kd.checkpoint import atomic_write
from kd.errors import InputError

CARD = "README.md"
TASK = "image-classification"
_TAG = "retort"
_MOST = 20  # classes that are named

_ONNX = f"""\
import json, numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
images = np.random.rand(1, {{shape}}).astype(np.float32)  # yours, with pixels from 0 to 1
logits = session.run(None, {{{{"{INPUT}": images}}}})[0]
print(json.loads(session.get_modelmeta().custom_metadata_map["classes"])[logits[0].argmax()])"""
_TORCH = """\
import json, torch
model = torch.export.load("model.pt2", extra_files=(facts := {{"retort.json": ""}})).module()
images = torch.rand(1, {shape})  # yours, with pixels from 0 to 1
logits = model(images)
print(json.loads(json.loads(facts["retort.json"])["classes"])[logits[0].argmax()])"""
_MOBILE = """\
import json, torch, executorch.runtime
program = executorch.runtime.Runtime.get().load_program("model.pte")
image = torch.rand(1, {shape})  # yours, with pixels from 0 to 1
logits = program.load_method("forward").execute([image])[0]
print(json.loads(json.loads(program.load_method("retort").execute([])[0])["classes"])[logits[0].argmax()])"""
_CODED = """\
import torch, compress
model = compress.CodedModel("model.coded")
images = torch.rand(1, {shape})  # yours, with pixels from 0 to 1
print(model(images).argmax(1))"""
_FOLDER = """\
import torch, students
model = students.load(".")
images = torch.rand(1, {shape})  # yours, with pixels from 0 to 1
with torch.no_grad():
    print(model(images).argmax(1))"""


class _Form(NamedTuple):
    """How the Hub names the library, what the example needs, the example, how many images the model takes."""

    library: str
    needs: str
    example: str
    takes: str = "any number of images, (N, {shape}),"


_FOLDER_FORM = _Form("retort", "this library", _FOLDER)
_FORMS: dict[type[Any], _Form] = {
    OnnxModel: _Form("onnx", "onnxruntime and numpy", _ONNX),
    TorchModel: _Form("pytorch", "torch", _TORCH),
    CodedModel: _Form("retort", "this library", _CODED),
    MobileModel: _Form("executorch", "executorch", _MOBILE, "one image at a time, (1, {shape}),"),
}


@dataclass(frozen=True)
class Told:
    """What a card tells that an artefact does not know of itself.

    Attributes:
        title: its name.
        license: by its name on the Hub.
        dataset: what the accuracy is of.
        top1: percent by split; "test" is what the Hub shows.
        sections: further ones, heading to Markdown.
    """

    title: str
    license: str = "unknown"
    dataset: str = ""
    top1: Mapping[str, float] = field(default_factory=dict)
    sections: Mapping[str, str] = field(default_factory=dict)


def write_card(folder: Path, told: Told, to: Path | None = None) -> Path:
    """Write the card of the artefact in `folder` into it, or into the folder `to`, atomically.

    Raises InputError where there is no artefact, it was truncated or altered, or another README.md lies there.
    """
    path = (to or folder) / CARD
    content = card(load_artefact(folder), told)
    if path.exists() and f"\n- {_TAG}\n" not in path.read_text(errors="replace").partition("\n---\n")[0]:
        raise InputError("out", str(path), "is there already and no card of Retort's: name another folder")
    atomic_write(path, content)
    return path


def card(model: Artefact, told: Told) -> str:
    """The text of the card. Raises InputError for a file that does not tell what its classes are."""
    if isinstance(model, FileModel) and not isinstance(model, CodedModel) and "classes" not in model.metadata:
        raise InputError("model", str(model.path), "does not tell its classes: it was not made by Retort")
    sections = {"Use": _use(model), **told.sections, "Limits": _limits(model, told)}
    blocks = [f"# {_plain(told.title)}", _about(model), *(f"## {name}\n\n{text}" for name, text in sections.items())]
    return f"---\n{_front(model, told)}\n---\n\n" + "\n\n".join(blocks) + "\n"


def _front(model: Artefact, told: Told) -> str:
    """The metadata that the Hub reads."""
    from huggingface_hub import EvalResult, ModelCardData  # late: it takes a while

    name = told.dataset or "unknown"
    results = [
        EvalResult(TASK, name, name, "accuracy", round(top1 / 100, 6), dataset_split=split, metric_name="top-1")
        for split, top1 in told.top1.items()
    ]
    data = ModelCardData(
        license=told.license,
        library_name=_form(model).library,
        pipeline_tag=TASK,
        tags=[TASK, _TAG, *([model.runtime] if isinstance(model, FileModel) else [])],
        datasets=[told.dataset] if re.fullmatch(r"[\w.-]+/[\w.-]+", told.dataset) else None,
        metrics=["accuracy"],
        model_name=told.title if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _about(model: Artefact) -> str:
    channels, height, width = _shape(model)
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels}-channel")
    names = _classes(model)
    many = len(names) or _plan(model).num_classes
    known = f": {', '.join(map(_plain, names))}" if 0 < len(names) <= _MOST else ""
    what = "a folder for `students`"
    if isinstance(model, FileModel):
        what = f"one file, `{model.file}`, for {model.runtime}"
    return (
        f"A classifier of {kind} images of {height} × {width} pixels into {many} classes{known}. It is {what}, made "
        "with Retort, which distils, searches and compresses classifiers."
    )


def _use(model: Artefact) -> str:
    form = _form(model)
    shape = ", ".join(map(str, _shape(model)))
    return (
        f"With {form.needs} alone, beside the file:\n\n```python\n{form.example.format(shape=shape)}\n```\n\n"
        f"It takes {form.takes.format(shape=shape)} with pixels from 0 to 1 that are not normalised: it does that "
        "itself. It gives logits, a row an image, in the order of the classes."
    )


def _limits(model: Artefact, told: Told) -> str:
    _, height, width = _shape(model)
    lines = [
        "It names one of its classes whatever it is shown, also what belongs to none of them.",
        f"Images have to be {height} × {width}; how they are brought to that size changes what it answers.",
        "Accuracy was measured on images like those that it learnt from; others may be harder.",
        "Confidence is not calibrated unless the figures say so.",
    ]
    if not told.top1:
        lines.append("No accuracy was measured for this card.")
    return "\n".join(f"- {line}" for line in lines)


def _form(model: Artefact) -> _Form:
    return _FORMS.get(type(model), _FOLDER_FORM)


def _shape(model: Artefact) -> tuple[int, int, int]:
    if isinstance(model, FileModel):
        return model.image_shape
    plan = _plan(model)
    return plan.in_chans, plan.image_size, plan.image_size


def _classes(model: Artefact) -> list[str]:
    """Their names; none where the artefact does not know them."""
    return json.loads(model.metadata.get("classes", "[]")) if isinstance(model, FileModel) else []


def _plan(model: Artefact) -> students.Blueprint:
    assert isinstance(model, (students.Classifier, CodedModel))
    return model.blueprint


def _plain(text: str) -> str:
    """On one line, and nothing in it that Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*\[\]|<>#&_])", r"\\\1", " ".join(text.split()))
