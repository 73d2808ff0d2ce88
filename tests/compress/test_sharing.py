from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compress import masks, sharing


def net(values: int = 5, density: float = 0.6) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        for layer in masks.layers(made).values():
            drawn = torch.randn(values)[torch.randint(values, layer.weight.shape)]
            layer.weight.copy_(drawn.masked_fill(torch.rand(layer.weight.shape) > density, 0))
    return made.eval()


def groups(weight):
    """For each value, where it stands."""
    return {value: (weight == value).flatten().tolist() for value in weight.unique().tolist()}


def test_weights_that_are_equal_stay_equal_and_zeros_zero_through_training():
    model = net()
    before = {path: weight.clone() for path, weight in masks.weights(masks.layers(model)).items()}
    sharing.hold(model)
    for path, layer in masks.layers(model).items():
        assert torch.equal(layer.weight, before[path])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.rand(6, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    masks.bake(model)
    assert model.state_dict().keys() == net().state_dict().keys()
    for path, layer in masks.layers(model).items():
        assert type(layer) in (nn.Conv2d, nn.Linear)
        assert isinstance(layer.weight, nn.Parameter)
        assert layer.weight.shape == before[path].shape
        assert not torch.equal(layer.weight, before[path])
        assert layer.weight.isfinite().all()
        assert sorted(groups(layer.weight).values()) == sorted(groups(before[path]).values())
        assert groups(layer.weight)[0.0] == groups(before[path])[0.0]
    model(torch.rand(2, 1, 4, 4)).sum().backward()  # and trains on as any other


def test_a_step_is_the_projection_of_the_step_of_each_weight():
    shared, free = net(), net()
    x = torch.rand(6, 1, 4, 4)
    sharing.hold(shared)
    for model in (shared, free):
        optimizer = torch.optim.SGD(masks.layers(model)["4"].parameters(), lr=0.1)
        model(x).square().sum().backward()
        optimizer.step()
    before, stepped = net()[4].weight.detach(), free[4].weight.detach()
    for value in before.unique():
        expected = 0.0 if value == 0 else float(stepped[before == value].double().mean())
        assert shared[4].weight.detach()[before == value].tolist() == pytest.approx(
            [expected] * int((before == value).sum()), abs=1e-6
        )


@pytest.mark.parametrize(
    ("weight", "held"),
    [
        (torch.tensor([[1.0, 2.0, 0.0, 1.0]]), True),
        (torch.tensor([[1.0, 2.0, 3.0, 4.0]]), False),  # no two are equal
        (torch.zeros(3, 4), False),
        (torch.arange(1.0, 257).repeat(2, 2), True),
        (torch.arange(1.0, 258).repeat(2, 2), False),
        (torch.rand(300, 300), False),
        (torch.cat([torch.ones(100, 100), torch.rand(100, 100)]), False),
    ],
)
def test_only_layers_of_few_values_are_held(weight, held):
    layer = nn.Linear(*reversed(weight.shape))
    layer.weight.data.copy_(weight)
    index = sharing.shared(layer.weight)
    assert (index is not None) == held
    if index is not None:
        values = weight[weight != 0].unique()
        assert torch.equal(torch.cat([torch.zeros(1), values])[index.long()], weight)
    sharing.hold(nn.Sequential(layer))
    assert masks.layers(nn.Sequential(layer))["0"].weight.equal(weight)
    assert hasattr(layer, "parametrizations") == held


def test_copies_and_zeros_of_others_are_held_too():
    model = net()
    nn.init.normal_(model[4].weight)
    with torch.no_grad():
        model[4].weight[0, 3] = 0
    sharing.hold(model)
    masks.hold_zeros(model)
    made = copy.deepcopy(model)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    made(torch.rand(6, 1, 4, 4)).square().sum().backward()
    optimizer.step()
    assert made[4].weight[0, 3] == 0
    assert len(made[4].weight.unique()) == 192
    assert len(made[0].weight.unique()) == len(net()[0].weight.unique())
