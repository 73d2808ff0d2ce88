from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Demands
from kd.errors import InputError
from kd.regimes.self_distillation.cs_kd import CSKD
from kd.testing import RegimeContract, naive_log_softmax, tiny_net


class TestCSKD(RegimeContract):
    def make(self):
        return CSKD(tiny_net(), weight=2.0)

    def test_the_first_half_learns_from_labels_and_from_its_partners(self):
        regime = self.bound()
        batch = self.batch(regime)
        own, partners = (regime.student(x).tolist() for x in batch.x.split(3))  # each with its batch statistics
        labels = pairs = 0.0
        for ours, theirs, y in zip(own, partners, batch.y.tolist()[:3], strict=True):
            labels -= naive_log_softmax(ours)[y] / 3
            logs = zip(naive_log_softmax(ours, 4.0), naive_log_softmax(theirs, 4.0), strict=True)
            pairs += 16 * sum(math.exp(p) * (p - q) for q, p in logs) / 3
        step = self.step(regime, batch)
        assert step.parts["cross_entropy"].item() == pytest.approx(labels, rel=1e-5)
        assert step.parts["cs_kd"].item() == pytest.approx(pairs, rel=1e-4)
        assert step.loss.item() == pytest.approx(labels + 2 * pairs, rel=1e-5)
        torch.testing.assert_close(step.logits, torch.tensor(own + partners))
        assert not step.logits.requires_grad

    def test_partners_get_no_gradient(self):
        regime = self.bound()
        batch = self.batch(regime)
        x = batch.x.clone().requires_grad_()
        self.step(regime, batch._replace(views=(batch.views[0]._replace(x=x),))).loss.backward()
        assert x.grad[:3].any()
        assert not x.grad[3:].any()

    def test_it_demands_pairs_of_one_class(self):
        assert self.make().demands == Demands(hard_labels=True, order="pairs")


@pytest.mark.parametrize(("field", "value"), [("weight", -1.0), ("temperature", 0.0)])
def test_bad_arguments_are_refused(field, value):
    with pytest.raises(InputError, match=rf"CSKD\.{field}"):
        CSKD(tiny_net(), **{field: value})
