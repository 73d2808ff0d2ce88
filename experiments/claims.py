"""What surveys of compression claim, row by row: the commands that measure it here, and what these left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from compress.target import cost_of
from kd.checkpoint import load_json
from students import Blueprint

Words = list[str]
FIGURES = "figures.json"


@dataclass(frozen=True)
class Figure:
    """A number of ours beside the published one.

    Attributes:
        what: it counts: "MB", "times faster".
        value: ours.
        published: theirs; None: they have none.
        less: whether less is better.
        form: how both are shown.
        more: what is said behind it, such as a spread.
    """

    what: str
    value: float
    published: float | None = None
    less: bool = False
    form: str = ".2f"
    more: str = ""

    @property
    def reached(self) -> bool:
        if self.published is None:
            return True
        return self.value <= self.published if self.less else self.value >= self.published

    @property
    def beaten(self) -> bool:
        return self.reached and self.value != self.published

    def __str__(self) -> str:
        return f"{self.value:{self.form}}{self.more} {self.what}"


@dataclass(frozen=True)
class Setting:
    """Where the commands of a row find images and the weights of a ResNet-56, and where they leave figures."""

    cifar10: str
    resnet56: str | None
    folder: Path


@dataclass(frozen=True)
class Claim:
    """A row of the survey.

    Attributes:
        published: what is claimed.
        commands: that measure it.
        read: their figures, from the row's folder.
        conditions: under which ours was measured.
        why: the reason, should it not be reached.
    """

    published: str
    commands: Callable[[Setting], list[Words]]
    read: Callable[[Path], list[Figure]]
    conditions: str
    why: str


def _command(name: str, *words: object) -> Words:
    return ["python", "-m", f"experiments.{name}", *map(str, words)]


def _drawn(name: str, *words: str) -> Callable[[Setting], list[Words]]:
    """A command that reads no data and keeps its figures in one file."""
    return lambda setting: [_command(name, *words, "--json", setting.folder / FIGURES)]


def _rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load_json(path)["rows"]
    return found


def _integers(folder: Path) -> list[Figure]:
    sizes = {row["file"]: row["bytes"] / 1e6 for row in _rows(folder / FIGURES)}
    static, dynamic = sizes["static, a scale each channel"], sizes["dynamic"]
    return [Figure("MB, static", static, 3.63, less=True), Figure("MB, dynamic", dynamic, 3.98, less=True)]


def _factors(params: float, speed: float) -> Callable[[Path], list[Figure]]:
    def read(folder: Path) -> list[Figure]:
        _, small = _rows(folder / FIGURES)
        found = [Figure("times fewer parameters", small["fewer"]["params"], params)]
        for runtime, times in small["faster"].items():
            more = f" ({min(times):.2f} to {max(times):.2f})"
            found.append(Figure(f"times faster on {runtime}", median(times), speed, more=more))
        return found

    return read


def _coded(ratio: float, coder: str) -> Callable[[Path], list[Figure]]:
    def read(folder: Path) -> list[Figure]:
        (row,) = _rows(folder / FIGURES)
        return [Figure(f"times smaller, by {coder}", row["files"][coder]["ratio"], ratio)]

    return read


def _pruned(folder: Path) -> list[Figure]:
    _, small = _rows(folder / FIGURES)
    found = [Figure("% of the parameters", 100 * small["kept"]["params"], 25, less=True, form=".1f")]
    for runtime, times in small["time"].items():
        for batch, share in times.items():
            what = f"% of the time on {runtime}, {batch}"
            found.append(Figure(what, 100 * share, 50, less=True, form=".0f"))
    return found


def _counted(folder: Path) -> list[Figure]:
    nets = (Blueprint(f"tv_{name}", 1000, image_size=224).build("meta") for name in ("alexnet", "squeezenet1_0"))
    large, small = (cost_of(net, (3, 224, 224), "params") for net in nets)
    return [Figure("times fewer parameters", large / small, 50, form=".1f")]


def _vgg(setting: Setting) -> list[Words]:
    """A net that learnt from a ResNet-56, then each technique alone on it."""
    recipe = ("--config", "experiments/recipes/cifar10.yaml", "--data.source", setting.cifar10)
    recipe += ("--data.train_size", "10000")
    teacher = ("--teacher.source", setting.resnet56) if setting.resnet56 else ()
    student = ("--student.name", "cifar_vgg8", "--student.width", "0.5", "--fit.epochs", "12", "--fit.lr", "0.05")
    net = ("--teacher.source", setting.folder / "vgg/student", "--lr", "0.02")
    longer = {"class_path": "compress.Recover", "init_args": {"epochs": 2, "lr": 0.02}}  # what recovery alone does
    return [
        _command("distill", *recipe, *teacher, *student, "--out", setting.folder / "vgg"),
        _command(
            "compare_techniques",
            *recipe,
            *net,
            "--ways",
            json.dumps({"recovery alone": [longer]}),
            "--out",
            setting.folder / "techniques",
        ),
    ]


def techniques(folder: Path) -> Path:
    """The table of each technique alone on one net."""
    return folder / "techniques/table.json"


def _spatial(folder: Path) -> list[Figure]:
    rows = {row["technique"]: row for row in _rows(techniques(folder))}
    whole, small = rows["whole"], rows["spatial factors"]
    lost = {split: whole[split] - small[split] for split in ("val", "test")}
    found = [
        Figure("points less on validation", lost["val"], 1, less=True),
        Figure("points less on test", lost["test"]),
    ]
    for runtime, times in small["ms"].items():
        found.append(Figure(f"times faster on {runtime}", whole["ms"][runtime]["batch1"] / times["batch1"], 4.5))
    return found


def _tutorial(setting: Setting) -> list[Words]:
    """The tutorial's nets, optimiser, rate, batches, epochs and loss, and beside it the library's KD."""
    soft = {"loss": {"class_path": "kd.losses.KD", "init_args": {"temperature": 2.0}}, "weight": 0.25}
    hard = {"loss": {"class_path": "kd.losses.CrossEntropy"}, "weight": 0.75}
    words = ["--data.source", setting.cifar10, "--data.train_size", "5000", "--data.val_fraction", "0.05"]
    words += ["--data.augment", "{views: 1}", "--seeds", "0,1,2,3,4"]
    words += ["--methods", "KD", "--own", json.dumps({"tutorial": {"KD": soft, "CrossEntropy": hard}})]
    words += ["--teacher.architecture", "cifar_deepnn", "--student.name", "cifar_lightnn"]
    words += ["--teacher.width", "1"]
    fit = {"epochs": 10, "batch_size": 128, "optimizer": "adam", "lr": 0.001, "weight_decay": 0}
    fit |= {"warmup_epochs": 0, "scheduler": "none"}
    words += [
        word
        for who in ("teacher.fit", "fit")
        for name, value in fit.items()
        for word in (f"--{who}.{name}", str(value))
    ]
    return [_command("compare_methods", *words, "--out", setting.folder / "methods")]


def _gained(folder: Path) -> list[Figure]:
    found = {row["name"]: row["top1_test"] for row in _rows(folder / "methods/methods.json")}
    told = [("% of LightNN alone", found["scratch"], None), ("% of LightNN distilled", found["tutorial"], None)]
    for name, goal in (("tutorial", 0.23), ("KD", None)):
        gains = [distilled - alone for alone, distilled in zip(found["scratch"], found[name], strict=True)]
        told.append(("points gained" if goal else "by weights of 0.9 and 0.1 at T = 4", gains, goal))
    teacher = Figure("% of DeepNN", mean(found["teacher"]))
    return [teacher, *(Figure(what, mean(values), goal, more=f" ± {stdev(values):.2f}") for what, values, goal in told)]


_UNTRAINED = "Weights are drawn, so nothing is said of accuracy."
_TIMED = "One image, one thread, all forms in turns; median (and range) of five measurements."

CLAIMS: dict[str, Claim] = {
    "mobilenetv2": Claim(
        "MobileNetV2 in 8-bit integers: 3.63 and 3.98 MB",
        _drawn("quantized_size", "--name", "mobilenetv2_100"),
        _integers,
        f"Files that onnxruntime runs, 1,000 classes; a MB is a million bytes. {_UNTRAINED}",
        "scales and names take more bytes",
    ),
    "alexnet-cp": Claim(
        "AlexNet by CP: 5.00× smaller, 1.82× faster",
        _drawn("lowrank_latency", "--name", "tv_alexnet", "--method", "cp", "--dense", "0.18", "--macs", "0.45"),
        _factors(5.0, 1.82),
        f"{_TIMED} {_UNTRAINED}",
        "time does not follow the multiply-accumulates",
    ),
    "vgg16-tucker": Claim(
        "VGG-16 by Tucker: 2.75× smaller, 2.05× faster",
        _drawn("lowrank_latency", "--name", "tv_vgg16", "--method", "tucker", "--dense", "0.33", "--macs", "0.25"),
        _factors(2.75, 2.05),
        f"{_TIMED} {_UNTRAINED}",
        "time does not follow the multiply-accumulates",
    ),
    "alexnet-coded": Claim(
        "AlexNet by Deep Compression: 35× smaller",
        _drawn("coding_ratio", "--name", "alexnet", "--ways", '["8 and 4 bits, spread"]', "--coders", "[zstd]"),
        _coded(35, "zstd"),
        f"At the paper's sparsities, at the error of 8 and 4 bits; a file, decoded to the bit. {_UNTRAINED}",
        "it lies above what codes of independent positions and values can reach",
    ),
    "vgg16-coded": Claim(
        "VGG-16 by Deep Compression: 49× smaller",
        _drawn("coding_ratio", "--name", "vgg16", "--ways", '["7 and 4 bits, spread"]', "--coders", "[range]"),
        _coded(49, "range"),
        f"At the paper's sparsities, at the error of 7 and 4 bits; a file, decoded to the bit. {_UNTRAINED}",
        "it lies above what codes of independent positions and values can reach",
    ),
    "jaderberg": Claim(
        "Spatial factors (Jaderberg et al. 2014): 4.5× faster at 1 point less",
        _vgg,
        _spatial,
        "A VGG-8 of half the width on 10,000 JPEG images of CIFAR-10; the strongest setting within a point on "
        "validation after 2 epochs of recovery; one image, one thread, all forms in turns.",
        "the next setting of the ladder loses more than a point; the paper's net reads characters, with filters of up "
        "to 9 x 9, of which factors save more than of 3 x 3",
    ),
    "resnet50-pruned": Claim(
        "ResNet-50 pruned: 75 % fewer parameters, 50 % less time",
        _drawn("pruned_latency", "--name", "resnet50", "--target", "0.24", "--by", "params", "--round_to", "[8]"),
        _pruned,
        f"224 pixels, one thread, all forms in turns; widths are multiples of 8. {_UNTRAINED}",
        "time does not follow the parameters",
    ),
    "squeezenet": Claim(
        "SqueezeNet: 50× fewer parameters than AlexNet",
        lambda setting: [],
        _counted,
        "torchvision's nets of 1,000 classes, counted.",
        "the paper compares 4.8 MB with 240 MB, rounded",
    ),
    "tutorial": Claim(
        "PyTorch's tutorial on distillation: LightNN 70.33 → 70.56 %",
        _tutorial,
        _gained,
        "5,000 JPEG images of CIFAR-10 to train on where the tutorial has 50,000, all 10,000 to test; the teacher is "
        "trained once, students with five seeds; mean ± standard deviation, gains seed by seed.",
        "that is less than the seeds differ by",
    ),
}
