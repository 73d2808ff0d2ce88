"""docs/deploy.md: every family of timm exported, quantised and factorised, each time held against torch.

Example: python -m experiments.deploy_zoo --out runs/deploy-zoo --write docs/deploy.md
One model anew, its row printed: python -m experiments.deploy_zoo --model levit_128s
Each model has a process of its own; one that fails, crashes or takes too long is a row too. The same command again goes
on where it was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

import students
from compress import Export, LowRank, OnnxModel
from compress.exporter import TOLERANCE, agreement
from compress.quantize.integer import quantized
from experiments import cli
from experiments import sweep as sweeping
from experiments.render.figures import MISSING
from experiments.render.markdown import table
from experiments.sweep import (
    CLASSES,
    NAMES,
    Row,
    Tell,
    check,
    examined,
    failures,
    finished_rows,
    hold,
    number,
    verdict,
    words,
)
from experiments.untrained import context, enliven, images, noise
from kd.errors import InputError
from kd.evaluate import inference
from students import Blueprint, zoo

WHOLE, LOW = "whole", "lowrank"
SIZES = (96, 128, 192)  # pixels a side that are tried before the published ones; below, stems are eased
COARSE = 1.0  # of the largest logit: as far off as an answer of zeros
TARGET = 0.7  # of the MACs that LowRank is to keep
MODES: tuple[Literal["static", "dynamic"], ...] = ("static", "dynamic")

Way = Literal["whole", "lowrank"]


@dataclass(frozen=True)
class SweepConfig(sweeping.SweepConfig):
    """Deploy the zoo.

    Attributes:
        ways: "whole": export and quantise the net; "lowrank": factorise it and export that.
    """

    out: str = "runs/deploy-zoo"
    limit: float = 600.0
    ways: tuple[Way, ...] = (WHOLE, LOW)


def examine(name: str, way: str, tell: Tell = lambda row: None) -> Row:
    """Deploy one model in one way, and hold what onnxruntime answers against torch, on images that no stage has seen.

    `tell` is given the row as it grows: "doing" says what is under way, "failed" what did not hold, by check.
    """
    row: Row = {"name": name, "way": way, "failed": {}}
    with TemporaryDirectory() as folder:
        for what, work in (_whole if way == WHOLE else _low)(row, Path(folder)):
            check(row, what, work, tell)
            if what in ("build", "lowrank", "export") and row["failed"]:
                break  # the others stand on it
    return row


def _whole(row: Row, folder: Path) -> Iterator[tuple[str, partial[None]]]:
    made: dict[str, students.Classifier] = {}
    yield "build", partial(_build, row, made)
    model, x = made["net"], images(4, row["pixels"])
    float_file = folder / "float.onnx"
    yield "export", partial(_export, row, model, x, float_file)
    for mode in MODES:
        yield mode, partial(_quantise, row, model, OnnxModel(float_file), mode, x, folder)


def _low(row: Row, folder: Path) -> Iterator[tuple[str, partial[None]]]:
    made: dict[str, students.Classifier] = {}
    yield "build", partial(_build, row, made)
    x = images(4, row["pixels"])
    yield "lowrank", partial(_factorise, row, made, x, folder)
    yield "export", partial(_export, row, made["net"], x, folder / "float.onnx")


def _build(row: Row, made: dict[str, students.Classifier]) -> None:
    plan = _plan(row["name"])
    row.update(pixels=plan.image_size, scale=plan.width)
    torch.manual_seed(0)
    model = plan.build()
    enliven(model, images(2, plan.image_size))
    made["net"] = model


def _plan(name: str) -> Blueprint:
    """Half as wide and deep, and with images as small, as the family allows: the operators are those of the whole."""
    published = zoo.published(name).image_size
    for scale, size in product((0.5, 1.0), (*(size for size in SIZES if size < published), published)):
        plan = Blueprint(name, CLASSES, image_size=size, width=scale, depth=scale, normalize=((0.5,), (0.25,)))
        with suppress(InputError):
            plan.build("meta")
            break
    return plan


def _factorise(row: Row, made: dict[str, students.Classifier], x: Tensor, folder: Path) -> None:
    small, report = LowRank(TARGET)(made["net"], context(x, folder))
    assert isinstance(small, students.Classifier)
    row.update(layers=len(report.details["layers"]), kept=report.details["kept_macs"])
    hold(row["layers"] > 0, "no layer can be factorised")
    hold(row["kept"] < 1, "no fewer MACs")
    made["net"] = small


def _export(row: Row, model: students.Classifier, x: Tensor, path: Path) -> None:
    _hold_alike(row, "export", model, Export().write(model, noise(x), path), TOLERANCE)
    row["bytes"] = {"export": path.stat().st_size}


def _quantise(
    row: Row, model: students.Classifier, exported: OnnxModel, mode: Literal["static", "dynamic"], x: Tensor, to: Path
) -> None:
    file = quantized(exported, mode, x, to / f"{mode}.onnx")
    row["bytes"][mode] = file.path.stat().st_size
    _hold_alike(row, mode, model, file, COARSE)
    hold(row["bytes"][mode] < row["bytes"]["export"], "the file is no smaller")


def _hold_alike(row: Row, what: str, model: students.Classifier, file: OnnxModel, tolerance: float) -> None:
    x = images(3, row["pixels"], seed=1)
    with inference(model):
        hold(bool(model(x).isfinite().all()), "the model itself does not answer with numbers")
    found = file(x)
    hold(len(found) == len(x) and found.shape[1] == CLASSES, f"answers have the shape {tuple(found.shape)}")
    alike, error = agreement(found, model, x, tolerance)
    row.setdefault("error", {})[what] = error
    hold(alike, f"the runtime differs by {error:.1e} of the largest logit")


def alone(name: str, way: str, out: str, limit: float) -> Row:
    """The row of a model that is examined in a process of its own, which may crash or be stopped."""
    path = SweepConfig(out).path(way, name)
    return sweeping.alone([*_words(name, way), "--out", out], path, {"name": name, "way": way}, limit)


def _words(name: str, way: str) -> list[str]:
    return words("deploy_zoo", name, way, WHOLE)


_PREFACE = f"""\
# Deploying the zoo

