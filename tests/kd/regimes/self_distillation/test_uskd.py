from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Needs
from kd.errors import InputError
from kd.regimes.self_distillation.uskd import USKD, uskd
from kd.taps import read
from kd.testing import RegimeContract, naive_log_softmax, naive_targets, tiny_facts, tiny_net


def naive_uskd(logits, weak, target):
    """Rows of logits -> the terms of the target and of the others."""
    labels = naive_targets(target, len(logits[0]))
    drawn = [(n, y, share / len(labels)) for n, row in enumerate(labels) for y, share in enumerate(row) if share]
    mean = sum(share * math.exp(2 * naive_log_softmax(logits[n])[y]) for n, y, share in drawn)
    of_target = of_others = 0.0
    for n, y, share in drawn:
        log_p = naive_log_softmax(logits[n])[y]
        of_target -= share * (1 + math.exp(2 * log_p) - mean) * log_p
        ours = naive_log_softmax(logits[n][:y] + logits[n][y + 1 :])
        theirs = naive_log_softmax(weak[n][:y] + weak[n][y + 1 :])
        certain = [math.exp(a) + math.exp(b) for a, b in zip(ours, theirs, strict=True)]
        ranks = [1 + sum(other > own for other in certain) for own in certain]
        total = sum(1 / rank for rank in ranks)
        of_others -= share * sum(q / rank / total for q, rank in zip(ours, ranks, strict=True))
    return of_target, of_others


class TestUSKD(RegimeContract):
    def make(self):
        return USKD(tiny_net(), alpha=0.7, beta=0.4, mu=0.2)

    def test_the_loss_is_the_weighted_sum_of_its_parts(self):
        regime = self.bound()
        batch = self.batch(regime)
        outputs = read(regime.student, batch.x, Needs(stages=(-2,)))
        weak = regime.weak(outputs.stages[-2].flatten(2).mean(2)).tolist()
        rows, y = outputs.logits.tolist(), batch.y.tolist()
        of_target, of_others = naive_uskd(rows, weak, batch.y)
        labels = -sum(naive_log_softmax(row)[c] for row, c in zip(rows, y, strict=True)) / 6
        smooth = (
            -sum(
                0.9 * naive_log_softmax(row)[c] + 0.1 * sum(naive_log_softmax(row)) / 3
                for row, c in zip(weak, y, strict=True)
            )
            / 6
        )
        step = self.step(regime, batch)
        expected = {"cross_entropy": labels, "target": of_target, "others": of_others, "weak": smooth}
        assert {name: part.item() for name, part in step.parts.items()} == pytest.approx(expected, rel=1e-5)
        assert step.loss.item() == pytest.approx(labels + 0.7 * of_target + 0.4 * of_others + 0.2 * smooth, rel=1e-5)

    def test_the_weak_layer_is_not_shipped(self):
        regime = self.bound()
        assert regime.candidates() == {"student": regime.student}


@pytest.mark.parametrize("soft", [False, True])
def test_value(soft):
    logits, weak = torch.randn(2, 5, 4, dtype=torch.float64)
    target = torch.rand(5, 4, dtype=torch.float64).softmax(1) if soft else torch.tensor([0, 3, 1, 1, 2])
    value = [term.item() for term in uskd(logits, weak, target)]
    assert value == pytest.approx(naive_uskd(logits.tolist(), weak.tolist(), target), rel=1e-9)


def test_one_hot_labels_are_hard_ones():
    logits, weak = torch.randn(2, 5, 4, dtype=torch.float64)
    target = torch.tensor([0, 3, 1, 1, 2])
    soft = torch.nn.functional.one_hot(target, 4).double()
    torch.testing.assert_close(uskd(logits, weak, soft), uskd(logits, weak, target))


def test_soft_labels_are_constants():
    logits, weak = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    target = torch.tensor([0, 3, 1, 1, 2])
    sum(uskd(logits, weak, target)).backward()
    assert weak.grad is None
    probabilities = logits.detach().softmax(1)
    chosen = probabilities.gather(1, target[:, None])
    share = (1 + chosen**2 - (chosen**2).mean()) / 5  # of each sample in cross-entropy
    (gradient,) = torch.autograd.grad(uskd(logits, weak, target)[0], logits)
    torch.testing.assert_close(gradient, share * (probabilities - torch.nn.functional.one_hot(target, 4)))


def test_extreme_logits_and_two_classes_are_finite():
    for classes in (2, 4):
        logits = 60 * torch.randn(5, classes).sign().requires_grad_()
        value = sum(uskd(logits, -logits, torch.zeros(5, dtype=torch.long)))
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("field", ["alpha", "beta", "mu"])
def test_bad_arguments_are_refused(field):
    with pytest.raises(InputError, match=rf"USKD\.{field}"):
        USKD(tiny_net(), **{field: -0.1})


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"USKD\.stage: -3: the student has 2 stages"):
        USKD(tiny_net(), stage=-3).bind(tiny_facts())
