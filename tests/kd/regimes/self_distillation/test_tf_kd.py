from __future__ import annotations

import math

import pytest
import torch

from kd.errors import InputError
from kd.regimes.self_distillation.tf_kd import TfKD, tf_kd_teacher
from kd.testing import RegimeContract, TinyTeacher, naive_log_softmax, naive_targets, tiny_facts, tiny_net


def naive_teacher(target, classes, correct, temperature):
    rows = []
    for labels in naive_targets(target, classes):
        row = [0.0] * classes
        for y, share in enumerate(labels):  # the mean over y
            u = [correct if c == y else (1 - correct) / (classes - 1) for c in range(classes)]
            row = [p + share * math.exp(q) for p, q in zip(row, naive_log_softmax(u, temperature), strict=True)]
        rows.append(row)
    return rows


def divergence(logs, teacher):
    """Mean over rows of KL(teacher's probabilities ‖ student's), from log-probabilities of the student."""
    rows = zip(logs, teacher, strict=True)
    return sum(p * (math.log(p) - q) for ours, theirs in rows for q, p in zip(ours, theirs, strict=True)) / len(logs)


class TestTfKDReg(RegimeContract):
    temperature = 20.0

    def make(self):
        return TfKD(tiny_net(), alpha=0.3, temperature=self.temperature)

    def taught(self, rows, batch):
        # nothing of the student is divided by T, and there is no T²
        theirs = naive_teacher(batch.y, self.facts.classes, 0.99, self.temperature)
        return divergence([naive_log_softmax(row) for row in rows], theirs)

    def test_the_loss_weighs_labels_and_teacher(self):
        regime = self.bound()
        batch = self.batch(regime)
        rows = regime.student(batch.x).tolist()
        logs = map(naive_log_softmax, rows)
        labels = -sum(row[y] for row, y in zip(logs, batch.y.tolist(), strict=True)) / len(rows)
        step = self.step(regime, batch)
        assert step.parts["cross_entropy"].item() == pytest.approx(labels, rel=1e-5)
        assert step.parts["tf_kd"].item() == pytest.approx(self.taught(rows, batch), rel=1e-4)
        assert step.loss.item() == pytest.approx(0.7 * labels + 0.3 * self.taught(rows, batch), rel=1e-5)

    def test_it_does_not_grow_with_the_batch(self):
        regime = self.bound().eval()
        batch = self.batch(regime)
        twice = batch.views[0]._replace(x=batch.x.repeat(2, 1, 1, 1), y=batch.y.repeat(2), index=batch.index.repeat(2))
        doubled = self.step(regime, batch._replace(views=(twice,))).loss
        torch.testing.assert_close(doubled, self.step(regime, batch).loss)


class TestTfKDSelf(TestTfKDReg):
    temperature = 6.0

    def make(self):
        return TfKD(tiny_net(), self.teacher, alpha=0.3, temperature=self.temperature)

    def taught(self, rows, batch):
        with torch.no_grad():
            teacher = self.teacher.model(batch.x).tolist()
        theirs = [[math.exp(q) for q in naive_log_softmax(row, self.temperature)] for row in teacher]
        return self.temperature**2 * divergence([naive_log_softmax(row, self.temperature) for row in rows], theirs)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("correct", "temperature"), [(0.99, 20.0), (0.6, 1.0)])
def test_teacher(soft, correct, temperature):
    target = torch.rand(5, 4, dtype=torch.float64).softmax(1) if soft else torch.tensor([0, 3, 1, 1, 2])
    value = tf_kd_teacher(target, 4, correct, temperature)
    expected = torch.tensor(naive_teacher(target, 4, correct, temperature), dtype=torch.float64)
    assert value.dtype == (torch.float64 if soft else torch.float32)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-9)


def test_the_temperature_softens_probabilities_not_logits():
    value = tf_kd_teacher(torch.tensor([1]), 100)
    assert value.max().item() == pytest.approx(
        math.exp(0.99 / 20) / (math.exp(0.99 / 20) + 99 * math.exp(0.01 / 99 / 20))
    )


@pytest.mark.parametrize(("shape", "classes"), [((5, 3), 4), ((5, 4, 1), 4), ((5,), 1)])
def test_what_does_not_fit_is_refused(shape, classes):
    with pytest.raises(ValueError, match="expected"):
        tf_kd_teacher(torch.zeros(shape, dtype=torch.long), classes)


@pytest.mark.parametrize(("field", "value"), [("alpha", -0.1), ("temperature", 0.0), ("correct", 1.1)])
def test_bad_arguments_are_refused(field, value):
    with pytest.raises(InputError, match=rf"TfKD\.{field}"):
        TfKD(tiny_net(), **{field: value})


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(InputError, match="5 classes"):
        TfKD(tiny_net(), TinyTeacher(classes=5)).bind(tiny_facts())
