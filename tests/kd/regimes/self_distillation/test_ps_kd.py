from __future__ import annotations

import pytest
import torch

from kd.errors import InputError
from kd.functional import ps_kd_target
from kd.regimes import PSKD
from kd.testing import RegimeContract, naive_log_softmax, naive_targets, tiny_net


def naive_target(target, past, alpha):
    return [
        [(1 - alpha) * new + alpha * old for new, old in zip(*rows, strict=True)]
        for rows in zip(naive_targets(target, past.shape[1]), past.tolist(), strict=True)
    ]


class TestPSKD(RegimeContract):
    def make(self):
        return PSKD(tiny_net())

    def test_the_first_epoch_is_plain_cross_entropy(self):
        regime = self.bound()
        batch = self.batch(regime)
        expected = torch.nn.functional.cross_entropy(regime.student(batch.x), batch.y)
        torch.testing.assert_close(self.step(regime, batch).loss, expected)

    @pytest.mark.parametrize("epoch", [1, 3])
    def test_later_ones_lean_on_what_was_predicted(self, epoch):
        regime = self.bound()
        first = self.batch(regime)
        said = self.step(regime, first)
        past = torch.tensor([naive_log_softmax(row) for row in said.logits.tolist()]).exp()
        regime.after_step(first, said)
        self.train(regime, 3)  # the bank is written again by these
        regime.after_step(first, said)
        batch = self.batch(regime, epoch)
        targets = naive_target(batch.y, past, 0.8 * (epoch + 1) / 4)
        total = 0.0
        for row, target in zip(regime.student(batch.x).tolist(), targets, strict=True):
            total -= sum(p * log_q for p, log_q in zip(target, naive_log_softmax(row), strict=True)) / len(targets)
        assert self.step(regime, batch).loss.item() == pytest.approx(total, rel=1e-5)

    def test_only_the_samples_of_the_batch_are_written(self):
        regime = self.bound()
        before = regime.past.clone()
        batch = self.batch(regime)
        batch = batch._replace(views=(batch.views[0]._replace(index=torch.tensor([7, 0, 11, 3, 2, 5])),))
        step = self.step(regime, batch)
        regime.after_step(batch, step)
        torch.testing.assert_close(regime.past[batch.index], step.logits.softmax(1))
        kept = [1, 4, 6, 8, 9, 10]
        assert torch.equal(regime.past[kept], before[kept])

    def test_the_bank_is_in_the_checkpoint(self):
        assert self.bound().state_dict()["past"].shape == (self.facts.size, self.facts.classes)

    def test_mixup_and_cutmix_are_refused(self):
        assert self.make().demands.hard_labels


@pytest.mark.parametrize("soft", [False, True])
def test_target(soft):
    past = torch.rand(5, 4, dtype=torch.float64).softmax(1)
    target = torch.rand(5, 4, dtype=torch.float64).softmax(1) if soft else torch.tensor([0, 3, 1, 1, 2])
    value = ps_kd_target(target, past, 0.3)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, torch.tensor(naive_target(target, past, 0.3), dtype=torch.float64))
    torch.testing.assert_close(value.sum(1), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_an_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(InputError, match=r"PSKD\.alpha"):
        PSKD(tiny_net(), alpha)
