"""`RegimeContract`: what every `Regime` promises."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from kd.batch import Batch, Facts, Step
from kd.regimes.regime import Regime
from kd.testing.graph import trained_by
from kd.testing.tiny import TinyTeacher, tiny_batch, tiny_facts


class RegimeContract:
    """Override `make`; guide the regime by `self.teacher` where it needs one. `tiny_net` suits `facts`."""

    facts = tiny_facts()
    samples = 6
    teacher: TinyTeacher

    def make(self) -> Regime:
        raise NotImplementedError("make() returns the regime under test, not bound")

    def setup_method(self) -> None:
        torch.manual_seed(0)
        self.teacher = TinyTeacher(self.facts.classes)

    def bound(self, facts: Facts | None = None) -> Regime:
        regime = self.make()
        regime.bind(facts or self.facts)
        return regime.train()

    def batch(self, regime: Regime, epoch: int = 0, facts: Facts | None = None) -> Batch:
        return tiny_batch(facts or self.facts, self.samples, regime.demands.views, epoch)

    def step(self, regime: Regime, batch: Batch) -> Step:
        with torch.no_grad():
            guides = regime.guide(batch)
        return regime(batch, guides)

    def train(self, regime: Regime, steps: int = 1) -> None:
        optimizer = torch.optim.SGD(regime.parameters(), lr=0.01)
        for _ in range(steps):
            batch = self.batch(regime)
            step = self.step(regime, batch)
            optimizer.zero_grad()
            step.loss.backward()
            optimizer.step()
            regime.after_step(batch, step)

    def test_a_step_lowers_the_loss(self) -> None:
        regime = self.bound()
        batch = self.batch(regime)
        before = self.step(regime, batch).loss
        before.backward()
        torch.optim.SGD(regime.parameters(), lr=0.01).step()
        assert self.step(regime, batch).loss < before

    def test_a_step_tells_its_parts_and_logits(self) -> None:
        regime = self.bound()
        step = self.step(regime, self.batch(regime))
        assert step.logits.shape == (self.samples, self.facts.classes)
        assert step.parts
        assert all(part.shape == () for part in step.parts.values())

    def test_all_that_trains_is_registered_and_none_is_idle(self) -> None:
        regime = self.bound()
        loss = self.step(regime, self.batch(regime)).loss
        assert trained_by(loss) == {p for p in regime.parameters() if p.requires_grad}

    def test_teacher_is_left_alone(self) -> None:
        before = copy.deepcopy(self.teacher.model.state_dict())
        regime = self.bound()
        self.train(regime, 2)
        inside = set(regime.modules()) & set(self.teacher.model.modules())
        assert not inside, "a guide is no submodule"
        assert not self.teacher.model.training
        assert all(p.grad is None for p in self.teacher.model.parameters())
        for name, value in self.teacher.model.state_dict().items():
            assert torch.equal(value, before[name]), f"{name} of the teacher changed"

    def test_state_dict_restores_everything(self) -> None:
        regime, other = self.bound(), self.bound()
        self.train(regime)
        other.load_state_dict(regime.state_dict())
        late = self.batch(regime, epoch=3)
        assert torch.equal(self.step(other, late).loss, self.step(regime, late).loss)

    def test_time_is_read_from_the_batch_alone(self) -> None:
        regime = self.bound()
        self.train(regime)  # fills banks, whose weight may depend on time
        first, _, again = (self.step(regime, self.batch(regime, epoch)).loss for epoch in (0, 3, 0))
        assert torch.equal(first, again)

    def test_deep_copy_leaves_the_teacher_out(self) -> None:
        regime = self.bound()
        twin = copy.deepcopy(regime)
        batch = self.batch(regime)
        before = self.step(twin, batch).loss
        assert torch.equal(before, self.step(regime, batch).loss)
        assert self.teacher.copies == 0
        self.train(regime)
        assert torch.equal(before, self.step(twin, batch).loss), "the copy shares tensors with the original"

    def test_deploys_its_candidates(self) -> None:
        regime = self.bound()
        self.train(regime)
        regime.eval()
        x = self.batch(regime).x
        expected = {name: candidate(x) for name, candidate in regime.candidates().items()}
        if not expected:
            pytest.skip("has no candidates: a phase before the one that ships")
        for name, logits in expected.items():
            assert torch.equal(regime.deploy(name)(x), logits)
        assert torch.equal(regime.deploy()(x), next(iter(expected.values())))

    def test_soft_labels_work_unless_the_demands_refuse_them(self) -> None:
        facts = replace(self.facts, soft_labels=True)
        regime = self.make()
        if regime.demands.hard_labels:
            pytest.skip("demands hard labels, so `fit` refuses others")
        regime.bind(facts)
        assert self.step(regime, self.batch(regime, facts=facts)).loss.isfinite()

    def test_half_precision_ends_where_losses_begin(self) -> None:
        regime = self.bound()
        batch = self.batch(regime)
        exact = self.step(regime, batch).loss.item()
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.step(regime, batch).loss
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact, rel=0.05)
