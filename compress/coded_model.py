"""`CodedModel`: a classifier as one small file, entropy-coded, that answers once it is decoded. See docs/coding.md."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

import students
from compress.coding import Coded, coded, decoded
from compress.cost import measure
from compress.entropy import Coder, squeezed, whole
from compress.file_model import Count, FileModel
from kd.checkpoint import atomic_write, digest
from kd.errors import InputError
from kd.evaluate import inference

MAGIC, VERSION = b"\x89RETORT\n", 1
_HEAD = struct.Struct("<8sIIQQ")  # magic, version, zeros, bytes of the header, and as decoded
_SEAL = hashlib.sha256().digest_size


class CodedModel(FileModel):
    """A classifier in a coded file. It is decoded at once, and from then on runs like any other, on torch.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read, was truncated or altered, is of another version or none of these files.
    """

    runtime, file = "torch", "model.coded"

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        super().__init__(path, threads)
        self.classifier = read(self.path)

    @property
    def blueprint(self) -> students.Blueprint:
        return self.classifier.blueprint

    @property
    def image_shape(self) -> tuple[int, int, int]:
        plan = self.blueprint
        return plan.in_chans, plan.image_size, plan.image_size

    @property
    def metadata(self) -> dict[str, str]:
        """None: it is the blueprint that tells what the file is."""
        return {}

    def ready(self, x: Tensor) -> Callable[[], Tensor]:
        return lambda: _answer(self.classifier, x)

    def count(self) -> Count:
        """Of the model that it is decoded to."""
        cost = measure(self.classifier, self.image_shape)
        return Count(cost.params, cost.nonzero, cost.macs)

    def on(self, threads: int) -> Self:
        """Itself: torch has its threads for all models."""
        return self

    @staticmethod
    def seal(body: bytes) -> bytes:
        return body + hashlib.sha256(body).digest()

    @staticmethod
    def unseal(content: bytes) -> bytes:
        return content[:-_SEAL]


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    with inference(model):
        return model(x)


def write(model: students.Classifier, path: Path, coder: Coder = "zstd") -> list[Coded]:
    """Write a model as one file, atomically; tells what its tensors came to.

    Raises InputError where the range coder is asked for but not installed.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in sorted(model.net.state_dict().items())}
    tensors = [coded(name, tensor, coder) for name, tensor in state.items()]
    header = {
        "blueprint": json.loads(model.blueprint.to_json()),
        "digest": digest([*state.values()]),
        "tensors": [each.record for each in tensors],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    _, short = squeezed(np.frombuffer(text, np.uint8))
    body = b"".join([_HEAD.pack(MAGIC, VERSION, 0, len(short), len(text)), short, *_streams(tensors)])
    atomic_write(path, CodedModel.seal(body))
    return tensors


def read(path: Path) -> students.Classifier:
    """The model that `write` was given, to the bit, on the CPU and in evaluation mode.

    Raises InputError where the file cannot be read, was truncated or altered, is of another version or none of these.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError("model", str(path), f"cannot be read ({error.strerror})") from error
    if not content.startswith(MAGIC):
        raise InputError("model", str(path), "is no coded model, or its first bytes were altered")
    body = CodedModel.unseal(content)
    if CodedModel.seal(body) != content:
        raise InputError("model", str(path), "was truncated or altered: its digest does not match its content")
    try:
        _, version, nothing, size, length = _HEAD.unpack_from(body)
        if version != VERSION:
            raise InputError("model", str(path), f"is coded in version {version}, {VERSION} is known")
        if nothing:
            raise ValueError("what is to be zeros is not")
        header = json.loads(_text(body[_HEAD.size : _HEAD.size + size], length))
        content_of = _cut(header["tensors"], body[_HEAD.size + size :])
        state = {record["name"]: decoded(record, content_of) for record in header["tensors"]}
        plan, told = header["blueprint"], header["digest"]
    except InputError:
        raise
    except Exception as error:  # whatever bytes raise that mean nothing
        raise InputError("model", str(path), f"is no coded model that can be read ({error})") from error
    with torch.random.fork_rng(devices=[]):  # reading a model draws nothing from the caller's stream
        model = students.Blueprint.from_json(json.dumps(plan)).build()
    students.load_weights(model, state, str(path))
    if digest([*state.values()]) != told:
        raise InputError("model", str(path), "was decoded to other weights than it was made of")
    return model.eval()


def _streams(tensors: list[Coded]) -> Iterator[bytes]:
    return (stream for each in tensors for stream in each.streams)


def _text(short: bytes, length: int) -> bytes:
    """The header, which is raw where that is no longer."""
    return whole("raw" if len(short) == length else "zstd", short, length).tobytes()


def _cut(records: list[dict[str, Any]], body: bytes) -> Iterator[bytes]:
    """The streams, in the order of the records."""
    view, place = memoryview(body), 0
    for record in records:
        for part in ("positions", "values", "table", "indices"):
            if part in record:
                _, _, length = record[part]
                yield bytes(view[place : place + length])
                place += length
