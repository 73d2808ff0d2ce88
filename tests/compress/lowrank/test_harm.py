from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from compress.lowrank import LowRank, harm
from compress.lowrank.forms import factorise
from compress.lowrank.harm import harms
from compress.lowrank.layers import look
from compress.lowrank.ranks import Choice


@pytest.fixture(scope="module")
def layers(trained, digits):
    return look(trained, torch.cat([view.x for view in digits.evaluation("val")])[:32], whiten=False)


def nll(model, digits) -> float:
    """Over the whole validation split, which has fewer images than harm asks for."""
    (view,) = digits.evaluation("val", len(digits.val))
    with torch.no_grad():
        return float(cross_entropy(model(view.x), view.y))


def test_harm_is_what_validation_loses_where_one_layer_alone_is_cut(trained, layers, digits, context):
    layer = layers[2]
    ways = [
        Choice((6, 6), 75, 0.2, "tucker"),
        Choice((3, 3), 50, 0.4, "tucker"),
        Choice((2,), 25, 0.6, "spatial"),
    ]
    (found,) = harms(trained, [layer], [[Choice((), 100, 0.0), *ways]], context())

    highest, whole = 0.0, nll(trained, digits)
    assert found[0] == 0
    for way, value in zip(ways, found[1:], strict=True):
        made = copy.deepcopy(trained)
        factorise(made, layer, way.method, way.ranks)
        highest = max(highest, nll(made, digits) - whole)
        assert value == pytest.approx(highest, abs=1e-4)
    assert found[-1] > 0.01


def test_between_and_beyond_what_was_measured_it_goes_on_straight():
    curve = {0.0: 0.0, 0.2: 0.1, 0.4: 0.05, 0.6: 0.5}

    assert [harm._at(curve, lost) for lost in (0.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.8)] == pytest.approx(
        [0, 0.05, 0.1, 0.1, 0.3, 0.5, 0.9]
    )
    assert harm._at({0.0: 0.0}, 0.7) == 0


def test_a_layer_without_choices_does_no_harm(trained, layers, context):
    assert harms(trained, layers[:1], [[Choice((), 100, 0.0)]], context()) == [[0.0]]


def test_layers_that_validation_does_not_miss_are_cut_before_others(trained, context, digits):
    """What reads the first convolution of the second stage is silent, so that cutting it does no harm."""
    model = copy.deepcopy(trained)
    convs = [path for path, module in model.net.named_modules() if path.endswith("conv1") and "layer2" in path]
    with torch.no_grad():
        model.net.get_submodule(convs[0].replace("conv1", "conv2")).weight.zero_()
    by_harm, by_energy = (
        LowRank(0.8, method="spatial", ranks=ranks, whiten=False)(model, context())[1].details["layers"]
        for ranks in ("sensitivity", "budget")
    )

    assert by_harm[convs[0]]["lost"] > by_energy.get(convs[0], {"lost": 0})["lost"]
