from __future__ import annotations

import math

import pytest
import torch

from kd.errors import InputError
from kd.functional import dml
from kd.regimes import DML
from kd.testing import RegimeContract, naive_log_softmax, tiny_facts, tiny_net


def naive_dml(peers, temperature):
    """Lists of rows of logits -> one float a peer."""
    losses = []
    for i, own in enumerate(peers):
        others = [other for j, other in enumerate(peers) if j != i]
        total = 0.0
        for other in others:
            for ours, theirs in zip(own, other, strict=True):
                ours, theirs = naive_log_softmax(ours, temperature), naive_log_softmax(theirs, temperature)
                total += sum(math.exp(p) * (p - q) for q, p in zip(ours, theirs, strict=True))
        losses.append(temperature**2 * total / len(own) / len(others))
    return losses


class TestDML(RegimeContract):
    widths, temperature = (3, 4, 6), 1.0

    def make(self):
        return DML([tiny_net(width) for width in self.widths], self.temperature)

    def test_each_peer_descends_cross_entropy_and_its_mutual_part(self):
        regime = self.bound()
        batch = self.batch(regime)
        peers = [peer(batch.x).tolist() for peer in regime.peers.values()]
        mutual = naive_dml(peers, self.temperature)
        total = 0.0
        step = self.step(regime, batch)
        for i, rows in enumerate(peers):
            logs = map(naive_log_softmax, rows)
            labels = -sum(row[y] for row, y in zip(logs, batch.y.tolist(), strict=True)) / len(rows)
            assert step.parts[f"peer{i}_cross_entropy"].item() == pytest.approx(labels, rel=1e-5)
            assert step.parts[f"peer{i}_dml"].item() == pytest.approx(mutual[i], rel=1e-4)
            total += labels + mutual[i]
        assert step.loss.item() == pytest.approx(total, rel=1e-5)

    def test_every_peer_is_a_candidate(self):
        regime = self.bound()
        assert list(regime.candidates()) == [f"peer{i}" for i in range(len(self.widths))]
        assert regime.deploy("peer1") is regime.peers["peer1"]


class TestDMLOfTwoTempered(TestDML):
    widths, temperature = (4, 4), 3.0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("count", [2, 4])
def test_value(count, temperature):
    peers = [torch.randn(5, 4, dtype=torch.float64) for _ in range(count)]
    value = dml(peers, temperature)
    assert value.tolist() == pytest.approx(naive_dml([peer.tolist() for peer in peers], temperature), rel=1e-9)


def test_an_entry_has_gradients_to_its_own_logits_only():
    peers = [torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    for i, entry in enumerate(dml(peers)):
        gradients = torch.autograd.grad(entry, peers, allow_unused=True, retain_graph=True)
        assert [g is not None and bool(g.any()) for g in gradients] == [j == i for j in range(3)]


@pytest.mark.parametrize(("count", "temperature", "field"), [(1, 1.0, "students"), (2, 0.0, "temperature")])
def test_bad_arguments_are_refused(count, temperature, field):
    with pytest.raises(InputError, match=rf"DML\.{field}"):
        DML([tiny_net() for _ in range(count)], temperature)


def test_a_peer_of_other_classes_is_refused():
    with pytest.raises(InputError, match="5 classes"):
        DML([tiny_net(), tiny_net(classes=5)]).bind(tiny_facts())
