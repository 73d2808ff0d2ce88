"""A model in a folder: blueprint.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor

from kd.checkpoint import atomic_write, digest
from kd.errors import InputError
from students.blueprint import Blueprint
from students.classifier import Classifier

PLAN, WEIGHTS = "blueprint.json", "model.safetensors"


def save(model: Classifier, folder: Path | str) -> None:
    """Write both files, each atomically; the blueprint comes last and holds a digest of the weights."""
    if not isinstance(model, Classifier):
        raise InputError("model", type(model).__name__, "only a students.Classifier knows its blueprint")
    folder = Path(folder)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.net.state_dict().items()}
    atomic_write(folder / WEIGHTS, serialise(tensors))
    plan = json.loads(model.blueprint.to_json()) | {"digest": digest(list(tensors.values()))}
    atomic_write(folder / PLAN, json.dumps(plan, indent=1))


def load(folder: Path | str) -> Classifier:
    """The model that `save` wrote, in evaluation mode, exactly. Raises InputError for files that are not those."""
    folder = Path(folder)
    for name in (PLAN, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError("model", str(folder), f"is no model folder: it has no {name}")
    try:
        plan = json.loads((folder / PLAN).read_text())
        expected = plan.pop("digest")
        tensors = parse((folder / WEIGHTS).read_bytes())
    except (ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise InputError("model", str(folder), f"is torn or something else ({error})") from error
    model = Blueprint.from_json(json.dumps(plan)).build()
    load_weights(model, tensors, str(folder))
    if digest([tensors[name] for name in model.net.state_dict()]) != expected:
        raise InputError("model", str(folder / WEIGHTS), "was altered: its digest is not that of its blueprint")
    return model.eval()


def load_weights(model: Classifier, tensors: Mapping[str, Tensor], source: str, optional: str = "") -> None:
    """Load a state dict of `model.net`, strictly, but that keys which end with `optional` may be missing.

    Raises InputError that names `source` and the first key that is missing, unexpected or of another shape.
    """
    own, name = model.net.state_dict(), model.blueprint.name
    for key, value in own.items():
        if key not in tensors and not (optional and key.endswith(optional)):
            raise InputError("model", source, f"is of another architecture: {name} needs {key}")
        if key in tensors and tensors[key].shape != value.shape:
            shapes = f"{tuple(tensors[key].shape)}, {name} needs {tuple(value.shape)}"
            raise InputError("model", source, f"is of another architecture: {key} is {shapes}")
    for key in tensors:
        if key not in own:
            raise InputError("model", source, f"is of another architecture: {name} has no {key}")
    model.net.load_state_dict(dict(tensors), strict=False)
