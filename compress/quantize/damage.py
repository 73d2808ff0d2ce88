"""Which layers a net can least afford to have in integers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from compress.onnx_model import OnnxModel
from compress.quantize.integer import Ready

_IMAGES = 32  # that the answers are compared on


def damage(ready: Ready, model: OnnxModel) -> dict[str, float]:
    """What each layer alone in integers does to the answers on the runtime, the worst layer first.

    It is Kullback's and Leibler's divergence of the float file's answers from those of a file in which that layer
    alone is quantised, in nats, on calibration images; labels are not needed.
    """
    images = ready.images[:_IMAGES]
    whole = model(images).double().log_softmax(1)
    found = {}
    with TemporaryDirectory() as folder:
        for layer in ready.net.layers:
            file = ready.static(Path(folder) / "one.onnx", only=[layer.name])
            answers = file(images).double().log_softmax(1)
            found[layer.name] = float(
                torch.nn.functional.kl_div(answers, whole, reduction="batchmean", log_target=True)
            )
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))
