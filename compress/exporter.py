"""`Exporter`: what every stage does that makes a file of a classifier, and the check against torch."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from compress.file_model import FileModel
from compress.reparameterize import reparameterized
from compress.stage import Artefact, Context, Report, check_logits
from kd.checkpoint import atomic_write
from kd.data import Data
from kd.errors import InputError
from kd.evaluate import inference

TOLERANCE = 1e-4  # of the logits' scale: what float32 rounding may differ by between two runtimes
_CHECKED = 256  # validation images that both runtimes are compared on
FEW = 8  # of them, that the branches of a net are compared on with the layers that they become

File = TypeVar("File", bound=FileModel)


class Exporter(ABC, Generic[File]):
    """A stage that writes the model as a file and goes on with that, on its runtime.

    The file stands alone: it takes (N, C, H, W) pixels in [0, 1] with N free, normalisation is in the graph, it gives
    (N, classes) logits; class names, image size and normalisation are in its metadata. Nets that train branches in the
    place of a layer (RepVGG, MobileOne, ...) are written with the layer, so Prune and LowRank, which see the branches,
    come before.
    """

    form: ClassVar[str]
    kind: ClassVar[type[FileModel]]

    @abstractmethod
    def content(self, model: nn.Module, images: Tensor, facts: dict[str, str], data: Data) -> bytes:
        """The sealed file of `model`, which is in evaluation mode, with `facts` as its metadata.

        `images` are of the validation split; `data` is for stages that look at others.

        Raises InputError that names the operator, or what else stands in the way.
        """

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError where the model is a file already, has no such form, or answers otherwise in it."""
        exported, left = self._write(model, context.data, context.folder / self.kind.file)
        notes = (
            (f"Left in their branches, which edits keep from becoming one layer: {', '.join(left)}.",) if left else ()
        )
        return exported, Report(
            type(self).__name__.lower(), notes, self.details() | {"file_bytes": exported.path.stat().st_size}
        )

    def details(self) -> dict[str, object]:
        """What the report says of the settings."""
        return {}

    def write(self, model: Artefact, data: Data, path: Path) -> File:
        """Export to `path`, where nothing is written unless the file answers as torch does on validation images.

        Raises InputError as the stage does.
        """
        return self._write(model, data, path)[0]

    def _write(self, model: Artefact, data: Data, path: Path) -> tuple[File, list[str]]:
        """The file, and what `reparameterized` left as it was."""
        if isinstance(model, FileModel):
            raise InputError("stages", type(self).__name__, f"{model.path} is exported already")
        model = _plain(copy.deepcopy(model).cpu().float().eval())
        images = next(data.evaluation("val", _CHECKED)).x
        check_logits(_answered(model, images), data, type(model).__name__)
        deployed, left = reparameterized(model, images[:FEW], TOLERANCE)
        content = self.content(deployed, images, metadata(model, data), data)
        with TemporaryDirectory() as folder:
            tried = Path(folder) / self.kind.file
            tried.write_bytes(content)
            self.check(self._open(tried), model, images, data)
        atomic_write(path, content)
        return self._open(path), left

    def check(self, exported: File, model: nn.Module, images: Tensor, data: Data) -> None:
        """Raise InputError unless both answer alike, as a batch and one image alone.

        See `agreement`. Where they do within the tolerance, they also choose the same class but for ties.
        """
        found = torch.cat([exported(images[:1]), exported(images)[1:]])
        alike, error = agreement(found, model, images)
        if not alike:
            why = f"answers otherwise in {self.form}: {error:.1e} of the logits' scale"
            raise InputError("export", type(model).__name__, why)

    def _open(self, path: Path) -> File:
        opened: File = self.kind(path)  # type: ignore[assignment]  # a class cannot hold its type variable
        return opened


def _plain(model: nn.Module) -> nn.Module:
    """With weights in the place of what computes them from others: torch.export cannot leave that out."""
    for module in list(model.modules()):
        if is_parametrized(module):
            kind = type(module)  # torch put the properties into a class, which copies share
            module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
            for name in list(vars(module)["_modules"]["parametrizations"]):
                remove_parametrizations(module, name)
    return model


def _answered(model: nn.Module, images: Tensor) -> Any:
    """Raises InputError where the model fails on these images."""
    try:
        with inference(model):
            return model(images)
    except Exception as error:  # whatever a net raises
        told = f"fails on images of {tuple(images.shape)}: {error!r}"
        raise InputError("model", type(model).__name__, told) from error


def agreement(found: Tensor, model: nn.Module, x: Tensor, tolerance: float = TOLERANCE) -> tuple[bool, float]:
    """Whether a file's answers to `x` are those of the model, and by how much they differ, of the largest logit.

    Rounding that a deep net blows up is told from a fault by what the model answers in double precision: on an image
    where single precision takes torch itself further than `tolerance` from that, the file may stray twice as far as
    torch does. On one image at least torch must not stray.
    """
    with inference(model):
        expected = model(x)
    scale = expected.abs().max().clamp(min=1e-12)
    error = float((found - expected).abs().max() / scale)
    if error <= tolerance:
        return True, error
    try:
        with inference(exact := copy.deepcopy(model).double()):
            truth = exact(x.double())
    except Exception:  # whatever a net raises that computes in single precision by itself
        return False, error
    own, its = ((answer - truth).abs().amax(1) / scale for answer in (expected, found))
    return bool(own.min() <= tolerance and (its <= (2 * own).clamp(min=tolerance)).all()), error


def metadata(model: nn.Module, data: Data) -> dict[str, str]:
    """What a file tells of itself, as JSON where it is more than a word."""
    facts, blueprint = data.facts, getattr(model, "blueprint", None)
    return {
        "classes": json.dumps(facts.names),
        "channels": str(facts.channels),
        "image_size": json.dumps(facts.image_size),
        "pixels": "0 to 1, not normalised: the graph does it",
        "normalize": json.dumps(getattr(blueprint, "normalize", None)),
        "retort": _version(),
    }


def _version() -> str:
    try:
        return version("retort")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters' warnings speak to their developers."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
