"""docs/pruning.md: every family of timm at half its work, proved, and beside it what torch-pruning makes of it.

Example: python -m experiments.prune_zoo --out runs/prune-zoo --write docs/pruning.md
One model anew, its row printed: python -m experiments.prune_zoo --model levit_128s
Each model has a process of its own; one that fails, crashes or takes too long is a row too. The same command again goes
on where it was stopped. The comparison needs the extra `sweep`, for torch-pruning.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import compress
import students
from compress import Export, OnnxModel
from compress.cost import macs
from compress.reparameterize import plain
from experiments import cli, untrained
from experiments import sweep as sweeping
from experiments.render.figures import MISSING
from experiments.render.markdown import table
from experiments.sweep import (
    CLASSES,
    NAMES,
    Row,
    Tell,
    change,
    check,
    distance,
    examined,
    failures,
    finished_rows,
    hold,
    last,
    number,
    verdict,
    words,
)
from experiments.untrained import enliven, images, noise
from kd.console import say
from kd.errors import InputError
from kd.evaluate import inference
from students import zoo
from students.edits import shallow

TARGET = 0.5
TOLERANCE = 1e-4  # of the largest logit: what the sliced net may differ by from the zeroed one
LEAST = 0.3 * (1 - TARGET)  # share of the cost that has to go: 30% of the target
OURS, THEIRS = "retort", "torch-pruning"
_EQUAL = "sliced = zeroed"
_HEAVY = 10**11  # multiply-accumulates of an image above which several take too much memory
_PATIENCE = 5.0  # seconds of one image beyond which latency is not measured

Way = Literal["retort", "torch-pruning"]
Checks = dict[str, Callable[[], None]]
Removed = Mapping[str, Mapping[Any, Sequence[int]]]
"""By the path of a parameter and a dimension of it, the indices that were taken out."""


@dataclass(frozen=True)
class SweepConfig(sweeping.SweepConfig):
    """Prune the zoo.

    Attributes:
        ways: who prunes.
    """

    out: str = "runs/prune-zoo"
    ways: tuple[Way, ...] = (OURS, THEIRS)


class Pruned(NamedTuple):
    """What was made of a model.

    Attributes:
        by: the cost that was aimed at.
        seconds: of the processor, for analysing and pruning.
        base: what was sliced: the model, or one that answers alike, with plain weights.
        removed: what its slices lack of it, told from the values alone; None where it cannot be told.
        whole: groups of channels that were left as they are; None where that is not told.
    """

    model: students.Classifier
    by: str
    seconds: float
    base: students.Classifier
    removed: Removed | None
    whole: int | None


def ours(model: students.Classifier, x: Tensor, folder: Path) -> Pruned:
    """`compress.Prune` at half of the MACs, or of the parameters where too few MACs can go."""
    context = untrained.context(x, folder)
    for by in ("macs", "params"):
        begun = time.process_time()
        made, report = compress.Prune(target=TARGET, by=by, round_to=1)(model, context)
        seconds = time.process_time() - begun
        if by == "params" or report.details["kept_macs"] <= 1 - LEAST:
            break
    assert isinstance(made, students.Classifier)
    base = plain(model)[0].eval()
    return Pruned(made, by, seconds, base, _removed(base, made), len(report.details["whole"]))


def theirs(model: students.Classifier, x: Tensor, folder: Path) -> Pruned:
    """torch-pruning at half of the channels of each layer."""
    from experiments import plain_torch_pruning

    net, seconds = plain_torch_pruning.prune(model.net, model.normalize(x[:1]), CLASSES)
    made = students.Classifier(net, model.blueprint).eval()
    return Pruned(made, "channels", seconds, model, _removed(model, made), None)


def _removed(before: students.Classifier, after: students.Classifier) -> Removed | None:
    from experiments import plain_torch_pruning

    try:
        return plain_torch_pruning.removed(before.net, after.net)
    except ValueError:
        return None


PRUNE: dict[str, Callable[[students.Classifier, Tensor, Path], Pruned]] = {OURS: ours, THEIRS: theirs}


def examine(name: str, way: str, size: int, tell: Tell = lambda row: None, deployed: bool = True) -> Row:
    """Prune one model, and check it without a word of the product's own verification.

    `tell` is given the row as it grows: "doing" says what is under way, "failed" what did not hold, by check. Only what
    is to be `deployed` is also saved, exported and timed.
    """
    row: Row = {"name": name, "way": way, "pixels": size, "failed": {}}
    held: dict[str, Any] = {}

    def build() -> None:
        model = untrained.build(name, CLASSES, size)
        x = images(2, size)
        enliven(model, x)
        row["before"] = _cost(model, size)
        held.update(model=model, x=x)

    def prune() -> None:
        found = PRUNE[way](held["model"], held["x"], folder)
        row.update(by=found.by, seconds=found.seconds, whole=found.whole)
        held.update(pruned=found.model, base=found.base, removed=found.removed)

    def forward() -> None:
        row["after"] = _cost(held["pruned"], size)

    with TemporaryDirectory() as place:
        folder = Path(place)
        for what, work in (("build", build), ("prune", prune), ("forward", forward)):
            if not row["failed"]:
                check(row, what, work, tell)
        if not row["failed"]:
            checks = _checks(row, held, size) | (_deployment(row, held, folder) if deployed and way == OURS else {})
            for what, work in checks.items():
                check(row, what, work, tell)
    return row


def _checks(row: Row, held: dict[str, Any], size: int) -> Checks:
    model, pruned = held["model"], held["pruned"]
    count = 3 if row["before"]["macs"] < _HEAVY else 1  # not two, as it was pruned with

    def removal() -> None:
        gone = {cost: 1 - row["after"][cost] / row["before"][cost] for cost in ("macs", "params")}
        hold(max(gone.values()) >= LEAST, f"{gone['macs']:.0%} of the MACs and {gone['params']:.0%} of the params go")

    def equality() -> None:
        if held["removed"] is None:
            hold(row["way"] == THEIRS, "what was sliced cannot be told")
            return
        silent = zeroed(held["base"], held["removed"])
        errors = []
        for side in filter(None, (size, row.get("other"))):
            x = images(2, side, seed=1)
            found, expected, before, base = (_answer(each, x) for each in (pruned, silent, model, held["base"]))
            hold(bool(before.isfinite().all()), "the model itself does not answer with numbers")
            hold(distance(base, before) <= TOLERANCE, "it answered otherwise before anything was sliced")
            hold(distance(expected, before) > 10 * TOLERANCE, "zeroed channels do not show in the answers")
            errors.append(distance(found, expected))
        row["error"] = max(errors)
        hold(row["error"] <= TOLERANCE, f"sliced and zeroed differ by {row['error']:.1e} of the largest logit")

    def resolution() -> None:
        row["other"] = next((side for side in _sides(size) if _takes(model, side)), None)
        if row["other"]:
            _learn(pruned, images(count, row["other"]))

    return {
        "removal": removal,
        "another batch size": lambda: _learn(pruned, images(count, size)),
        "another resolution": resolution,
        _EQUAL: equality,
    }


def _deployment(row: Row, held: dict[str, Any], folder: Path) -> Checks:
    model, pruned, x = held["model"], held["pruned"], held["x"]
    return {
        "reload": lambda: _reload(pruned, x, folder),
        "export": lambda: held.update(onnx=Export().write(pruned, noise(x), folder / "after.onnx")),
        "latency": lambda: row.update(latency=_latency(model, pruned, held.get("onnx"), x, folder)),
    }


def zeroed(model: students.Classifier, removed: Removed) -> students.Classifier:
    """A copy in which these entries of the parameters are zero."""
    made = copy.deepcopy(model)
    for path, parameter in made.net.named_parameters():
        for dim, indices in removed.get(path, {}).items():
            parameter.data.index_fill_(int(dim), torch.tensor(list(indices)), 0)
    return made.train().eval()  # as in `_learn`


def _cost(model: nn.Module, size: int) -> dict[str, int]:
    try:
        work = macs(shallow(model).to("meta"), (3, size, size))
    except Exception:  # a few nets make tensors of their own
        work = macs(copy.deepcopy(model), (3, size, size))
    return {"params": sum(parameter.numel() for parameter in model.parameters()), "macs": work}


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    with inference(model):
        return model(x)


def _sides(size: int) -> list[int]:
    """Other resolutions, those that cost less first."""
    return [side for side in (round(size / 64) * 32, size * 3 // 4, size - 32, size + 32) if 32 <= side != size]


def _takes(model: nn.Module, size: int) -> bool:
    try:
        _answer(model, images(1, size))
    except Exception:  # whatever nets raise for images that are not theirs
        return False
    return True


def _learn(model: nn.Module, x: Tensor) -> None:
    """Forward and backward."""
    logits = model.eval().requires_grad_(True)(x)
    hold(logits.shape == (len(x), CLASSES), f"answers have the shape {tuple(logits.shape)}")
    logits.square().mean().backward()
    slopes = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    hold(bool(slopes), "nothing has a gradient")
    hold(all(slope.isfinite().all() for slope in slopes), "a gradient is not finite")
    model.zero_grad()
    model.train().eval()  # some nets keep what they made of their parameters, with gradients, until they are to train


_RELOAD = """
import sys, torch, students
from safetensors.torch import load_file
told = load_file(sys.argv[1] + "/told.safetensors")
model = students.load(sys.argv[1])
assert not {"compress", "torch_pruning"} & sys.modules.keys(), "what prunes is at hand"
with torch.no_grad():
    assert torch.equal(model(told["x"]), told["logits"]), "it answers otherwise"
