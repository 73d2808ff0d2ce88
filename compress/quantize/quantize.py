"""`Quantize`: which form of a model in integers is worth keeping, by what it is measured to be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from compress.artefact import ONNX, save_artefact
from compress.export import Export
from compress.latency import latency
from compress.onnx_model import OnnxModel
from compress.quantize.damage import damage
from compress.quantize.integer import Ready, integer_convolutions, written
from compress.quantize.qat import Lesson, Source, trained
from compress.quantize.scheme import SAFE, Scheme, x86
from compress.stage import Artefact, Context, Report, check_logits
from kd.errors import InputError
from kd.evaluate import evaluate

Scores = dict[str, dict[str, Any]]
_SECONDS = 4.0  # of latency measurements
_ALIKE = 1.25  # file sizes within this factor count as the same
_SLOWER = 1.1  # times float's latency: what differs by less may be chance
_SHARE = 8  # of how many layers "mixed" leaves one in float where it is not said
_FORMS = {
    "auto": ("static", "dynamic", "mixed"),
    "static": ("static",),
    "dynamic": ("dynamic",),
    "qat": ("static", "qat"),
}


@dataclass(frozen=True)
class Quantize(Scheme):
    """Integers: activations unsigned bytes, weights signed and symmetric. A module is exported first.

    Static quantisation fixes the range of each activation from training images and lets onnxruntime fuse whole layers
    into integer ones (Jacob et al. 2018): what convnets need. Dynamic quantisation finds the ranges as it runs: kinder
    to transformers, slow on convolutions. Quantisation-aware training ("qat") goes on from the static file: weights and
    ranges learn, on the integers of the runtime, what the float file answers. Files are written in as few bytes as
    leave their answers alone.

    Attributes:
        mode: "static", "dynamic", "qat", or "auto": of the first two and the float file, the smallest whose accuracy on
            validation, on the runtime, is at most `within` points below float and that is not slower than float; of
            files within a quarter of its size, the fastest. Where the static one is worse than that, "mixed", the same
            with the worst layers in float, is made and compared, too.
        keep_float: how many layers stay in float in a static or "qat" file, those which alone in integers change the
            answers most. With "auto" they are those of "mixed"; 0: an eighth of the layers there.
        within: points of accuracy that "auto" may give away.
        epochs, lr: of the training of "qat", by AdamW.
        source: whom it learns from: the "float" file, the "teacher", or the "reference", the model before all stages.
        bits: of weights, 2 to 8; of at most 4 bits a file stores two in a byte, and computes in bytes all the same.
            In "qat" the static file has 8, from which training goes on with fewer.
        per_channel: a scale for each output channel of a weight.
        reduce_range: weights of 7 bits, because products of 8 bits overflow on x86 processors without VNNI;
            None: where this processor is such a one.
        calibrate: how static ranges are found: "minmax", "percentile", "entropy" or "mse".
        equalize: first make the ranges of channels alike where one layer follows another.
        correct_bias: take what rounding adds to the mean of a channel out of its bias.
        rounding: of weights, "nearest", or "learned" so that the layer's outputs change least.
    """

    mode: Literal["auto", "static", "dynamic", "qat"] = "auto"
    keep_float: int = 0
    within: float = 1.0
    epochs: int = 5
    lr: float = 1e-3
    source: Source = "float"

    def __post_init__(self) -> None:
        super().__post_init__()
        Lesson(self.epochs, self.lr, self.source)
        if self.mode not in _FORMS:
            raise InputError("quantize.mode", self.mode, f"must be one of {', '.join(_FORMS)}")
        if type(self.keep_float) is not int or self.keep_float < 0 or (self.keep_float and self.mode == "dynamic"):
            raise InputError("quantize.keep_float", self.keep_float, "must be 0 or more, and 0 in dynamic files")
        if not self.within >= 0:
            raise InputError("quantize.within", self.within, "must be 0 or above")

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError where the model does not fit the data, answers NaN or is quantised already."""
        images, notes = context.images(), []
        with TemporaryDirectory() as folder:
            work = Path(folder)
            exported = model if isinstance(model, OnnxModel) else Export().write(model, context.data, work / ONNX)
            check_logits(exported(images), context.data, exported.path.name)
            files, kept, learnt = {"float": exported}, dict[str, float](), dict[str, Any]()
            # few bits would ruin the net whose ranges training starts from
            ready = Ready(exported, images, replace(self, bits=8) if self.mode == "qat" else self)
            for form in _FORMS[self.mode]:
                if form == "mixed" and not self._hurts(files, context):
                    continue
                path = work / f"{form}.onnx"
                try:
                    if form == "mixed" or (form == "static" and self.mode != "auto"):
                        kept = self._worst(ready, exported)
                    if form == "qat":
                        lesson, coded = Lesson(self.epochs, self.lr, self.source), ready.coded([*kept])
                        made, learnt["qat"], told = trained(ready.graph, coded, self.most, context, lesson)
                        files[form] = written(made, path)
                        notes += told
                    else:
                        files[form] = ready.dynamic(path) if form == "dynamic" else ready.static(path, [*kept])
                except InputError as error:
                    if self.mode != "auto" or error.field != "quantize.mode":
                        raise
                    notes.append(f"no {form} int8 file: {error.allowed}")
            scores = _measured(files, context)
            chosen = _best(scores, self.within) if self.mode == "auto" else self.mode
            save_artefact(files[chosen], context.folder)
        details = {"chosen": chosen, "reduce_range": self.reduced, "calibration": len(images), "candidates": scores}
        details |= learnt
        if kept:
            details["kept_float"] = kept
            if chosen in ("mixed", self.mode):
                notes.append(f"left in float, because they change the answers most: {', '.join(kept)}")
        if self.bits < 8 and chosen != "float" and (others := ready.others):
            notes.append(f"weights of 8 bits all the same: {', '.join(others)}")
        report = Report("quantize", (*notes, *_notes(scores, chosen, self.within, self.most)), details)
        return OnnxModel(context.folder / ONNX), report

    def _hurts(self, files: dict[str, OnnxModel], context: Context) -> bool:
        """Whether a static file costs more accuracy than may be given away: finding layers to spare takes time."""
        if "static" not in files:
            return False
        before, after = (evaluate(files[name], context.data.evaluation("val")).top1 for name in ("float", "static"))
        return after < before - self.within

    def _worst(self, ready: Ready, exported: OnnxModel) -> dict[str, float]:
        """The layers that stay in float, and what they do to the answers in integers, in nats."""
        count = self.keep_float
        if self.mode == "auto" and not count:
            count = -(-len(ready.net.layers) // _SHARE)
        return dict(list(damage(ready, exported).items())[:count]) if count else {}


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

    def time(name: str) -> float:
        return scores[name]["latency_ms"]["batch1"]["p50"]

    floor = scores["float"]["top1_val"] - within
    good = [name for name in scores if scores[name]["top1_val"] >= floor and time(name) <= _SLOWER * time("float")]
    limit = _ALIKE * min(scores[name]["file_bytes"] for name in good)
    return min((name for name in good if scores[name]["file_bytes"] <= limit), key=time)


def _notes(scores: Scores, chosen: str, within: float, most: int) -> tuple[str, ...]:
    """What became worse, and where the file does not suit."""
    if chosen == "float":
        return (f"kept in float: no int8 file was as fast within {within:g} points of accuracy on validation",)
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
    if x86() and most > SAFE:
        notes.append("8-bit weights overflow on x86 processors without VNNI; with reduce_range=true they run anywhere")
    return tuple(notes)
