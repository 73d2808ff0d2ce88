from __future__ import annotations

import pytest
import torch
from torch import nn

from kd.batch import Outputs, Ports
from kd.errors import InputError
from kd.losses.feature.mgd import MGD, kept
from kd.testing import LossContract, naive_convolution, naive_mse, naive_pooled, tiny_batch, tiny_facts


def naive_generated(layers, images):
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            images = [naive_convolution(layer, image) for image in images]
        else:
            images = [[[[max(x, 0.0) for x in row] for row in plane] for plane in image] for image in images]
    return images


class TestMGD(LossContract):
    def make(self):
        return MGD(share=0.4, seed=3)

    def reference(self, loss, student, teacher, batch):
        ours, theirs = student.stages[loss.stage].tolist(), teacher.stages[loss.stage].tolist()
        size = min(len(ours[0][0]), len(theirs[0][0])), min(len(ours[0][0][0]), len(theirs[0][0][0]))
        aligned = [naive_convolution(loss.align, image) for image in naive_pooled(ours, size)]
        for image, index in zip(aligned, batch.index.tolist(), strict=True):
            left = kept(torch.tensor([index]), size, loss.share, loss.seed, batch.clock.epoch)[0, 0].tolist()
            for plane in image:
                for row, flags in zip(plane, left, strict=True):
                    row[:] = [x if flag else 0.0 for x, flag in zip(row, flags, strict=True)]
        return naive_mse(naive_generated(loss.generate, aligned), naive_pooled(theirs, size))


class TestMGDOfTokens(TestMGD):
    """All maps of a ViT have one size."""

    student = Ports(4, 3, ((3, 4, 4),) * 3)

    def make(self):
        return MGD(stage=-2, share=0.5)


INDEX = torch.arange(200)


def test_a_mask_is_a_function_of_seed_epoch_and_index_alone():
    torch.manual_seed(0)
    first = kept(INDEX, (4, 5), 0.3, seed=1, epoch=2)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(kept(INDEX, (4, 5), 0.3, seed=1, epoch=2), first)
    assert torch.equal(torch.get_rng_state(), state)
    order = torch.randperm(200)[:50]
    assert torch.equal(kept(order, (4, 5), 0.3, seed=1, epoch=2), first[order])
    assert first.shape == (200, 1, 4, 5)
    for other in (kept(INDEX, (4, 5), 0.3, seed=2, epoch=2), kept(INDEX, (4, 5), 0.3, seed=1, epoch=3)):
        assert not torch.equal(other, first)


@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 0.9])
def test_the_share_of_a_map_that_is_dropped(share):
    dropped = 1 - kept(INDEX, (10, 10), share).double()
    assert dropped.mean().item() == pytest.approx(share, abs=0.01)
    for axis in (0, 2, 3):  # no sample, row or column is favoured
        others = [other for other in range(4) if other != axis]
        assert (dropped.mean(others) - share).abs().max() < 0.2
    assert len(dropped.flatten(1).unique(dim=0)) == (1 if share == 0 else 200)


def bound(student=(2, 4, 4), teacher=(3, 4, 4), **options):
    torch.manual_seed(0)
    loss = MGD(**options)
    loss.bind(Ports(3, 2, (student,)), Ports(3, 2, (teacher,)), tiny_facts())
    return loss


def test_the_networks():
    loss = bound()
    assert (loss.align.in_channels, loss.align.out_channels, loss.align.kernel_size) == (2, 3, (1, 1))
    assert [type(layer) for layer in loss.generate] == [nn.Conv2d, nn.ReLU, nn.Conv2d]
    assert [layer.weight.shape for layer in loss.generate[::2]] == [(3, 3, 3, 3)] * 2


def test_the_student_is_masked_and_the_teacher_whole():
    loss, batch = bound(share=0.5), tiny_batch(tiny_facts(), 4)
    stage, target = torch.randn(4, 2, 4, 4, requires_grad=True), torch.randn(4, 3, 4, 4)
    loss(Outputs(torch.zeros(4, 3), stages=(stage,)), Outputs(torch.zeros(4, 3), stages=(target,)), batch).backward()
    left = kept(batch.index, (4, 4), 0.5).expand_as(stage)
    assert not left.all()
    assert (stage.grad[~left] == 0).all()
    assert (stage.grad[left] != 0).all()


def test_a_batch_is_masked_anew_each_epoch():
    loss, sides = bound(share=0.5), [Outputs(torch.zeros(4, 3), stages=(torch.randn(4, c, 4, 4),)) for c in (2, 3)]
    first, second, again = (loss(*sides, tiny_batch(tiny_facts(), 4, epoch=epoch)) for epoch in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_what_is_masked_can_be_generated_from_what_is_left():
    loss, batch = bound((1, 4, 4), (1, 4, 4), share=0.5), tiny_batch(tiny_facts(), 12)
    stage = torch.randn(12, 1, 1, 1).expand(12, 1, 4, 4)
    outputs = Outputs(torch.zeros(12, 3), stages=(stage,))
    optimiser = torch.optim.Adam(loss.parameters(), 0.03)
    values = []
    for _ in range(200):
        value = loss(outputs, outputs, batch)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.5 * stage.square().mean().item()


def test_a_larger_batch_of_the_same_maps_changes_nothing():
    loss, batch = bound(), tiny_batch(tiny_facts(), 4)
    sides = [torch.randn(4, c, 4, 4) for c in (2, 3)]
    once, twice = (
        loss(
            *(Outputs(torch.zeros(4 * times, 3), stages=(x.repeat(times, 1, 1, 1),)) for x in sides),
            batch._replace(views=(batch.views[0]._replace(index=batch.index.repeat(times)),)),
        )
        for times in (1, 2)
    )
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_cannot_be_is_refused(share):
    with pytest.raises(InputError, match=r"MGD\.share"):
        MGD(share=share)
