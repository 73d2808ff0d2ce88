"""`OnnxModel`: a classifier as one file that runs without torch, and the seal by which an altered file is known."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from kd.checkpoint import atomic_write
from kd.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession, SessionOptions

INPUT, OUTPUT = "image", "logits"
KEY = "retort.sha256"
_CHUNK = 256  # images that go through a session at once: bounds the memory of activations


def seal(body: bytes) -> bytes:
    """A serialised model with the digest of its bytes appended.

    The seal is one more entry of the message's metadata_props (field 14), so that any runtime reads the file as before.
    """
    digest = hashlib.sha256(body).hexdigest().encode()
    entry = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12" + bytes([len(digest)]) + digest
    return body + b"\x72" + bytes([len(entry)]) + entry


_SEAL = len(seal(b""))


def write(model: ModelProto, path: Path) -> OnnxModel:
    """Seal an ONNX model and write it atomically."""
    props = [prop for prop in model.metadata_props if prop.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(props)
    atomic_write(path, seal(model.SerializeToString()))
    return OnnxModel(path)


def verify(path: Path) -> None:
    """Raise InputError where the file is missing, or its bytes are not those that were sealed."""
    if not path.is_file():
        raise InputError("model", str(path), "there is no such file")
    content = path.read_bytes()
    if seal(content[:-_SEAL]) != content:
        raise InputError("model", str(path), "was truncated or altered: its digest does not match its content")


def session_options(threads: int = 0) -> SessionOptions:
    """How every session is run here: one node after the other, on `threads` threads (0: all), without chatter."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return options


class OnnxModel:
    """A classifier in an ONNX file: (N, C, H, W) images in [0, 1] to (N, classes) logits, on onnxruntime's CPU.

    Args:
        path: the file. Its first input takes the images with a free batch size; its first output are the logits.
        threads: of the runtime; 0: one a core.
    """

    runtime = "onnxruntime"

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self.path, self.threads = Path(path), threads

    def __call__(self, x: Tensor) -> Tensor:
        """Logits on the device of `x`. Raises InputError where images have another shape than the model takes."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise InputError("images", tuple(x.shape[1:]), f"{self.path.name} takes {self.image_shape}")
        name = self.session.get_inputs()[0].name
        chunks = x.detach().float().cpu().contiguous().split(_CHUNK)
        logits = [torch.from_numpy(self.session.run(None, {name: chunk.numpy()})[0]) for chunk in chunks]
        return torch.cat(logits).to(x.device)

    @cached_property
    def session(self) -> InferenceSession:
        """The loaded file. Raises InputError where onnxruntime cannot load it."""
        import onnxruntime

        try:
            return onnxruntime.InferenceSession(
                str(self.path), session_options(self.threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has one class a status code, without a common base
            raise InputError("model", str(self.path), f"onnxruntime cannot load it: {error}") from error

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.session.get_inputs()[0].shape[1:]
        return channels, height, width

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        from compress.onnx_graph import count

        return count(self.path).macs

    def on(self, threads: int) -> Self:
        """The same file, run on so many threads."""
        return type(self)(self.path, threads)
