from __future__ import annotations

import torch
from torch import nn

from compress.export import convert
from compress.onnx_model import write
from compress.quantize.damage import damage
from compress.quantize.integer import Ready, integer_convolutions
from compress.quantize.scheme import Scheme


def test_the_layer_that_suffers_most_comes_first_and_spares_most_in_float(tmp_path):
    """A weight of the second convolution, for a channel that is always zero, leaves few integers to the others."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 3), nn.ReLU())), nn.Flatten(), nn.Linear(12, 4)
    )
    with torch.no_grad():
        net[0].weight[0] = 0
        net[0].bias[0] = -0.1
        net[2].weight[:, 0, 0, 0] = 200.0
    images = torch.rand(16, 3, 8, 8)
    images[:, :, ::2, ::2] = 0
    exported = write(convert(net.eval(), images, 18), tmp_path / "float.onnx")
    ready = Ready(exported, images, Scheme(reduce_range=False))
    found = damage(ready, exported)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert list(found) != [layer.name for layer in ready.net.layers]
    assert len(found) == 4
    assert next(iter(found)) == ready.net.layers[1].name

    file = ready.static(tmp_path / "whole.onnx")
    spared = ready.static(tmp_path / "spared.onnx", [next(iter(found))])
    assert [integer_convolutions(each.path) for each in (file, spared)] == [(3, 3), (2, 3)]
    errors = [float((each(images) - exported(images)).norm()) for each in (file, spared)]
    assert errors[1] < 0.7 * errors[0]
