"""`TorchModel`: a classifier as one file of `torch.export`, which needs torch and none of the code that made it."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from compress.cost import macs
from compress.file_model import KEY, Count, FileModel, digest
from compress.latency import torch_threads
from kd.errors import InputError

_FACTS = "retort.json"  # the entry of the archive that holds the metadata
_NO_COMMENT = b"\0\0"  # the end of a zip archive: the size of its comment


class _Loaded(NamedTuple):
    module: nn.Module
    metadata: dict[str, str]


def seal(body: bytes) -> bytes:
    """A zip archive with the digest of its bytes as its comment."""
    comment = KEY.encode() + b" " + digest(body)
    return body.removesuffix(_NO_COMMENT) + len(comment).to_bytes(2, "little") + comment


_SEAL = len(seal(_NO_COMMENT))


def sealed(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """The file of a program, without the images that it was traced on."""
    buffer = io.BytesIO()
    program.example_inputs = None
    torch.export.save(program, buffer, extra_files={_FACTS: json.dumps(metadata)})
    return seal(buffer.getvalue())


class TorchModel(FileModel):
    """A classifier in a .pt2 file, on torch, operator by operator."""

    runtime, file = "torch.export", "model.pt2"
    seal = staticmethod(seal)

    @staticmethod
    def unseal(content: bytes) -> bytes:
        return content[:-_SEAL] + _NO_COMMENT

    def ready(self, x: Tensor) -> Callable[[], Any]:
        module, threads = self._loaded.module, self.threads or torch.get_num_threads()

        def run() -> Tensor:
            with torch_threads(threads), torch.no_grad():
                logits: Tensor = module(x)
            return logits

        return run

    @cached_property
    def _loaded(self) -> _Loaded:
        facts = {_FACTS: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.load(self.path, extra_files=facts)
            return _Loaded(program.module(check_guards=False), json.loads(facts[_FACTS]))
        except Exception as error:  # of an archive, of JSON, of operators: it may be of any class
            raise InputError("model", str(self.path), f"torch.export cannot load it: {error}") from error

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._loaded.metadata

    def count(self) -> Count:
        """The parameters after folding: a BatchNorm that became part of a layer counts no more."""
        module = self._loaded.module
        params = list(module.parameters())
        nonzero = sum(int(parameter.count_nonzero()) for parameter in params)
        return Count(sum(parameter.numel() for parameter in params), nonzero, macs(module, self.image_shape))