One model of each module of timm (`experiments/zoo.txt`), {CLASSES} classes, untrained, with vectors and statistics as
if it had been trained, at half the width and depth where it scales so ("scale"), on the smallest of
{", ".join(map(str, SIZES))} pixels and the published ones that it takes.

It **exports** where onnxruntime answers as torch does, on noise that no stage has seen, within {TOLERANCE} of the
largest logit ("error"); of an image on which torch itself strays further than that from double precision, within twice
of what it strays by. It **quantises** ("static": ranges from four images; "dynamic") where onnxruntime makes and runs a
file of 8-bit integers that is smaller ("bytes": its share of the float file's) and less wrong than an answer of zeros,
whose error is 1; of random weights this says nothing about accuracy. It **factorises** where
`compress.LowRank(target={TARGET})` finds layers to replace by fewer MACs ("MACs": the share that is kept) and what it
makes exports, too. Made by `make sweep-deploy`."""

HEAD = (
    *("family", "model", "pixels", "scale", "exports", "error"),
    *("static", "error", "bytes", "dynamic", "error", "bytes", "factorises", "layers", "MACs", "error"),
)


def page(out: str, names: Sequence[str]) -> str:
    """docs/deploy.md, of the rows that there are."""
    found = {way: finished_rows(out, way, names) for way in (WHOLE, LOW)}
    whole, low = (list(rows.values()) for rows in found.values())
    lines = [_cells(name, *(found[way].get(name, {}) for way in (WHOLE, LOW))) for name in names]
    counts = [f"**{sum(not _failed(row, 'export') for row in whole)} of {len(names)} families export right**"]
    counts += [f"{sum(not _failed(row, mode) for row in whole)} quantise ({mode})" for mode in MODES]
    told = [
        f"{', '.join(counts)}, {examined(whole, len(names))}; "
        f"{sum(not row['failed'] for row in low)} factorise, {examined(low, len(names))}."
    ]
    told = [_PREFACE, *told, table(HEAD, lines)]
    for rows, way, heading in ((whole, WHOLE, "What does not hold"), (low, LOW, "What does not hold of factorising")):
        told += [f"## {heading}", failures(rows, partial(_words, way=way))]
    return "\n\n".join(told) + "\n"


def _failed(row: Row, what: str) -> list[str]:
    """What of the row keeps `what` from holding: itself or what it stands on."""
    return [name for name in row["failed"] if name in ("start", "build", "export", what)]


def _cells(name: str, row: Row, low: Row) -> list[str]:
    from timm.models import _registry as registry

    facts = (str((low | row).get(fact, MISSING)) for fact in ("pixels", "scale"))
    cells = [registry._model_to_module[name], name, *facts]
    for what in ("export", *MODES):
        cells += [verdict(row, _failed(row, what) if row else ()), number(row.get("error", {}).get(what), ".1e")]
        if what in MODES:
            sizes = row.get("bytes", {})
            cells.append(number(sizes[what] / sizes["export"] if what in sizes else None, ".2f"))
    error = low.get("error", {}).get("export")
    figures = [str(low.get("layers", MISSING)), number(low.get("kept"), ".2f"), number(error, ".1e")]
    return [*cells, verdict(low, low.get("failed", ())), *figures]


def main(config: SweepConfig, _: str) -> None:
    if config.model:
        way = config.ways[0]
        path = config.path(way, config.model)
        print(json.dumps(sweeping.one(path, partial(examine, config.model, way)), indent=1))
        return
    written = cli.writable("write", config.write)
    sweeping.sweep(config, alone)
    sweeping.show(page(config.out, config.models or NAMES), written)


if __name__ == "__main__":
    sys.exit(cli.run("deploy_zoo", SweepConfig, main))
