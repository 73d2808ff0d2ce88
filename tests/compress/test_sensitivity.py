from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from compress import channels
from compress.channels import Group
from compress.sensitivity import Drop, ranked, sensitivity
from kd.errors import InputError

IDLE, BUSY = "layer1.0.conv1", "layer2.0.conv1"


@pytest.fixture(scope="module")
def planted(trained, digits):
    """The trained net, which has learnt to do without the group `IDLE`: nobody listens to it."""
    model = copy.deepcopy(trained).requires_grad_(True).train()
    model.net.get_submodule("layer1.0.conv2").weight.requires_grad_(False).zero_()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    for (view,) in digits.batches(0, batch_size=64):
        optimizer.zero_grad()
        cross_entropy(model(view.x), view.y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def orders(planted):
    """Two groups, the channels by their weights."""
    found = {group.name: group for group in channels.find(planted.net, torch.rand(1, 1, 8, 8)).groups}
    norms = {name: planted.net.get_submodule(name).weight.flatten(1).norm(dim=1) for name in (IDLE, BUSY)}
    return {found[name]: norm.argsort().tolist() for name, norm in norms.items()}


def naive(model, name, gone, data):
    """Accuracy and mean loss on validation without some channels of a convolution, whose norm follows it."""
    broken = copy.deepcopy(model)
    norm = broken.net.get_submodule(name.replace("conv", "bn"))
    for channel in gone:
        norm.weight.data[channel] = norm.bias.data[channel] = 0
    (view,) = data.evaluation("val", batch_size=10**6)
    with torch.no_grad():
        logits = broken(view.x)
    return 100 * (logits.argmax(1) == view.y).double().mean().item(), cross_entropy(logits.double(), view.y).item()


def test_drops_are_those_of_the_silenced_net_on_validation(planted, orders, context, digits):
    curves = sensitivity(planted, orders, context(), shares=(0.25, 0.75), images=10**6)

    assert set(curves) == {IDLE, BUSY}
    top1, nll = naive(planted, BUSY, (), digits)
    for share, drop in curves[BUSY].items():
        order = next(order for group, order in orders.items() if group.name == BUSY)
        worse = naive(planted, BUSY, order[: int(share * 32)], digits)
        assert drop.top1 == pytest.approx(top1 - worse[0], abs=1e-9)
        assert drop.nll == pytest.approx(worse[1] - nll, rel=1e-5)
    assert curves[BUSY][0.75].nll > curves[BUSY][0.25].nll > 0.01
    assert all(drop == Drop(0.0, pytest.approx(0, abs=1e-6)) for drop in curves[IDLE].values())


def test_it_looks_at_so_many_images_drawn_by_the_seed(planted, orders, context):
    def look(**settings):
        return sensitivity(planted, orders, context(**settings), shares=(0.5,), images=40)

    seen = []
    handle = planted.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    first = look()
    handle.remove()
    assert seen == [40]
    assert look() == first
    assert look(seed=1) != first
    assert first[BUSY][0.5].top1 % 2.5 == pytest.approx(0), "of 40 images"


def test_the_given_model_stays_as_it_was(planted, orders, context):
    before = copy.deepcopy(planted.state_dict())
    sensitivity(planted, orders, context(), shares=(0.5,), images=20)
    assert all(torch.equal(value, before[name]) for name, value in planted.state_dict().items())


def test_what_does_not_matter_goes_first_and_is_not_missed(planted, orders, context):
    ranking = ranked(sensitivity(planted, orders, context()), orders)
    idle, busy = orders

    assert [channel for group, channel in ranking if group is busy] == orders[busy]
    assert ranking[:16] == [(idle, channel) for channel in orders[idle]]
    x = torch.rand(4, 1, 8, 8)
    small = channels.silenced(planted.net, {idle: [channel for _, channel in ranking[:16]]})
    torch.testing.assert_close(small(planted.normalize(x)), planted(x))


A, B = Group("a", 4, {}), Group("b", 4, {})
BOTH = {A: [3, 1, 0, 2], B: [0, 1, 2, 3]}


def curve(*losses):
    """A drop for the first channels, one after the other."""
    return {(number + 1) / 4: Drop(0.0, loss) for number, loss in enumerate(losses)}


def names(ranking):
    return " ".join(f"{group.name}{channel}" for group, channel in ranking)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (curve(1, 2, 3, 4), curve(10, 20, 30, 40), "a3 a1 a0 a2 b0 b1 b2 b3"),
        (curve(1, 3, 9, 27), curve(2, 4, 6, 8), "a3 b0 a1 b1 b2 b3 a0 a2"),  # slopes 1 2 6 18, and 2 each
        (curve(8, 8, 8, 8), curve(1, 4, 7, 10), "b0 a3 a1 a0 a2 b1 b2 b3"),  # a jump is shared by all behind it
        ({0.5: Drop(0.0, 2.0)}, curve(0.5, 2, 4, 9), "b0 a3 a1 a0 a2 b1 b2 b3"),  # straight between and beyond
        (curve(-1, -2, -1, 4), curve(0, 0, 1, 9), "a3 b0 a1 b1 a0 b2 a2 b3"),  # what helps is no more than harmless
        (curve(0, 0, 0, 0), curve(0, 0, 0, 0), "a3 b0 a1 b1 a0 b2 a2 b3"),  # shrink alike
        (curve(1, math.nan, math.inf, math.inf), curve(2, 40, 400, 4000), "a3 b0 b1 b2 b3 a1 a0 a2"),
    ],
)
def test_the_least_harmful_channel_is_next(a, b, expected):
    assert names(ranked({"a": a, "b": b}, BOTH)) == expected


def test_harm_is_weighed_by_cost():
    curves = {"a": curve(1, 2, 3, 4), "b": curve(2, 4, 6, 8)}
    assert names(ranked(curves, BOTH)) == "a3 a1 a0 a2 b0 b1 b2 b3"
    assert names(ranked(curves, BOTH, {A: 10.0, B: 30.0})) == "b0 b1 b2 b3 a3 a1 a0 a2"


def test_the_loss_decides_not_the_accuracy():
    curves = {"a": {1.0: Drop(0.0, 5.0)}, "b": {1.0: Drop(90.0, 1.0)}}
    assert names(ranked(curves, BOTH)).startswith("b0 b1 b2 b3")


def test_shares_that_mean_the_same_channels_are_measured_once(planted, orders, context, monkeypatch):
    asked = []

    def spy(net, removal):
        asked.append([len(gone) for gone in removal.values()])
        return channels.silenced(net, removal)

    monkeypatch.setattr("compress.sensitivity.silenced", spy)
    idle, _ = orders
    curves = sensitivity(planted, {idle: orders[idle]}, context(), shares=(0.01, 0.06, 0.5, 1.0), images=20)
    assert sorted(asked) == [[1], [8], [16]]
    assert list(curves[IDLE]) == [0.01, 0.06, 0.5, 1.0]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, math.nan])
def test_a_share_that_is_none_is_refused(share, planted, orders, context):
    with pytest.raises(InputError, match=r"^sensitivity\.shares: .*must be above 0, and 1 or below$"):
        sensitivity(planted, orders, context(), shares=(0.5, share))
