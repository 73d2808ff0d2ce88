"""`FileModel`: a classifier as one file, on the runtime that runs it; and the seal by which an altered one is known."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from kd.checkpoint import atomic_write
from kd.errors import InputError

KEY = "retort.sha256"
_CHUNK = 256  # images that go through a runtime at once: bounds the memory of activations


class Count(NamedTuple):
    """Elements of the parameters, those that are not zero, and multiply-accumulates per image."""

    params: int
    nonzero: int
    macs: int


class FileModel(ABC):
    """A classifier in a file: (N, C, H, W) images in [0, 1] to (N, classes) logits, on the CPU.

    Args:
        path: the file.
        threads: of the runtime; 0: one a core.

    Attributes:
        runtime: what runs it.
        file: its name in the folder of an artefact.
    """

    runtime: ClassVar[str]
    file: ClassVar[str]

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self.path, self.threads = Path(path), threads

    def __call__(self, x: Tensor) -> Tensor:
        """Logits on the device of `x`. Raises InputError where images have another shape than the model takes."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise InputError("images", tuple(x.shape[1:]), f"{self.path.name} takes {self.image_shape}")
        chunks = x.detach().float().cpu().contiguous().split(_CHUNK)
        return torch.cat([torch.as_tensor(self.ready(chunk)()) for chunk in chunks]).to(x.device)

    @abstractmethod
    def ready(self, x: Tensor) -> Callable[[], Any]:
        """The runtime's own call, its input at hand: what a latency is of. It gives logits.

        Raises InputError where the runtime cannot load the file.
        """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width = json.loads(self.metadata["image_size"])
        return int(self.metadata["channels"]), height, width

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself: see `compress.exporter.metadata`."""

    @abstractmethod
    def count(self) -> Count:
        """What it holds and does."""

    @staticmethod
    @abstractmethod
    def seal(body: bytes) -> bytes:
        """The content of a file with the digest of its bytes, which its runtime reads as before."""

    @staticmethod
    @abstractmethod
    def unseal(content: bytes) -> bytes:
        """The body of what `seal` gave; anything for another content."""

    def verify(self) -> None:
        """Raise InputError where the file is missing, or its bytes are not those that were sealed."""
        if not self.path.is_file():
            raise InputError("model", str(self.path), "there is no such file")
        content = self.path.read_bytes()
        if self.seal(self.unseal(content)) != content:
            raise InputError("model", str(self.path), "was truncated or altered: its digest does not match its content")

    def save(self, folder: Path) -> None:
        """Write it into the folder of an artefact, atomically, unless it lies there already."""
        if self.path.resolve() != (folder / self.file).resolve():
            atomic_write(folder / self.file, self.path.read_bytes())

    def on(self, threads: int) -> Self:
        """The same file, run on so many threads."""
        return type(self)(self.path, threads)


def digest(body: bytes) -> bytes:
    """The SHA-256 of a file's body, as 64 letters."""
    return hashlib.sha256(body).hexdigest().encode()
