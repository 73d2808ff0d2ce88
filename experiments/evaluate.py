"""Score any artefact, a model folder or a file, on one split, on the runtime that runs it.

Example: python -m experiments.evaluate --model runs/digits/stages/06-quantize --data.source digits --split test
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import teachers
from compress import Artefact, load_artefact, measure
from compress.stage import check_logits
from experiments import cli
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.evaluate import answers, inference, score


@dataclass(frozen=True)
class EvaluateConfig:
    """Score one artefact.

    Attributes:
        model: a model folder, or a file such as model.onnx, model.pt2 or model.coded.
        data: what it is scored on.
        split: which part of it.
    """

    model: str
    data: DataConfig = DataConfig()
    split: Literal["train", "val", "test"] = "val"


def opened(path: Path, data: Data) -> Artefact:
    """The artefact as it meets this data: images are adapted to one that works at another resolution, or in colour."""
    model = load_artefact(path)
    plan = getattr(model, "blueprint", None)
    if plan is None or (plan.in_chans, plan.image_size, plan.image_size) == data.facts.image_shape:
        return model
    return teachers.Adapted(model, plan.image_size, plan.in_chans)


def main(config: EvaluateConfig, resolved: str) -> None:
    data = load_data(config.data)
    model = opened(Path(config.model), data)
    with inference(model):  # one image tells soon what is wrong with all of them
        check_logits(model(next(data.evaluation(config.split, 1)).x), data, config.model)
    logits, labels = answers(model, data.evaluation(config.split))
    check_logits(logits, data, config.model)
    metrics = score(logits, labels)
    cost = measure(model, data.facts.image_shape)
    print(json.dumps({"model": config.model, "split": config.split, **asdict(metrics), **asdict(cost)}, indent=1))


if __name__ == "__main__":
    sys.exit(cli.run("evaluate", EvaluateConfig, main))
