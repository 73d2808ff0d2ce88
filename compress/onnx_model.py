"""`OnnxModel`: a classifier as one file that runs without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from compress.file_model import KEY, Count, FileModel, digest
from kd.checkpoint import atomic_write
from kd.errors import InputError

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession, SessionOptions

INPUT, OUTPUT = "image", "logits"
_PRODUCER = b"retort"


def seal(body: bytes) -> bytes:
    """A serialised model with the digest of its bytes appended.

    The seal is one more entry of the message's metadata_props (field 14), so that any runtime reads the file as before.
    """
    found = digest(body)
    entry = b"\x0a" + bytes([len(KEY)]) + KEY.encode() + b"\x12" + bytes([len(found)]) + found
    return body + b"\x72" + bytes([len(entry)]) + entry


_SEAL = len(seal(b""))


def sealed(model: ModelProto) -> bytes:
    """The file of an ONNX model."""
    props = [prop for prop in model.metadata_props if prop.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(props)
    model.producer_name, model.producer_version = _PRODUCER.decode(), ""
    return seal(model.SerializeToString())


def write(model: ModelProto, path: Path) -> OnnxModel:
    """Seal an ONNX model and write it atomically."""
    atomic_write(path, sealed(model))
    return OnnxModel(path)


def verify(path: Path) -> None:
    """Raise InputError where the file is missing, or its bytes are not those that were sealed."""
    OnnxModel(path).verify()


def session_options(threads: int = 0) -> SessionOptions:
    """How every session is run here: one node after the other, on `threads` threads (0: all), without chatter."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    return options


class OnnxModel(FileModel):
    """A classifier in an ONNX file, on onnxruntime.

    Its one input takes the images; its first output are the logits. Where a file of others fixes its batch size, images
    go through it in such batches.
    """

    runtime, file = "onnxruntime", "model.onnx"
    seal = staticmethod(seal)

    @staticmethod
    def unseal(content: bytes) -> bytes:
        return content[:-_SEAL]

    def ready(self, x: Tensor) -> Callable[[], Any]:
        session, (image,) = self.session, self.session.get_inputs()
        size = image.shape[0] if isinstance(image.shape[0], int) else len(x)
        missing = x[:1].expand(-len(x) % max(size, 1), *x.shape[1:])  # images of a last batch that has to be full
        feeds = [{image.name: part.numpy()} for part in torch.cat([x, missing]).split(size)]

        def run() -> Any:
            try:
                logits = [session.run(None, feed)[0] for feed in feeds]
            except Exception as error:  # onnxruntime has one class a status code, without a common base
                raise InputError("model", str(self.path), f"onnxruntime cannot run it: {error}") from error
            return logits[0] if len(logits) == 1 else np.concatenate(logits)

        return lambda: run()[: len(x)]

    @cached_property
    def session(self) -> InferenceSession:
        """The loaded file. Raises InputError where onnxruntime cannot load it, or it takes no images."""
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(
                str(self.path), session_options(self.threads), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InputError("model", str(self.path), f"onnxruntime cannot load it: {error}") from error
        takes = [(each.type, len(each.shape)) for each in session.get_inputs()]
        if takes != [("tensor(float)", 4)]:
            told = ", ".join(f"{each.name}: {each.type} {each.shape}" for each in session.get_inputs())
            raise InputError("model", str(self.path), f"takes {told}, not one tensor(float) of (N, C, H, W)")
        return session

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.session.get_inputs()[0].shape[1:]
        return channels, height, width

    @property
    def metadata(self) -> Mapping[str, str]:
        told: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map
        return told

    def count(self) -> Count:
        from compress.onnx_graph import count

        return count(self.path)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        return self.count().macs

    def verify(self) -> None:
        """As any; but of a file of another program, with neither our name in front nor our seal, that it loads."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        if not content or _PRODUCER in content[:_SEAL] or KEY.encode() in content[-_SEAL:]:
            super().verify()
        else:
            _ = self.session

    def save(self, folder: Path) -> None:
        import onnx

        if self.path.resolve() != (folder / self.file).resolve():
            write(onnx.load(self.path), folder / self.file)  # sealed, if it was another program's
