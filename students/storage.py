"""Models on disk: a folder with `blueprint.json` and `model.safetensors`, sealed by a digest of both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from kd.checkpoint import atomic_write, digest
from kd.errors import InputError
from students.adopt import adopt
from students.blueprint import Blueprint
from students.classifier import Classifier
from students.edits import fill
from students.packing import pack, unpack

PLAN, WEIGHTS = "blueprint.json", "model.safetensors"


def save(model: nn.Module, folder: Path | str) -> None:
    """Write what `adopt` makes of `model` so that `load` gives it back, exactly.

    A kill leaves a folder that `load` takes or refuses. Raises InputError as `check_plain` does.
    """
    model = adopt(model)
    check_plain(model)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.net.state_dict().items()}
    plan = json.loads(model.blueprint.to_json())
    atomic_write(Path(folder) / WEIGHTS, pack(state))
    atomic_write(Path(folder) / PLAN, json.dumps(plan | {"digest": _digest(plan, state)}, indent=1))


def load(folder: Path | str) -> Classifier:
    """The model that `save` wrote, on the CPU, in evaluation mode.

    Raises InputError where a file is missing, torn, altered or pickled, or the weights are those of another model.
    """
    text = _read(Path(folder) / PLAN)
    plan = _plan(text, Path(folder) / PLAN)
    altered = text != json.dumps(plan, indent=1).encode()  # blanks mean nothing, but `save` writes no others
    sealed = plan.pop("digest", None)
    path = Path(folder) / WEIGHTS
    content = _read(path)
    try:
        state = unpack(content)
    except ValueError as error:
        raise InputError("model", str(path), f"is torn or no safetensors file ({error})") from error
    with torch.random.fork_rng(devices=[]):  # reading a model draws nothing from the caller's stream
        model = Blueprint.from_json(json.dumps(plan)).build()
    load_weights(model, state, str(path))
    if altered or sealed != _digest(plan, state):
        raise InputError("model", str(folder), f"was altered: {PLAN} and {WEIGHTS} do not match the digest")
    return model.eval()


def check_plain(model: nn.Module) -> None:
    """Raise InputError where a weight is computed from others, which a blueprint does not tell."""
    for path, module in model.named_modules():
        if is_parametrized(module):
            raise InputError("model", path, "has a parametrised weight: bake it (remove_parametrizations) first")


def _digest(plan: dict[str, object], state: Mapping[str, Tensor]) -> str:
    return digest([state[name] for name in sorted(state)], json.dumps(plan, sort_keys=True))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError("model", str(path), f"cannot be read ({error.strerror})") from error


def _plan(text: bytes, path: Path) -> dict[str, object]:
    try:
        plan = json.loads(text)
    except ValueError as error:
        raise InputError("model", str(path), f"is torn or no JSON ({error})") from error
    if not isinstance(plan, dict):
        raise InputError("model", str(path), "is no blueprint")
    return plan


def load_weights(model: Classifier, tensors: Mapping[str, Tensor], source: str, optional: str = "") -> None:
    """Give `model.net` the tensors of a state dict: all of them, but that keys ending with `optional` may be missing.

    Raises InputError that names `source` and the first key that is missing, unexpected or of another shape or kind.
    """
    own, name = model.net.state_dict(), model.blueprint.name
    for key, value in own.items():
        if key not in tensors and not (optional and key.endswith(optional)):
            raise InputError("model", source, f"is of another architecture: {name} needs {key}")
        if key in tensors and tensors[key].shape != value.shape:
            shapes = f"{tuple(tensors[key].shape)}, {name} needs {tuple(value.shape)}"
            raise InputError("model", source, f"is of another architecture: {key} is {shapes}")
        if key in tensors and tensors[key].is_floating_point() != value.is_floating_point():
            raise InputError("model", source, f"was altered: {key} is of {tensors[key].dtype}")
    for key in tensors:
        if key not in own:
            raise InputError("model", source, f"is of another architecture: {name} has no {key}")
    fill(model.net, tensors)
