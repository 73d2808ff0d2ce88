from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kd.batch import Needs
from kd.errors import InputError
from kd.regimes.self_distillation.byot import BYOT, soft_cross_entropy, squared_distance
from kd.taps import read
from kd.testing import RegimeContract, naive_log_softmax, tiny_facts, tiny_net


def naive_soft_cross_entropy(student, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        logs = zip(naive_log_softmax(ours, temperature), naive_log_softmax(theirs, temperature), strict=True)
        total -= temperature**2 * sum(math.exp(p) * q for q, p in logs) / len(student)
    return total


def naive_distance(student, teacher):
    rows = zip(student, teacher, strict=True)
    return sum((a - b) ** 2 for row in rows for a, b in zip(*row, strict=True)) / len(student)


def deep_net(stages=4, classes=3):
    """Stages of 2^(stages - 1) to 1 pixels a side, of which those above 1 are seen."""
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()]
    for _ in range(stages - 1):
        layers += [nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


class TestBYOT(RegimeContract):
    def make(self):
        return BYOT(tiny_net(), alpha=0.3, features=0.01)

    def test_exits_learn_from_the_labels_and_from_the_end(self):
        regime = self.bound()
        batch = self.batch(regime)
        end = read(regime.student, batch.x, Needs(embedding=True, stages=(-2,)))
        ((body, classifier),) = zip(regime.exits, regime.classifiers, strict=True)
        embedding = body(end.stages[-2])
        early, final, y = classifier(embedding).tolist(), end.logits.tolist(), batch.y.tolist()
        labels = -sum(naive_log_softmax(row)[c] for rows in (early, final) for row, c in zip(rows, y, strict=True)) / 6
        taught = naive_soft_cross_entropy(early, final, 3.0)
        apart = naive_distance(embedding.tolist(), end.embedding.tolist())
        step = self.step(regime, batch)
        assert step.parts["cross_entropy"].item() == pytest.approx(labels, rel=1e-5)
        assert step.parts["distillation"].item() == pytest.approx(taught, rel=1e-4)
        assert step.parts["features"].item() == pytest.approx(apart, rel=1e-4)
        assert step.loss.item() == pytest.approx(0.7 * labels + 0.3 * taught + 0.01 * apart, rel=1e-5)

    def test_the_end_learns_nothing_from_the_exits(self):
        regime = self.bound()
        parts = self.step(regime, self.batch(regime)).parts
        last = [*regime.student[-1].parameters()]
        for name in ("distillation", "features"):
            assert not any(
                g is not None and g.any()
                for g in torch.autograd.grad(parts[name], last, allow_unused=True, retain_graph=True)
            )

    def test_exits_are_not_shipped(self):
        regime = self.bound()
        assert regime.candidates() == {"student": regime.student}


class TestBYOTOfOneChosenStage(RegimeContract):
    def make(self):
        return BYOT(deep_net(3), stages=(0,))


@pytest.mark.parametrize(("count", "stages"), [(2, (-2,)), (3, (-2, -3)), (4, (-2, -3, -4)), (5, (-2, -3, -4))])
def test_exits_come_before_the_last_stage(count, stages):
    regime = BYOT(deep_net(count))
    regime.bind(replace(tiny_facts(), image_size=(64, 64)))
    assert regime.stages == stages


@pytest.mark.parametrize(
    ("stages", "field"), [((-1,), "stages"), ((1,), "stages"), ((-3,), "stages"), (None, "student")]
)
def test_stages_that_cannot_have_an_exit_are_refused(stages, field):
    net = tiny_net() if stages else deep_net(1)
    with pytest.raises(InputError, match=rf"BYOT\.{field}"):
        BYOT(net, stages).bind(tiny_facts())


@pytest.mark.parametrize(("field", "value"), [("stages", ()), ("alpha", 1.0), ("temperature", 0.0), ("features", -1.0)])
def test_bad_arguments_are_refused(field, value):
    with pytest.raises(InputError, match=rf"BYOT\.{field}"):
        BYOT(tiny_net(), **{field: value})


def test_the_parts_are_those_of_naive_loops():
    student, teacher = torch.randn(2, 5, 4, dtype=torch.float64)
    value = soft_cross_entropy(student, teacher, 2.0).item()
    assert value == pytest.approx(naive_soft_cross_entropy(student.tolist(), teacher.tolist(), 2.0), rel=1e-9)
    value = squared_distance(student, teacher).item()
    assert value == pytest.approx(naive_distance(student.tolist(), teacher.tolist()), rel=1e-9)


@pytest.mark.parametrize("function", [soft_cross_entropy, squared_distance])
def test_a_function_refuses_shapes_and_spares_the_teacher(function):
    student, teacher = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
    function(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None
    with pytest.raises(ValueError, match=r"\(5, 4\) and \(5, 3\)"):
        function(student, teacher[:, :3])
