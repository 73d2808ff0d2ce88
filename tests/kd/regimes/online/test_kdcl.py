from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Demands
from kd.errors import InputError
from kd.regimes.online.kdcl import KDCL, kdcl_ensemble
from kd.testing import RegimeContract, naive_log_softmax, tiny_facts, tiny_net


def naive_ensemble(nets, target, method):
    """Lists of rows of logits -> rows of logits."""
    rows = []
    for rivals, y in zip(zip(*nets, strict=True), target, strict=True):
        if method == "mean":
            rows.append([sum(values) / len(nets) for values in zip(*rivals, strict=True)])
        else:
            rows.append([min(row[c] - row[y] for row in rivals) for c in range(len(rivals[0]))])
    return rows


def naive_kl(student, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        ours, theirs = naive_log_softmax(ours, temperature), naive_log_softmax(theirs, temperature)
        total += sum(math.exp(p) * (p - q) for q, p in zip(ours, theirs, strict=True))
    return temperature**2 * total / len(student)


class TestKDCL(RegimeContract):
    widths, method, alpha, temperature = (3, 4, 6), "mean", 0.5, 4.0

    def make(self):
        return KDCL([tiny_net(width) for width in self.widths], self.method, self.alpha, self.temperature)

    def test_each_peer_learns_from_labels_and_from_the_ensemble(self):
        regime = self.bound()
        batch = self.batch(regime)
        y = batch.y.tolist()
        seen = [peer(view.x).tolist() for peer, view in zip(regime.peers.values(), batch.views, strict=True)]
        ensemble = naive_ensemble(seen, y, self.method)
        step, total = self.step(regime, batch), 0.0
        for i, rows in enumerate(seen):
            labels = -sum(naive_log_softmax(row)[label] for row, label in zip(rows, y, strict=True)) / len(rows)
            taught = naive_kl(rows, ensemble, self.temperature)
            assert step.parts[f"peer{i}_cross_entropy"].item() == pytest.approx(labels, rel=1e-5)
            assert step.parts[f"peer{i}_kdcl"].item() == pytest.approx(taught, rel=1e-4, abs=1e-6)
            total += (1 - self.alpha) * labels + self.alpha * taught
        assert step.loss.item() == pytest.approx(total, rel=1e-5)

    def test_each_peer_has_a_view_of_its_own(self):
        regime = self.bound()
        assert regime.demands == Demands(views=len(self.widths), hard_labels=True)
        batch = self.batch(regime)
        changed = batch._replace(views=(*batch.views[:-1], batch.views[-1]._replace(x=1 - batch.views[-1].x)))
        before, after = self.step(regime, batch).parts, self.step(regime, changed).parts
        differ = [not torch.equal(before[f"peer{i}_cross_entropy"], after[f"peer{i}_cross_entropy"]) for i in range(3)]
        assert differ == [False, False, True]

    def test_every_peer_is_a_candidate(self):
        regime = self.bound()
        assert regime.candidates() == dict(regime.peers.items())


class TestKDCLOfTheLeast(TestKDCL):
    method, alpha, temperature = "min", 0.3, 2.0


def nets(count=3, samples=5, dtype=torch.float64):
    return [torch.randn(samples, 4, dtype=dtype, requires_grad=True) for _ in range(count)]


TARGET = torch.tensor([0, 3, 1, 1, 2])


@pytest.mark.parametrize("method", ["mean", "min"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_value(method, count):
    logits = nets(count)
    value = kdcl_ensemble(logits, TARGET, method)
    expected = naive_ensemble([own.tolist() for own in logits], TARGET.tolist(), method)
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))
    assert not value.requires_grad


def test_the_least_favours_the_class_that_is_true():
    value = kdcl_ensemble(nets(), TARGET, "min")
    assert torch.equal(value.gather(1, TARGET[:, None]), torch.zeros(5, 1, dtype=torch.float64))
    for own in nets():
        alone = kdcl_ensemble([own], TARGET, "min").softmax(1)
        torch.testing.assert_close(alone, own.detach().softmax(1))


def test_the_mean_ignores_the_target_whatever_it_is():
    logits, soft = nets(), torch.rand(5, 4).softmax(1)
    assert torch.equal(kdcl_ensemble(logits, soft), kdcl_ensemble(logits, TARGET))


def test_half_is_computed_in_single_precision():
    logits = nets(dtype=torch.bfloat16)
    assert kdcl_ensemble(logits, TARGET, "min").dtype == torch.float32


@pytest.mark.parametrize(
    ("shapes", "target", "method"),
    [
        ([], (5,), "mean"),
        ([(5, 4), (5, 3)], (5,), "mean"),
        ([(5,), (5,)], (5,), "mean"),
        ([(5, 4), (5, 4)], (4,), "mean"),
        ([(5, 4), (5, 4)], (4,), "min"),
        ([(5, 4), (5, 4)], (5, 4), "min"),
        ([(5, 4), (5, 4)], (5,), "max"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, target, method):
    with pytest.raises(ValueError, match="expected"):
        kdcl_ensemble([torch.zeros(shape) for shape in shapes], torch.zeros(target, dtype=torch.long), method)


@pytest.mark.parametrize(
    ("count", "options", "field"),
    [
        (1, {}, "students"),
        (2, {"method": "max"}, "method"),
        (2, {"alpha": 1.1}, "alpha"),
        (2, {"temperature": 0.0}, "temperature"),
    ],
)
def test_bad_arguments_are_refused(count, options, field):
    with pytest.raises(InputError, match=rf"KDCL\.{field}"):
        KDCL([tiny_net() for _ in range(count)], **options)


def test_a_peer_of_other_classes_is_refused():
    with pytest.raises(InputError, match="5 classes"):
        KDCL([tiny_net(), tiny_net(classes=5)]).bind(tiny_facts())