"""


def _reload(model: students.Classifier, x: Tensor, folder: Path) -> None:
    """Save, load in a new process without anything that can trace or prune, and compare to the bit."""
    students.save(model, folder / "student")
    save_file({"x": x, "logits": _answer(model, x)}, folder / "student/told.safetensors")
    command = [sys.executable, "-W", "ignore", "-c", _RELOAD, str(folder / "student")]
    done = subprocess.run(command, capture_output=True, text=True)
    hold(done.returncode == 0, last(done.stderr))


def _latency(model: nn.Module, pruned: nn.Module, onnx: OnnxModel | None, x: Tensor, folder: Path) -> dict[str, float]:
    """Milliseconds of the pruned over those of the whole model, in turns, one image, one thread."""
    begun = time.perf_counter()
    _answer(model, x[:1])
    if time.perf_counter() - begun > _PATIENCE:
        return {}
    models: dict[str, Any] = {"torch": model, "torch pruned": pruned}
    if onnx is not None:
        try:
            models["onnxruntime"] = Export().write(model, noise(x), folder / "before.onnx")
            models["onnxruntime pruned"] = onnx
        except InputError as error:
            say(f"the whole model has no ONNX form: {error}")
    told = compress.latency(models, tuple(x.shape[1:]), batches=(1,), repeats=5, seconds=2.0)
    spent = {name: found["batch1"]["p50"] for name, found in told.items()}
    return {name: spent[f"{name} pruned"] / spent[name] for name in spent if f"{name} pruned" in spent}


def sweep(config: SweepConfig) -> None:
    """Every model in every way that was not finished before, one after the other."""
    sweeping.sweep(config, alone)


def alone(name: str, way: str, out: str, limit: float) -> Row:
    """The row of a model that is examined in a process of its own, which may crash or be stopped."""
    path = SweepConfig(out).path(way, name)
    return sweeping.alone([*_words(name, way), "--out", out], path, {"name": name, "way": way}, limit)


def one(name: str, way: str, out: str) -> Row:
    """The row of a model that is examined here."""
    size = zoo.published(name).image_size
    return sweeping.one(SweepConfig(out).path(way, name), lambda tell: examine(name, way, size, tell))


def _words(name: str, way: str) -> list[str]:
    return words("prune_zoo", name, way, OURS)


HEAD = (
    *("family", "model", "pixels", "of", "params (M)", "MACs (M)", "error", "s", "torch", "ort", "whole", "holds"),
    *(f"{THEIRS}: MACs (M)", "error", "s", "runs"),
)


def page(out: str, names: Sequence[str]) -> str:
    """docs/pruning.md, of the rows that there are."""
    found = {way: finished_rows(out, way, names) for way in PRUNE}
    rows = {way: list(known.values()) for way, known in found.items()}
    lines = [_cells(name, *(found[way].get(name, {}) for way in (OURS, THEIRS))) for name in names]
    told = [_PREFACE, *_totals(rows, len(names)), table(HEAD, lines)]
    for way, heading in ((OURS, "What does not hold"), (THEIRS, f"What does not hold of {THEIRS}")):
        told += [f"## {heading}", failures(rows[way], partial(_words, way=way))]
    return "\n\n".join(told) + "\n"


_PREFACE = f"""\
# Pruning the zoo

