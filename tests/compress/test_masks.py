from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import students
from compress import masks
from kd import taps
from kd.batch import Needs


def scores() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a": torch.rand(5, 8, 3, 3), "b": torch.rand(7, 4), "c": torch.rand(2, 12, 1, 1) / 10}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 3)).eval()


@pytest.mark.parametrize("sparsity", [0.0, 0.13, 0.5, 0.9, 1.0])
def test_by_rank_the_lowest_of_all_go_to_a_weight(sparsity):
    given = scores()
    ranked = sorted(value for score in given.values() for value in score.flatten().tolist())
    gone = set(ranked[: round(sparsity * len(ranked))])
    for path, mask in masks.by_rank(given, sparsity).items():
        assert mask.shape == given[path].shape
        assert mask.flatten().tolist() == [value not in gone for value in given[path].flatten().tolist()]


def test_by_rank_of_each_layer():
    given = scores()
    for path, mask in masks.by_rank(given, 0.7, "layer").items():
        count = round(0.7 * mask.numel())
        assert int((~mask).sum()) == count
        assert given[path][~mask].max() < given[path][mask].min()


def test_of_equals_the_first_go_and_the_count_is_kept():
    (mask,) = masks.by_rank({"a": torch.zeros(3, 4)}, 0.5).values()
    assert mask.flatten().tolist() == [False] * 6 + [True] * 6


@pytest.mark.parametrize(("kept", "size"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_by_group_so_many_of_neighbouring_inputs_stay_and_they_are_the_highest(kept, size):
    given = {"conv": torch.rand(3, 8, 2, 2), "linear": torch.rand(5, 12)}
    made = masks.by_group(given, 1 - kept / size, size)
    for path, score in given.items():
        assert made[path].shape == score.shape
        rows, places = score.reshape(*score.shape[:2], -1), made[path].reshape(*score.shape[:2], -1)
        for out in range(rows.shape[0]):
            for place in range(rows.shape[2]):
                for first in range(0, rows.shape[1], size):
                    group = rows[out, first : first + size, place].tolist()
                    expected = [value in sorted(group)[-kept:] for value in group]
                    assert places[out, first : first + size, place].tolist() == expected


def test_cubic_by_the_formula():
    for time in (0.0, 0.3, 1.0):
        assert masks.cubic(0.2, 0.9, time) == pytest.approx(0.9 + (0.2 - 0.9) * (1 - time) ** 3)
    assert masks.cubic(0.2, 0.9, 0) == pytest.approx(0.2)
    assert masks.cubic(0.2, 0.9, 1) == 0.9


def test_scores_by_their_formulas():
    weights = scores()
    curvature = {path: torch.rand_like(weight) for path, weight in weights.items()}
    for path, score in masks.obd(weights, curvature).items():
        pairs = zip(curvature[path].flatten().tolist(), weights[path].flatten().tolist(), strict=True)
        assert score.flatten().tolist() == pytest.approx([0.5 * h * w * w for h, w in pairs])
    negated = {path: -weight for path, weight in weights.items()}
    assert all(torch.equal(score, weights[path]) for path, score in masks.magnitude(negated).items())
    draws = masks.random(weights, 1)
    assert all(torch.equal(draws[path], again) for path, again in masks.random(negated, 1).items())
    assert not torch.equal(draws["a"], masks.random(weights, 2)["a"])
    assert not torch.equal(draws["a"].flatten()[:24], draws["c"].flatten())


def test_curvature_is_the_mean_of_squared_gradients_sample_by_sample():
    model = students.create("cifar_resnet8", num_classes=3, in_chans=1, image_size=8, width=0.25)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 1])
    found = masks.curvature(model.train(), x, y)
    assert model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    other = copy.deepcopy(model).eval().requires_grad_(True)
    for path, layer in masks.layers(other.net).items():
        total = torch.zeros_like(layer.weight)
        for image, label in zip(x, y, strict=True):
            (gradient,) = torch.autograd.grad(cross_entropy(other(image[None]), label[None]), layer.weight)
            total += gradient**2
        assert torch.allclose(found[path], total / 4, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("feedback", [False, True])
def test_masked_weights_are_exactly_zero_and_gradients_reach_them_with_feedback_alone(feedback):
    model = net()
    layers = masks.layers(model)
    made = masks.by_rank(masks.magnitude(masks.weights(layers)), 0.5)
    dense = {path: weight.clone() for path, weight in masks.weights(layers).items()}
    masks.hold(layers, made, feedback)
    model(torch.rand(2, 1, 4, 4)).square().sum().backward()
    for path, layer in layers.items():
        assert torch.equal(layer.weight, dense[path] * made[path])
        assert torch.equal(masks.weights(layers)[path], dense[path])
        reached = layer.parametrizations.weight.original.grad != 0
        assert not (reached & ~made[path]).any() if not feedback else (reached & ~made[path]).any()
        assert (reached & made[path]).any()
    masks.bake(model)
    for path, layer in masks.layers(model).items():
        assert type(layer) in (nn.Conv2d, nn.Linear)
        assert isinstance(layer.weight, nn.Parameter)
        assert torch.equal(layer.weight, dense[path] * made[path])
    assert model.state_dict().keys() == net().state_dict().keys()


def test_only_zeros_of_layers_are_held():
    model = net()
    nn.init.zeros_(model[1].weight)  # a norm
    nn.init.zeros_(model[5].bias)
    masks.hold_zeros(model)
    assert model.state_dict().keys() == net().state_dict().keys()  # nothing to hold
    with torch.no_grad():
        model[5].weight[0, 3] = 0
    masks.hold_zeros(model)
    (mask,) = (module for module in model.modules() if isinstance(module, masks.Mask))
    assert mask.keep.nonzero().shape[0] == 47
    assert not mask.keep[0, 3]


@pytest.mark.parametrize("name", ["cifar_resnet8", "vit_tiny_patch16_224", "tv_squeezenet1_1"])
def test_taps_read_a_masked_net_as_they_read_its_zeros(name):
    torch.manual_seed(0)
    factors = {} if name.startswith("tv") else {"width": 0.25, "depth": 0.25}
    model = students.create(name, num_classes=10, in_chans=1, image_size=32, **factors).eval()
    layers = masks.layers(model.net)
    masks.hold(layers, masks.by_rank(masks.magnitude(masks.weights(layers)), 0.5))
    x = torch.rand(2, 1, 32, 32)
    needs = Needs(embedding=True, stages=(-1,), classifier=not name.startswith("tv"))
    told, read = taps.ports(model, 1, (32, 32)), taps.read(model, x, needs)
    masks.bake(model)
    same = taps.read(model, x, needs)
    assert told == taps.ports(model, 1, (32, 32))
    assert torch.equal(read.logits, same.logits)
    assert torch.equal(read.embedding, same.embedding)
    assert all(torch.equal(a, b) for a, b in zip(read.stages, same.stages, strict=True))
    assert read.extra.keys() == same.extra.keys()
    assert all(torch.equal(read.extra[key], same.extra[key]) for key in read.extra)
