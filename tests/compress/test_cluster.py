from __future__ import annotations

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.nn.utils.parametrizations import weight_norm

import students
from compress import Cluster, Prune, Recover, Sparsify, cluster, masks
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import KD
from teachers import Teacher


def weights(model):
    return masks.weights(masks.layers(model.net))


def lost(made, model):
    """By layer, the share of the energy."""
    before, after = weights(model), weights(made)
    return {
        path: float((after[path].double() - w.double()).square().sum() / w.double().square().sum())
        for path, w in before.items()
    }


def bits(made):
    """Of an ideal code for the clusters of all weights that are not zero."""
    total = 0.0
    for weight in weights(made).values():
        _, counts = weight[weight != 0].unique(return_counts=True)
        total += float(-(counts * (counts / counts.sum()).log2()).sum())
    return total


@pytest.fixture(scope="module")
def sparse(trained, digits, tmp_path_factory):
    context = cluster.Context(digits, None, tmp_path_factory.mktemp("sparse"), Fit(), lambda: Objective({}))
    return Sparsify(0.7)(trained, context)[0]


def test_each_layer_takes_few_values_and_nothing_else_moves(sparse, context):
    before = copy.deepcopy(sparse.state_dict())
    made, report = Cluster(4, 2)(sparse, context())
    for path, weight in weights(made).items():
        old = weights(sparse)[path]
        assert torch.equal(weight == 0, old == 0)
        kept = weight[weight != 0].unique()
        assert len(kept) == report.details["clusters"][path] == (4 if path == "linear" else 16)
        for value in kept:  # a centre is the mean of its weights, which no other one is nearer to
            own = old[weight == value].double()
            assert float(value) == pytest.approx(float(own.mean()), rel=1e-5)
            assert (own - value).abs().max() <= (own[:, None] - kept).abs().min(1).values.max() + 1e-6
    layers = {f"net.{path}.weight" for path in weights(made)}
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items() if name not in layers)
    assert all(torch.equal(value, before[name]) for name, value in sparse.state_dict().items())
    assert report.details["lost"] == pytest.approx(lost(made, sparse), rel=1e-4)
    assert sum(b * int((weights(made)[p] != 0).sum()) for p, b in report.details["bits"].items()) == pytest.approx(
        bits(made), rel=1e-4
    )
    worst = max(report.details["lost"], key=report.details["lost"].get)
    assert f"{report.details['lost'][worst]:.2%} of its energy is lost, in {worst}" in report.notes[0]
    assert "The weights of 10 layers take 4 to 16 values each" in report.notes[0]
    assert type(made) is students.Classifier
    assert not made.training


def test_no_worse_than_scikit_learn(sparse, context):
    made, _ = Cluster(5, 5)(sparse, context())
    for path in ("layer3.0.conv2", "linear"):
        values = weights(sparse)[path].double().flatten().numpy()
        values = values[values != 0][:, None]
        first = np.linspace(values.min(), values.max(), 32)[:, None]
        theirs = KMeans(32, init=first, n_init=1, max_iter=500, tol=0).fit(values).inertia_
        assert lost(made, sparse)[path] * float(np.square(values).sum()) < 1.01 * theirs


