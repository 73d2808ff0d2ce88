"""Nets that nobody trained, and images that show nothing: for what depends on neither, such as time and size.

The commands that measure it keep no run folder: they print a table and, where that is wanted, keep its figures as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import students
from compress import Context
from experiments import cli
from experiments.sweep import CLASSES, Row
from kd.batch import Facts
from kd.checkpoint import save_json
from kd.data import Augment, Data, DataConfig
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import CrossEntropy
from students import Blueprint, zoo


def build(name: str, classes: int, image_size: int | None = None, seed: int = 0) -> students.Classifier:
    """A fresh net, in evaluation mode, for images of so many pixels a side; None: as published."""
    torch.manual_seed(seed)
    size = image_size or zoo.published(name).image_size
    return Blueprint(name, classes, image_size=size, normalize=((0.5,), (0.25,))).build().eval()


def images(count: int, size: int, seed: int = 0) -> Tensor:
    """Noise."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def enliven(model: nn.Module, x: Tensor) -> None:
    """Give a fresh net weights and statistics as after training, where branches that begin mute hide any mistake."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.squeeze().dim() < 2:  # no value twice, so that a slice tells where it is from
                values = torch.randperm(parameter.numel()) / parameter.numel() + (-0.5 if "bias" in name else 0.5)
                parameter.copy_(values.view_as(parameter))
            elif parameter.std() < (scale := parameter[0].numel() ** -0.5) / 2:
                parameter.normal_(std=scale)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.momentum = 1.0  # the statistics of these images alone
        model.train()
        if norms:
            model(x)
        for norm in norms:
            norm.running_var.clamp_(min=0.3)  # a channel that hardly varied would make another image explode
    model.eval()


class Noise:
    """Images and labels of a split."""

    def __init__(self, x: Tensor) -> None:
        self.pixels, self.labels = (255 * x).byte(), torch.arange(len(x))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return (self.pixels[batch] for batch in batches)


def noise(x: Tensor, classes: int = CLASSES) -> Data:
    """A data set of these images, for stages that look at one."""
    split, (count, *size) = Noise(x), x.shape[1:]
    names = tuple(map(str, range(classes)))
    facts = Facts(classes, names, count, (size[0], size[1]), (0.5,) * count, (0.25,) * count, split.labels)
    return Data(DataConfig(), Augment(), facts, split, split, split, (), "noise")


def context(x: Tensor, folder: Path) -> Context:
    """For a stage that looks at these images, if at any, and trains nothing."""
    return Context(noise(x), None, folder, Fit(trackers=()), lambda: Objective({"ce": Term(CrossEntropy())}))


def tell(
    name: str, place: str | None, measure: Callable[[], Sequence[Row]], render: Callable[[Sequence[Row]], str]
) -> None:
    """Print the table of what the command `name` measures, and keep the figures at `place` with the command.

    Raises InputError before anything is measured where they could not be kept.
    """
    path = cli.writable("json", place)
    rows = measure()
    print(render(rows))
    if path:
        save_json(path, {"command": cli.command(name), "rows": rows})
