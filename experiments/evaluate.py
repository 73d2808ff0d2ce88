"""Score any artefact, a model folder or an ONNX file, on one split, on the runtime that runs it.

Example: python -m experiments.evaluate --model runs/digits/stages/06-quantize --data.source digits --split test
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from compress import OnnxModel, load_artefact, measure
from experiments import cli
from kd.data import DataConfig
from kd.data import load as load_data
from kd.errors import InputError
from kd.evaluate import evaluate


@dataclass(frozen=True)
class EvaluateConfig:
    """Score one artefact.

    Attributes:
        model: a model folder or a .onnx file.
        data: what it is scored on.
        split: which part of it.
    """

    model: str
    data: DataConfig = DataConfig()
    split: Literal["train", "val", "test"] = "val"


def main(config: EvaluateConfig, resolved: str) -> None:
    data, path = load_data(config.data), Path(config.model)
    model = OnnxModel(path) if path.suffix == ".onnx" else load_artefact(path)
    view = next(data.evaluation(config.split, 1))
    classes = model(view.x).shape[1]
    if classes != data.facts.classes:
        raise InputError("model", config.model, f"has {classes} classes and the data {data.facts.classes}")
    metrics = evaluate(model, data.evaluation(config.split))
    cost = measure(model, (data.facts.channels, *data.facts.image_size))
    print(json.dumps({"model": config.model, "split": config.split, **asdict(metrics), **asdict(cost)}, indent=1))


if __name__ == "__main__":
    sys.exit(cli.run("evaluate", EvaluateConfig, main))
