"""Exact state on disk: atomic writes, self-checking files, no pickle.

A checkpoint is one safetensors file. Its tensors are the leaves of a nested dict or list; its header holds the
nesting as JSON and a digest of everything, so that a torn or altered file is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kd.console import say
from kd.errors import InputError

Tree = Any  # nested dicts (string or int keys), lists, tuples of tensors, dtypes, numbers, strings, booleans and None
_TENSOR, _DICT, _TUPLE, _DTYPE = "__tensor__", "__items__", "__tuple__", "__dtype__"
_DIGEST = "sha256"


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` so that a reader, or a kill at any moment, finds the old file or the new one, whole."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must reach the disk
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flatten(tree: Tree, tensors: list[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        tensors.append(tree.detach().cpu().contiguous())
        return {_TENSOR: len(tensors) - 1}
    if isinstance(tree, dict):  # items, not an object: the keys of an optimiser's state are integers
        return {_DICT: [[key, _flatten(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, tuple):
        return {_TUPLE: [_flatten(value, tensors) for value in tree]}
    if isinstance(tree, list):
        return [_flatten(value, tensors) for value in tree]
    if isinstance(tree, torch.dtype):  # an option of some optimisers
        return {_DTYPE: str(tree).removeprefix("torch.")}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(tree).__name__}")


def _unflatten(skeleton: Any, tensors: list[Tensor]) -> Tree:
    if isinstance(skeleton, list):
        return [_unflatten(value, tensors) for value in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    ((kind, content),) = skeleton.items()
    if kind == _TENSOR:
        return tensors[content]
    if kind == _DTYPE:
        return getattr(torch, content)
    if kind == _TUPLE:
        return tuple(_unflatten(value, tensors) for value in content)
    return {key: _unflatten(value, tensors) for key, value in content}


def digest(tensors: list[Tensor], text: str = "") -> str:
    """SHA-256 of the tensors' bytes, shapes and dtypes, and of `text`."""
    sha = hashlib.sha256(text.encode())
    for tensor in tensors:
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def save_tree(path: Path, tree: Tree) -> None:
    """Write a nested structure of tensors and plain values as one self-checking file, atomically."""
    tensors: list[Tensor] = []
    skeleton = json.dumps(_flatten(tree, tensors))
    names = {str(i): tensor.clone() for i, tensor in enumerate(tensors)}  # safetensors refuses shared storage
    atomic_write(path, save(names, {"tree": skeleton, "digest": digest(tensors, skeleton)}))


def load_tree(path: Path) -> Tree:
    """Read what `save_tree` wrote, on the CPU. Raises InputError where the file is torn, altered or something else."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            skeleton = header["tree"]
            tensors = [file.get_tensor(str(i)) for i in range(len(file.keys()))]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError("checkpoint", str(path), f"is torn or no checkpoint ({error})") from error
    if digest(tensors, skeleton) != header.get("digest"):
        raise InputError("checkpoint", str(path), "was altered: its digest does not match its content")
    return _unflatten(json.loads(skeleton), tensors)


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object as one self-checking file, atomically: a last entry is the digest of the others."""
    atomic_write(path, json.dumps(content | {_DIGEST: digest([], json.dumps(content))}, indent=1))


def load_json(path: Path) -> dict[str, Any]:
    """Read what `save_json` wrote. Raises InputError where the file is torn, altered or something else."""
    try:
        content = json.loads(path.read_text())
        told = content.pop(_DIGEST)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError("file", str(path), f"is torn or was not written by Retort ({error!r})") from error
    if digest([], json.dumps(content)) != told:
        raise InputError("file", str(path), "was altered: its digest does not match its content")
    found: dict[str, Any] = content
    return found


class Checkpoints:
    """The last two checkpoints of a run, `step-<n>.safetensors`, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, step: int, tree: Tree) -> None:
        save_tree(self.folder / f"step-{step:09d}.safetensors", tree)
        torn = self.folder.glob(".step-*")  # left by a kill between write and rename
        for old in (*self._files()[:-2], *torn):
            old.unlink()

    def latest(self) -> Tree | None:
        """The newest checkpoint that is whole; None where there is none at all."""
        refusal: InputError | None = None
        for path in reversed(self._files()):
            try:
                return load_tree(path)
            except InputError as error:
                refusal = error
                say(f"{error}: the one before it is looked for")
        if refusal is not None:
            raise refusal
        return None
