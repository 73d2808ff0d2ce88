"""`Quantize`: which eight-bit form of a model is worth keeping, by what it is measured to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from compress.artefact import ONNX, save_artefact
from compress.export import Export
from compress.latency import latency
from compress.onnx_model import OnnxModel, write
from compress.quantize.integer import RANGES, integer_convolutions, quantized, saturates, x86
from compress.quantize.qat import Lesson, Source, trained
from compress.stage import Artefact, Context, Report, check_logits
from kd.errors import InputError
from kd.evaluate import evaluate

Scores = dict[str, dict[str, Any]]
_SECONDS = 4.0  # of latency measurements
_FORMS: dict[str, tuple[Literal["static", "dynamic"], ...]] = {
    "auto": ("static", "dynamic"),
    "static": ("static",),
    "dynamic": ("dynamic",),
    "qat": ("static",),
}
_ALIKE = 1.25  # file sizes within this factor count as the same


@dataclass(frozen=True)
class Quantize:
    """Eight-bit integers: activations unsigned, weights signed and symmetric. A module is exported first.

    Static quantisation fixes the range of each activation from training images and lets onnxruntime fuse whole layers
    into integer ones (Jacob et al. 2018): what convnets need. Dynamic quantisation finds the ranges as it runs: kinder
    to transformers, slow on convolutions. Quantisation-aware training ("qat") goes on from the static file: weights and
    ranges learn, on the integers of the runtime, what the float file answers.

    Attributes:
        mode: "static", "dynamic", "qat", or "auto": of the first two and the float file, the smallest whose accuracy on
            validation, on the runtime, is at most `within` points below float; of files within a quarter of its size,
            the fastest.
        per_channel: a scale for each output channel of a weight.
        reduce_range: weights of 7 bits, because products of 8 bits overflow on x86 processors without VNNI;
            None: where this processor is such a one.
        calibrate: how static ranges are found: "minmax", "percentile" or "entropy". The latter two keep the
            activations of all calibration images in memory.
        within: points of accuracy that "auto" may give away.
        epochs, lr: of the training of "qat", by AdamW.
        source: whom it learns from: the "float" file, the "teacher", or the "reference", the model before all stages.
        bits: of weights in "qat", 2 to 8; they are stored in bytes all the same.
    """

    mode: Literal["auto", "static", "dynamic", "qat"] = "auto"
    per_channel: bool = True
    reduce_range: bool | None = None
    calibrate: Literal["minmax", "percentile", "entropy"] = "minmax"
    within: float = 1.0
    epochs: int = 5
    lr: float = 5e-4
    source: Source = "float"
    bits: int = 8

    def __post_init__(self) -> None:
        Lesson(self.epochs, self.lr, self.source, self.bits)
        for name, allowed in (("mode", ("auto", "static", "dynamic", "qat")), ("calibrate", tuple(RANGES))):
            if getattr(self, name) not in allowed:
                raise InputError(f"quantize.{name}", getattr(self, name), f"must be one of {', '.join(allowed)}")
        if not self.within >= 0:
            raise InputError("quantize.within", self.within, "must be 0 or above")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError where the model does not fit the data, answers NaN or is quantised already."""
        images, notes = context.images(), []
        reduced = saturates() if self.reduce_range is None else self.reduce_range
        with TemporaryDirectory() as folder:
            work = Path(folder)
            exported = model if isinstance(model, OnnxModel) else Export().write(model, context.data, work / ONNX)
            check_logits(exported(images), context.data, exported.path.name)
            files, figures = {"float": exported}, dict[str, Any]()
            for mode in _FORMS[self.mode]:
                path = work / f"{mode}.onnx"
                try:
                    files[mode] = quantized(exported, mode, images, path, self.per_channel, reduced, self.calibrate)
                except InputError as error:
                    if self.mode != "auto" or error.field != "quantize.mode":
                        raise
                    notes.append(f"no {mode} int8 file: {error.allowed}")
            if self.mode == "qat":
                lesson = Lesson(self.epochs, self.lr, self.source, min(self.bits, 7) if reduced else self.bits)
                made, figures["qat"], told = trained(exported.path, files["static"].path, context, lesson)
                files["qat"] = write(made, work / "qat.onnx")
                notes += told
            scores = _measured(files, context)
            chosen = _best(scores, self.within) if self.mode == "auto" else self.mode
            save_artefact(files[chosen], context.folder)
        details = {"chosen": chosen, "reduce_range": reduced, "calibration": len(images), "candidates": scores}
        details |= figures
        report = Report("quantize", (*notes, *_notes(scores, chosen, self.within, reduced)), details)
        return OnnxModel(context.folder / ONNX), report


def _measured(files: dict[str, OnnxModel], context: Context) -> Scores:
    """What speaks for and against each file, as JSON."""
    times = latency(files, files["float"].image_shape, seconds=_SECONDS)
    scores = {}
    for name, model in files.items():
        integer, convolutions = integer_convolutions(model.path)
        scores[name] = {
            "top1_val": evaluate(model, context.data.evaluation("val")).top1,
            "file_bytes": model.path.stat().st_size,
            "integer_convolutions": integer,
            "convolutions": convolutions,
            "latency_ms": times[name],
        }
    return scores


def _best(scores: Scores, within: float) -> str:
    """See `Quantize.mode`."""
    floor = scores["float"]["top1_val"] - within
    good = {name: score for name, score in scores.items() if score["top1_val"] >= floor}
    limit = _ALIKE * min(score["file_bytes"] for score in good.values())
    small = [name for name, score in good.items() if score["file_bytes"] <= limit]
    return min(small, key=lambda name: good[name]["latency_ms"]["batch1"]["p50"])


def _notes(scores: Scores, chosen: str, within: float, reduced: bool) -> tuple[str, ...]:
    """What became worse, and where the file does not suit."""
    if chosen == "float":
        return (f"kept in float: no int8 file was worth it within {within:g} points of accuracy on validation",)
    before, after = scores["float"], scores[chosen]
    notes = []
    if (lost := before["top1_val"] - after["top1_val"]) > 0:
        notes.append(f"int8 ({chosen}) costs {lost:.2f} points of accuracy on validation")
    for batch in ("1", "32"):
        slower = after["latency_ms"][f"batch{batch}"]["p50"] / before["latency_ms"][f"batch{batch}"]["p50"]
        if slower > 1:
            notes.append(f"int8 ({chosen}) is slower than float here: x{slower:.2f} at batch {batch}")
    if after["file_bytes"] > before["file_bytes"]:
        notes.append(f"int8 ({chosen}) is larger than float: {after['file_bytes']} bytes, not {before['file_bytes']}")
    if x86() and not reduced:
        notes.append("8-bit weights overflow on x86 processors without VNNI; with reduce_range=true they run anywhere")
    return tuple(notes)
