from __future__ import annotations

import math

import pytest
import torch

from kd.batch import Demands
from kd.errors import InputError
from kd.regimes.self_distillation.dlb import DLB
from kd.testing import RegimeContract, naive_log_softmax, tiny_net


class TestDLB(RegimeContract):
    alpha, temperature = 2.0, 3.0

    def make(self):
        return DLB(tiny_net(), self.alpha, self.temperature)

    def batch(self, regime, epoch=0, facts=None):
        """Samples 0 to 5 in epoch 0; later ones 3 to 5 first, as if after it, then 6 to 8."""
        batch = super().batch(regime, epoch, facts)
        index = torch.arange(6) + 3 * (epoch > 0)
        y = (facts or self.facts).labels[index]
        return batch._replace(views=tuple(view._replace(index=index, y=y) for view in batch.views))

    def test_the_first_batch_is_plain_cross_entropy(self):
        regime = self.bound()
        step = self.step(regime, self.batch(regime))
        assert step.parts["dlb"] == 0
        assert torch.equal(step.loss, step.parts["cross_entropy"])

    def test_what_comes_again_learns_from_what_was_said(self):
        regime = self.bound()
        first = self.batch(regime)
        said = self.step(regime, first)
        regime.after_step(first, said)
        batch = self.batch(regime, epoch=1)
        x = torch.cat([batch.views[1].x[:3], batch.views[0].x[3:]])  # what comes again is seen in another view
        rows = regime.student(x).tolist()
        labels = -sum(naive_log_softmax(row)[y] for row, y in zip(rows, batch.y.tolist(), strict=True)) / 6
        last = 0.0
        for ours, theirs in zip(rows[:3], said.logits[3:].tolist(), strict=True):
            logs = zip(naive_log_softmax(ours, 3.0), naive_log_softmax(theirs, 3.0), strict=True)
            last += 9 * sum(math.exp(p) * (p - q) for q, p in logs) / 3
        step = self.step(regime, batch)
        assert step.parts["cross_entropy"].item() == pytest.approx(labels, rel=1e-5)
        assert step.parts["dlb"].item() == pytest.approx(last, rel=1e-3)
        assert step.loss.item() == pytest.approx(labels + 2 * last, rel=1e-5)

    def test_what_the_batch_before_did_not_have_counts_nothing(self):
        regime = self.bound()
        first = self.batch(regime)
        said = self.step(regime, first)
        regime.after_step(first, said)
        batch = self.batch(regime, epoch=1)
        whole = self.step(regime, batch).parts["dlb"].item()
        one = [self.among(regime, batch, known) for known in ([3], [4], [5])]
        assert sum(one) == pytest.approx(whole, rel=1e-5)
        assert all(0 < part < whole for part in one)

    def among(self, regime, batch, known):
        """The part where only these samples were in the batch before."""
        index = batch.index.clone()
        index[:3] = torch.tensor([i if i in known else i - 3 for i in range(3, 6)])
        return (
            self.step(regime, batch._replace(views=tuple(v._replace(index=index) for v in batch.views)))
            .parts["dlb"]
            .item()
        )

    def test_only_the_last_batch_is_known(self):
        regime = self.bound()
        for epoch in (0, 1):
            batch = self.batch(regime, epoch)
            regime.after_step(batch, self.step(regime, batch))
        assert regime.fresh.nonzero().flatten().tolist() == [6, 7, 8]

    def test_the_bank_is_in_the_checkpoint(self):
        state = self.bound().state_dict()
        assert state["past"].shape == (self.facts.size, self.facts.classes)
        assert state["fresh"].shape == (self.facts.size,)

    def test_it_demands_an_overlap_and_a_second_view(self):
        assert self.make().demands == Demands(views=2, hard_labels=True, order="overlap")


@pytest.mark.parametrize(("field", "value"), [("alpha", -1.0), ("temperature", 0.0)])
def test_bad_arguments_are_refused(field, value):
    with pytest.raises(InputError, match=rf"DLB\.{field}"):
        DLB(tiny_net(), **{field: value})
