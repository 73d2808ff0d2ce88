from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from kd.batch import Outputs, Ports
from kd.errors import InputError
from kd.loss import Objective, Term
from kd.losses.feature.sem_ckd import SemCKD
from kd.testing import LossContract, naive_net, naive_pooled, tiny_facts


def naive_vector(net, row):
    for layer in net:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.tolist(), layer.bias.tolist()
            row = [b + sum(w * x for w, x in zip(line, row, strict=True)) for line, b in zip(weight, bias, strict=True)]
        else:
            row = [max(x, 0.0) for x in row]
    length = math.sqrt(sum(x**2 for x in row))
    return [x / length for x in row]


def naive_vectors(net, images, batch):
    """A unit vector for each sample, of its products with all samples and zeros up to `batch` of them."""
    flat = [[x for plane in image for row in plane for x in row] for image in images]
    gram = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in flat] for one in flat]
    return [naive_vector(net, row + [0.0] * (batch - len(row))) for row in gram]


def naive_errors(regressor, ours, theirs):
    """A mean squared difference for each sample."""
    size = min(len(ours[0][0]), len(theirs[0][0])), min(len(ours[0][0][0]), len(theirs[0][0][0]))
    made = naive_net(regressor, naive_pooled(ours, size))
    flat = [
        [[x for plane in image for row in plane for x in row] for image in images]
        for images in (made, naive_pooled(theirs, size))
    ]
    return [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / len(x) for x, y in zip(*flat, strict=True)]


class TestSemCKD(LossContract):
    student = Ports(classes=4, embedding=3, stages=((2, 3, 3), (1, 2, 2)))
    teacher = Ports(classes=4, embedding=5, stages=((1, 4, 2), (2, 2, 2)))
    samples = 5
    ordered = True  # the networks see the samples of a batch in their places

    def make(self):
        return SemCKD(batch=8)

    def reference(self, loss, student, teacher, batch):
        ours, theirs = ([side.stages[i].tolist() for i in loss.stages] for side in (student, teacher))
        queries = [naive_vectors(net, x, loss.batch) for net, x in zip(loss.queries, ours, strict=True)]
        keys = [naive_vectors(net, x, loss.batch) for net, x in zip(loss.keys, theirs, strict=True)]
        regressors = iter(loss.regressors)
        errors = [[naive_errors(next(regressors), x, y) for y in theirs] for x in ours]
        total, samples = 0.0, len(ours[0])
        for n in range(samples):
            for i, query in enumerate(queries):
                scores = [math.exp(sum(a * b for a, b in zip(query[n], key[n], strict=True))) for key in keys]
                total += sum(s / sum(scores) * errors[i][j][n] for j, s in enumerate(scores))
        return total / samples / len(ours)


class TestSemCKDOfAWholeBatch(TestSemCKD):
    def make(self):
        return SemCKD(batch=5)


class TestSemCKDOfUnequalDepths(TestSemCKD):
    student = Ports(classes=4, embedding=3, stages=((2, 4, 4), (2, 3, 3), (1, 2, 2)))


def bound(student, teacher, **options):
    torch.manual_seed(0)
    loss = SemCKD(**options)
    loss.bind(student, teacher, tiny_facts(student.classes))
    return loss


