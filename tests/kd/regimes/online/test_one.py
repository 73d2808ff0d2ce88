from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kd.errors import InputError
from kd.regimes.online.branches import branched
from kd.regimes.online.one import ONE
from kd.taps import ports
from kd.testing import RegimeContract, naive_log_softmax, tiny_facts, tiny_net
from students import create


def naive_kl(student, teacher, temperature):
    total = 0.0
    for ours, theirs in zip(student, teacher, strict=True):
        ours, theirs = naive_log_softmax(ours, temperature), naive_log_softmax(theirs, temperature)
        total += sum(math.exp(p) * (p - q) for q, p in zip(ours, theirs, strict=True))
    return temperature**2 * total / len(student)


class TestONE(RegimeContract):
    branches = 3

    def make(self):
        return ONE([tiny_net() for _ in range(self.branches)], ramp=2)

    @pytest.mark.parametrize(("epoch", "weight"), [(0, math.exp(-5)), (1, math.exp(-1.25)), (3, 1.0)])
    def test_branches_learn_from_labels_and_from_their_ensemble(self, epoch, weight):
        regime = self.bound().double()
        batch = self.batch(regime, epoch)
        batch = batch._replace(views=tuple(view._replace(x=view.x.double()) for view in batch.views))
        y = batch.y.tolist()
        nets = list(regime.candidates().values())
        rows = [net(batch.x).tolist() for net in nets]
        stage = regime.student[:3](batch.x)
        gates = regime.gate(stage.mean((2, 3))).tolist()
        gates = [[math.exp(value) for value in naive_log_softmax(row)] for row in gates]
        ensemble = [
            [sum(g * rows[i][n][c] for i, g in enumerate(gates[n])) for c in range(self.facts.classes)]
            for n in range(self.samples)
        ]
        labels = [-sum(naive_log_softmax(r)[c] for r, c in zip(own, y, strict=True)) / 6 for own in (*rows, ensemble)]
        taught = sum(naive_kl(own, ensemble, 3.0) for own in rows)
        step = self.step(regime, batch)
        names = [*(f"branch{i}_cross_entropy" for i in range(self.branches)), "ensemble_cross_entropy", "one"]
        assert [step.parts[name].item() for name in names] == pytest.approx([*labels, taught], rel=1e-9)
        assert step.loss.item() == pytest.approx(sum(labels) + weight * taught, rel=1e-9)
        torch.testing.assert_close(step.logits, torch.tensor(rows[0], dtype=torch.float64))

    def test_branches_share_the_trunk_and_nothing_else(self):
        regime = self.bound()
        nets = list(regime.candidates().values())
        trunks, tails = ([{*net[:3].parameters()} for net in nets], [{*net[3:].parameters()} for net in nets])
        assert all(trunk == trunks[0] for trunk in trunks)
        assert not any(tails[i] & tails[j] for i in range(len(nets)) for j in range(i))
        assert set.union(*trunks, *tails, {*regime.gate.parameters()}) == {*regime.parameters()}

    def test_the_trunk_runs_once(self):
        regime = self.bound()
        self.step(regime, self.batch(regime))
        counted = [net[i].num_batches_tracked.item() for net in regime.candidates().values() for i in (1, 4)]
        assert counted == [1, 1] * self.branches

    def test_it_leaves_no_hooks(self):
        regime = self.bound()
        self.step(regime, self.batch(regime))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in regime.modules())

    def test_it_can_be_compiled(self):
        regime = self.bound()
        batch = self.batch(regime)
        compiled = torch.compile(regime, backend="eager")
        torch.testing.assert_close(compiled(batch, ()).loss, self.step(regime, batch).loss)


class TestONEOfTwo(TestONE):
    branches = 2


NETS = {
    "cifar_resnet8": {"net.layer3", "net.linear"},
    "cifar_wrn_16_1": {"net.block3", "net.bn1", "net.fc"},
    "resnet18": {"net.layer4", "net.fc"},
    "vit_tiny_patch16_224": {"net.blocks.11", "net.norm", "net.head"},
    "swin_tiny_patch4_window7_224": {"net.layers.3", "net.norm", "net.head"},
    "mobilenetv3_small_050": {"net.blocks.4", "net.blocks.5", "net.conv_head", "net.classifier"},
}


@pytest.mark.parametrize("name", NETS)
def test_any_net_of_the_zoo_is_forked_where_its_last_stage_begins(name):
    facts = replace(tiny_facts(), image_size=(32, 32))
    regime = ONE([create(name, num_classes=3, image_size=32) for _ in range(2)])
    regime.bind(facts)
    assert set(regime.fork.layers) == NETS[name]
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        together, trunk = branched(regime.eval().student, regime.fork, regime.branches, x)
        for logits, net in zip(together.chunk(2), regime.candidates().values(), strict=True):
            torch.testing.assert_close(logits, net(x), rtol=1e-4, atol=1e-5)
    assert trunk.shape == (3, ports(regime.student, 3, (32, 32)).stages[-2][0])


class Refused(nn.Module):
    """A net whose last stage does not simply follow the one before."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.norm, self.mix, self.linear = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        if self.how == "is fed by the trunk past its first layer":
            y = self.first(x)
            return self.linear((self.second(y) + y[..., ::2, ::2]).mean((2, 3)))
        if self.how == "shares a layer with the trunk":
            y = self.mix(self.norm(self.first(x)))
            return self.linear(self.norm(self.second(y)).mean((2, 3)))
        return self.linear(self.first(x).mean((2, 3)))


@pytest.mark.parametrize(
    "how", ["is fed by the trunk past its first layer", "shares a layer with the trunk", "is the only one"]
)
def test_a_net_that_cannot_be_forked_is_refused(how):
    with pytest.raises(InputError, match="Refused: cannot be forked"):
        ONE([Refused(how), Refused(how)]).bind(tiny_facts())


def test_nets_of_several_architectures_are_refused():
    with pytest.raises(InputError, match="one architecture"):
        ONE([tiny_net(4), tiny_net(6)])


@pytest.mark.parametrize(
    ("count", "options", "field"),
    [(1, {}, "students"), (2, {"temperature": 0.0}, "temperature"), (2, {"ramp": -1}, "ramp")],
)
def test_bad_arguments_are_refused(count, options, field):
    with pytest.raises(InputError, match=rf"ONE\.{field}"):
        ONE([tiny_net() for _ in range(count)], **options)


def test_no_ramp_is_full_weight_at_once():
    assert ONE([tiny_net(), tiny_net()], ramp=0)._weight(0) == 1