One model of each module of timm (`experiments/zoo.txt`), {CLASSES} classes, untrained, with vectors and statistics as
if it had been trained, pruned by `compress.Prune(target={TARGET}, by="macs", round_to=1)`; where less than {LEAST:.0%}
of the MACs can go, by "params" (column "of"). A family **holds** where the sliced net answers as the whole one does
with the same entries of its parameters at zero ("error": of the largest logit, at most {TOLERANCE}, at two resolutions
where the family allows), forward and backward run at another batch size and another resolution, at least {LEAST:.0%}
of the MACs or parameters are gone, `students.save` and `load` give the same logits to the bit in a new process, and
the ONNX export agrees. These checks are the sweep's own. "s": seconds of one core for analysing and pruning. "torch",
"ort": time of the pruned net over that of the whole one, an image, a thread, in turns. "whole": groups of channels
that were left.

Beside it {THEIRS} as its documentation uses it: half of the channels of each layer, l2 by group, the classifier
ignored, heads told. It **runs** where forward and backward do, at another batch size and resolution, and {LEAST:.0%}
went. Its error is that of its slices against the same zeros, which normalisation over channels changes; – where its
slices cannot be told. It has no way to save but pickle. Made by `make sweep-prune`."""


def _totals(rows: Mapping[str, list[Row]], count: int) -> Iterator[str]:
    runs = [row for row in rows[THEIRS] if not row["failed"].keys() - {_EQUAL}]
    exact = sum(row.get("error", 1.0) <= TOLERANCE for row in runs)
    yield (
        f"**{sum(not row['failed'] for row in rows[OURS])} of {count} families hold**, {examined(rows[OURS], count)}. "
        f"Of {THEIRS} {len(runs)} run, {examined(rows[THEIRS], count)}, and {exact} of them answer as zeroed."
    )
    seconds = {way: {row["name"]: row["seconds"] for row in rows[way] if "seconds" in row} for way in rows}
    for way, spent in seconds.items():
        if spent:
            slowest = max(spent, key=lambda name: spent[name])
            median = statistics.median(spent.values())
            yield f"Seconds of {way}: median {median:.2f}, slowest {spent[slowest]:.1f} (`{slowest}`)."
    both = [seconds[OURS][name] / seconds[THEIRS][name] for name in seconds[OURS].keys() & seconds[THEIRS].keys()]
    if both:
        yield f"Median of the ratio, where both end: {statistics.median(both):.2f}."


def _cells(name: str, row: Row, other: Row) -> list[str]:
    from timm.models import _registry as registry

    latency = row.get("latency", {})
    return [
        registry._model_to_module[name],
        name,
        str(row.get("pixels", MISSING)),
        row.get("by", MISSING),
        change(row, "params"),
        change(row, "macs"),
        number(row.get("error"), ".1e"),
        number(row.get("seconds"), ".2f"),
        *(number(latency.get(runtime), ".2f") for runtime in ("torch", "onnxruntime")),
        str(row.get("whole", MISSING)),
        verdict(row, row.get("failed", ())),
        change(other, "macs"),
        number(other.get("error"), ".1e"),
        number(other.get("seconds"), ".2f"),
        verdict(other, other.get("failed", {}).keys() - {_EQUAL}),
    ]


def main(config: SweepConfig, _: str) -> None:
    if config.model:
        for way in config.ways[:1]:
            print(json.dumps(one(config.model, way, config.out), indent=1))
        return
    written = cli.writable("write", config.write)
    sweep(config)
    sweeping.show(page(config.out, config.models or NAMES), written)


if __name__ == "__main__":
    sys.exit(cli.run("prune_zoo", SweepConfig, main))