def outputs(ports, samples=4, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return Outputs(
        torch.zeros(samples, ports.classes),
        stages=tuple(torch.randn(samples, *stage, generator=draws, dtype=torch.float64) for stage in ports.stages),
    )


SMALL = Ports(4, 3, ((2, 4, 4), (3, 2, 2))), Ports(4, 5, ((3, 4, 4), (2, 2, 2)))


def test_even_attention_gives_the_mean_over_pairs():
    """Queries that are all alike, and keys too, weigh the teacher's stages alike: 1/2 each."""
    loss = bound(*SMALL, batch=4).double()
    with torch.no_grad():
        for net in (*loss.queries, *loss.keys):
            net[-1].weight.zero_()
            net[-1].bias.fill_(1.0)
    student, teacher = outputs(SMALL[0]), outputs(SMALL[1], seed=1)
    regressors, errors = iter(loss.regressors), []
    for ours in student.stages:
        for theirs in teacher.stages:
            errors += naive_errors(next(regressors), ours.tolist(), theirs.tolist())
    assert loss(student, teacher, None).item() == pytest.approx(sum(errors) / len(errors), rel=1e-9)


def test_attention_moves_to_the_stage_that_is_learned_more_easily():
    ports = Ports(4, 3, ((2, 2, 2), (2, 2, 2)))
    loss = bound(ports, ports, batch=8).double()
    student, teacher = outputs(ports, 8), outputs(ports, 8, seed=1)
    teacher = teacher._replace(stages=(10 * teacher.stages[0], teacher.stages[1]))
    optimiser = torch.optim.Adam([*loss.queries.parameters(), *loss.keys.parameters()], 0.01)
    for _ in range(30):
        optimiser.zero_grad()
        loss(student, teacher, None).backward()
        optimiser.step()
    key, query = (loss._embedded(nets, x.stages) for nets, x in ((loss.keys, teacher), (loss.queries, student)))
    assert (query @ key.mT).softmax(2)[:, :, 1].mean() > 0.7


def test_the_gradient_reaches_the_student_by_its_relations_too():
    """The regressors switched off, what is left of it goes through the attention."""
    loss = bound(*SMALL, batch=4).double()
    with torch.no_grad():
        for regressor in loss.regressors:
            regressor[-1].weight.zero_()
    student = outputs(SMALL[0])
    maps = [x.requires_grad_() for x in student.stages]
    loss(student._replace(stages=tuple(maps)), outputs(SMALL[1], seed=1), None).backward()
    assert all(x.grad.any() for x in maps)


@pytest.mark.parametrize("value", [0.0, 60.0])
def test_maps_of_one_value(value):
    loss = bound(*SMALL, batch=4)
    student, teacher = (
        Outputs(torch.zeros(4, 4), stages=tuple(torch.full((4, *stage), value) for stage in ports.stages))
        for ports in SMALL
    )
    maps = tuple(x.requires_grad_() for x in student.stages)
    result = loss(student._replace(stages=maps), teacher, None)
    result.backward()
    assert result.isfinite()
    assert all(x.grad.isfinite().all() for x in maps)


def test_the_whole_batch_must_fit():
    loss = bound(*SMALL, batch=4).double()
    assert loss(outputs(SMALL[0], 3), outputs(SMALL[1], 3), None).isfinite()
    with pytest.raises(InputError, match=r"SemCKD\.batch: 4: .* 5"):
        loss(outputs(SMALL[0], 5), outputs(SMALL[1], 5), None)


def test_the_networks():
    loss = bound(*SMALL)
    assert [(n[0].in_features, n[0].out_features, n[2].out_features) for n in (*loss.queries, *loss.keys)] == [
        (64, 32, 16)
    ] * 4
    widths = [(r[0].in_channels, r[0].out_channels, r[3].kernel_size, r[-1].out_channels) for r in loss.regressors]
    assert widths == [(2, 6, (3, 3), 3), (2, 4, (3, 3), 2), (3, 6, (3, 3), 3), (3, 4, (3, 3), 2)]


def test_small_batches_learn_their_attention_too():
    loss = bound(*SMALL, batch=2).double()
    loss(outputs(SMALL[0], 2), outputs(SMALL[1], 2, seed=1), None).backward()
    assert all(net[-1].weight.grad.any() for net in (*loss.queries, *loss.keys))


def test_nothing_in_it_depends_on_how_many_processes_saw_the_batch():
    assert not [*bound(*SMALL).buffers()]


def test_all_stages_that_are_read_are_gathered():
    ports = Ports(3, 2, ((2, 4, 4),) * 5)
    objective = Objective({"loss": Term(SemCKD())})
    objective.bind(ports, Ports(3, 2, ((2, 4, 4),) * 4), tiny_facts())
    assert objective.needs.gathered
    assert set(objective.needs.stages) == {-3, -2, -1}
    assert bound(ports, ports, stages=[0, 2]).needs.stages == (0, 2)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"SemCKD\.stages"):
        SemCKD([])
    with pytest.raises(InputError, match=r"SemCKD\.batch"):
        SemCKD(batch=0)


def test_the_batch_is_that_of_the_fit_and_a_smaller_one_is_refused_before_it():
    facts = replace(tiny_facts(), batch_size=96)
    loss = SemCKD()
    loss.bind(*SMALL, facts)
    assert loss.batch == loss.queries[0][0].in_features == 96
    with pytest.raises(InputError, match=r"SemCKD\.batch: 95: must be at least the whole batch, 96"):
        SemCKD(batch=95).bind(*SMALL, facts)
    loss = SemCKD()
    loss.bind(*SMALL, tiny_facts())
    assert loss.batch == 64
