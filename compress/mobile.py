"""`Mobile`: a classifier as one file of ExecuTorch, for phones, in 8-bit integers. Needs `retort[mobile]`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compress.cost import macs
from compress.exporter import FEW, Exporter, quiet
from compress.file_model import KEY, Count, FileModel, digest
from compress.stage import Artefact, Context, Report, check_logits
from compress.torch_export import lean, program
from kd.data import Data
from kd.errors import InputError
from kd.evaluate import evaluate
from teachers.fold import folded

_FACTS = "retort"  # the method of the program that gives the metadata


def seal(body: bytes) -> bytes:
    """A program with the digest of its bytes behind it, where its runtime does not look."""
    return body + KEY.encode() + b" " + digest(body)


_SEAL = len(seal(b""))


class _Loaded(NamedTuple):
    program: Any
    forward: Any
    metadata: dict[str, str]


class MobileModel(FileModel):
    """A classifier in a .pte file, on ExecuTorch: image by image, on as many threads as the runtime chooses."""

    runtime, file = "executorch", "model.pte"
    seal = staticmethod(seal)

    @staticmethod
    def unseal(content: bytes) -> bytes:
        return content[:-_SEAL]

    def ready(self, x: Tensor) -> Callable[[], Any]:
        forward, images = self._loaded.forward, x.split(1)

        def run() -> Tensor:
            try:
                return torch.cat([forward.execute([image])[0].clone() for image in images])  # its memory is used again
            except Exception as error:
                raise InputError("model", str(self.path), f"ExecuTorch cannot run it: {error}") from error

        return run

    @cached_property
    def _loaded(self) -> _Loaded:
        check_installed()
        from executorch.runtime import Runtime

        try:
            loaded = Runtime.get().load_program(self.path)
            return _Loaded(loaded, loaded.load_method("forward"), json.loads(loaded.load_method(_FACTS).execute([])[0]))
        except Exception as error:  # the runtime raises what its native part does
            raise InputError("model", str(self.path), f"ExecuTorch cannot load it: {error}") from error

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._loaded.metadata

    def count(self) -> Count:
        """As it was counted before it was lowered: what a backend keeps for itself cannot be read."""
        return Count(*json.loads(self.metadata["count"]))


@dataclass(frozen=True)
class Mobile(Exporter[MobileModel]):
    """Write the model as a .pte file of ExecuTorch, which XNNPACK runs, and go on with that.

    Quantised after training (PT2E): activations and weights of 8 bits, a scale for each output channel. A .pte file is
    promised to run on the next minor release of ExecuTorch, no further.

    Attributes:
        quantize: 8-bit integers; else float.
        calibration: how many training images the ranges of activations are found from.
    """

    form, kind = "ExecuTorch", MobileModel

    quantize: bool = True
    calibration: int = 256

    def __post_init__(self) -> None:
        if self.calibration < 1:
            raise InputError("mobile.calibration", self.calibration, "must be 1 or more")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError as `Exporter` does, and where ExecuTorch is not installed."""
        check_installed()
        exported, report = super().__call__(model, context)
        before, after = (evaluate(each, context.data.evaluation("val")).top1 for each in (model, exported))
        lost = (f"ExecuTorch costs {before - after:.2f} points of accuracy on validation",) if after < before else ()
        details = report.details | {"top1_before": before, "top1_after": after}
        return exported, Report(report.name, (*report.notes, *lost), details)

    def details(self) -> dict[str, object]:
        return {"quantize": self.quantize}

    def content(self, model: nn.Module, images: Tensor, facts: dict[str, str], data: Data) -> bytes:
        check_installed()
        try:
            return self._lowered(model, images, facts, data)
        except InputError:
            raise
        except Exception as error:  # ExecuTorch raises what it meets
            why = f"ExecuTorch cannot take it: {' '.join(repr(error).split())[:200]}"
            raise InputError("export", type(model).__name__, why) from error

    def _lowered(self, model: nn.Module, images: Tensor, facts: dict[str, str], data: Data) -> bytes:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        traced = lean(program(folded(model, images[:FEW]), images, False), images, False)
        module = traced.module(check_guards=False)
        params = list(module.parameters())
        counted = [sum(each.numel() for each in params), sum(int(each.count_nonzero()) for each in params)]
        facts = facts | {"count": json.dumps([*counted, macs(module, (*images.shape[1:],))])}
        if self.quantize:
            order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[: self.calibration]
            shown = torch.cat(list(data.train.read([order]))).float() / 255
            traced = program(_quantised(module, shown), images, False)
        with quiet():
            lowered = to_edge_transform_and_lower(
                traced, partitioner=[XnnpackPartitioner()], constant_methods={_FACTS: json.dumps(facts)}
            )
            return seal(bytes(lowered.to_executorch().buffer))

    def check(self, exported: MobileModel, model: nn.Module, images: Tensor, data: Data) -> None:
        """As any where it is float; integers only have to give numbers about the classes."""
        if self.quantize:
            check_logits(exported(images), data, exported.path.name)
        else:
            super().check(exported, model, images, data)


def check_installed() -> None:
    """Raise InputError that names the extra where ExecuTorch is not installed."""
    if find_spec("executorch") is None or find_spec("torchao") is None:
        raise InputError("stages", "Mobile", "ExecuTorch is not installed: pip install 'retort[mobile]'")


def _quantised(module: nn.Module, images: Tensor) -> nn.Module:
    """With quantisers in its graph, whose ranges are those of `images`."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    with quiet(), torch.no_grad():
        prepared = prepare_pt2e(module, XNNPACKQuantizer().set_global(get_symmetric_quantization_config(True)))
        for image in images.split(1):
            prepared(image)
        made: nn.Module = convert_pt2e(prepared)
    return made