def test_more_bits_lose_less_and_linear_starts_keep_the_largest_weights(sparse, context):
    errors = [sum(lost(Cluster(each, each)(sparse, context())[0], sparse).values()) for each in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 100 * errors[-1] > 0

    def largest(start):
        made, _ = Cluster(3, 3, start=start)(sparse, context())
        pairs = [(w.abs().max(), weights(made)[path].abs().max()) for path, w in weights(sparse).items()]
        return sum(float((before - after) / before) for before, after in pairs)

    assert largest("linear") < 0.85 * largest("density")
    made = [Cluster(3, 3, start="random")(sparse, context(seed=seed))[0] for seed in (0, 0, 1)]
    assert torch.equal(made[0].net.linear.weight, made[1].net.linear.weight)
    assert not torch.equal(made[0].net.linear.weight, made[2].net.linear.weight)


def test_spread_clusters_lose_no_more_in_fewer_bits(sparse, context):
    plain, _ = Cluster(6, 3)(sparse, context())
    made, report = Cluster(6, 3, spread=True)(sparse, context())
    assert sum(lost(made, sparse).values()) <= 1.0001 * sum(lost(plain, sparse).values())
    assert bits(made) < 0.93 * bits(plain)
    counts = report.details["clusters"]
    assert counts["linear"] > 8  # a small layer, which a few bits more make much better
    assert counts["layer3.0.conv2"] < 64
    assert all(len(w.unique()) <= 257 for w in weights(made).values())


def test_curvature_spares_the_weights_that_the_loss_depends_on(trained, context, digits):
    settings = context(calibration=48)
    curvature = masks.curvature(trained, *settings.labelled())

    def harm(made):
        return sum(float((curvature[p] * (weights(made)[p] - w).square()).sum()) for p, w in weights(trained).items())

    plain, _ = Cluster(2, 2)(trained, settings)
    weighed, report = Cluster(2, 2, curvature=True)(trained, settings)
    assert harm(weighed) < 0.9 * harm(plain)
    assert "of what the loss makes of its weights is lost" in report.notes[0]
    spread, _ = Cluster(4, 4, curvature=True, spread=True)(trained, settings)
    even, _ = Cluster(4, 4, curvature=True)(trained, settings)
    assert harm(spread) <= 1.001 * harm(even)
    assert bits(spread) <= bits(even)


def test_recovery_moves_clusters_and_keeps_them(sparse, trained, context, digits):
    made, _ = Cluster(2, 2)(sparse, context())
    settings = context(
        teacher=Teacher(trained),
        fit=Fit(batch_size=50, lr=0.02, trackers=()),
        objective=lambda: Objective({"kd": Term(KD())}),
    )
    recovered, report = Recover(3)(made, settings)
    assert report.details["top1_after"] > report.details["top1_before"]
    assert evaluate(recovered, digits.evaluation("val")).top1 == pytest.approx(report.details["top1_after"])
    moved = 0
    for path, weight in weights(recovered).items():
        old = weights(made)[path]
        for value in old.unique():
            now = weight[old == value].unique()
            assert len(now) == 1
            assert (now == 0) == (value == 0)
            moved += int(now != value)
    assert moved > 20
    free, _ = Recover(1, keep_shared=False)(made, replace(settings, folder=None))
    assert any(len(weight.unique()) > 5 for weight in weights(free).values())
    assert all(torch.equal(w == 0, weights(made)[path] == 0) for path, w in weights(free).items())


def test_clusters_come_after_pruning_and_live_through_saving(sparse, context, tmp_path):
    narrow, _ = Prune(0.7)(sparse, context())
    made, _ = Cluster(3, 3)(narrow, context())
    students.save(made, tmp_path / "saved")
    again = students.load(tmp_path / "saved")
    assert all(torch.equal(weight, weights(again)[path]) for path, weight in weights(made).items())


def test_layers_without_weights_and_small_ones(sparse, context):
    model = copy.deepcopy(sparse)
    with torch.no_grad():
        model.net.conv1.weight.zero_()
        model.net.linear.weight.zero_()
        model.net.linear.weight[0, :3] = torch.tensor([1.0, 2.0, 2.5])
    made, report = Cluster()(model, context())
    assert "conv1" not in report.details["clusters"]
    assert report.details["clusters"]["linear"] == 3
    assert torch.equal(made.net.linear.weight, model.net.linear.weight)
    for layer in masks.layers(model.net).values():
        layer.weight.data.zero_()
    for stage in (Cluster(), Cluster(spread=True), Cluster(curvature=True)):
        assert stage(model, context(calibration=2))[1].notes[0].startswith("No convolution or linear layer has weights")


@pytest.mark.parametrize(
    ("field", "value"),
    [*((name, bits) for name in ("conv_bits", "linear_bits") for bits in (1, 9, 0, -2, 4.0, True)), ("start", "forgy")],
)
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(InputError) as refused:
        Cluster(**{field: value})
    assert refused.value.field == f"cluster.{field}"


def test_models_that_cannot_be_are_refused(exported, sparse, context):
    with pytest.raises(InputError, match="cluster: must come before export"):
        Cluster()(exported, context())
    model = copy.deepcopy(sparse)
    model.net.conv1.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"model: conv1: has weights that are NaN or infinite"):
        Cluster()(model, context())


def test_the_share_of_a_layer_counts_however_large_its_weights_are(sparse, context):
    scaled = copy.deepcopy(sparse)
    with torch.no_grad():
        scaled.net.layer1[0].conv1.weight *= 128
    found = [Cluster(4, 3, spread=True)(model, context())[1].details["clusters"] for model in (sparse, scaled)]
    assert found[0] == found[1]


def test_with_curvature_bits_go_where_the_loss_is(sparse, context, monkeypatch):
    """Of two layers that weigh alike for their own sizes, the one of which the loss is a thousand times as curved."""
    some = "layer2.0.conv1"
    counts = []
    for curved in (1.0, 1000.0):
        flat = {path: torch.ones_like(w) * (curved if path == some else 1.0) for path, w in weights(sparse).items()}
        monkeypatch.setattr(masks, "curvature", lambda *_, flat=flat: flat)
        counts.append(Cluster(4, 3, spread=True, curvature=True)(sparse, context())[1].details["bits"][some])
    assert counts[1] > counts[0] + 0.1


@pytest.mark.parametrize("stage", [Cluster(), Sparsify(), Sparsify(0.5, schedule="gradual")])
def test_parametrised_models_are_refused_and_stay_whole(stage, sparse, context, tmp_path):
    model = copy.deepcopy(sparse)
    weight_norm(model.net.layer1[0].conv1)
    x = torch.rand(2, 1, 8, 8)
    before = model(x).detach()
    with pytest.raises(InputError, match=r"net\.layer1\.0\.conv1: has a parametrised weight"):
        stage(model, context())
    with pytest.raises(InputError, match="has a parametrised weight"):
        students.save(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert torch.equal(model(x).detach(), before)


def test_weights_of_other_layers_are_told_where_they_are_many(context):
    torch.manual_seed(0)
    model = students.create("efficientvim_m1", num_classes=10, in_chans=1, image_size=32, width=0.25)
    for stage in (Cluster(), Sparsify()):
        _, report = stage(model, context())
        assert re.search(r"^\d+% of the parameters are in other layers and stay as they are", report.notes[-1])
