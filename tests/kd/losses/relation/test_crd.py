from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from kd.batch import Batch, Clock, Outputs, Ports, View
from kd.errors import InputError
from kd.loss import Objective, Term
from kd.losses import CrossEntropy
from kd.losses.relation.crd import CRD, contrast
from kd.regimes import Offline
from kd.testing import LossContract, RegimeContract, tiny_facts, tiny_net

PORTS = Ports(4, 3, ()), Ports(4, 5, ())


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(row):
    length = math.sqrt(dot(row, row))
    return [value / length for value in row]


def naive_embed(layer, rows):
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [unit([dot(out, row) + b for out, b in zip(weight, bias, strict=True)]) for row in rows]


def naive_contrast(probabilities, size):
    """Rows of P: the positive's, then the negatives'."""
    total = 0.0
    for positive, *negatives in probabilities:
        noise = len(negatives) / size
        total -= math.log(positive / (positive + noise)) + sum(math.log(noise / (p + noise)) for p in negatives)
    return total / len(probabilities)


def naive_crd(loss, student, teacher, index, negatives):
    """The value, and the Z of both banks that this batch would set; `negatives` are those of each sample."""
    total, found = 0.0, []
    sides = (
        (naive_embed(loss.embed_student, student.embedding.tolist()), loss.teacher_bank.tolist()),
        (naive_embed(loss.embed_teacher, teacher.embedding.tolist()), loss.student_bank.tolist()),
    )
    for (anchors, bank), known in zip(sides, loss.z.tolist(), strict=True):
        entries = zip(anchors, index, negatives, strict=True)
        likeness = [[math.exp(dot(anchor, bank[j]) / 0.07) for j in (i, *others)] for anchor, i, others in entries]
        found.append(sum(map(sum, likeness)) / sum(map(len, likeness)) * len(bank))
        z = known or found[-1]
        total += naive_contrast([[value / z for value in row] for row in likeness], len(bank))
    return total, found


def others(labels, index):
    """All samples of other classes, for each sample."""
    return [[j for j, label in enumerate(labels) if label != labels[i]] for i in index]


def bound(facts=None, seed=0, **options):
    loss = CRD(**options)
    torch.manual_seed(seed)
    loss.bind(*PORTS, facts or tiny_facts(4))
    return loss


def batch_of(index, step=0, labels=None):
    index = torch.as_tensor(index)
    y = index % 4 if labels is None else labels[index]
    return Batch((View(torch.zeros(len(index), 3, 8, 8), y, index, 0),), Clock(step, 9, 0, 1))


def outputs(count, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return tuple(Outputs(torch.zeros(count, 4), torch.randn(count, p.embedding, generator=draws)) for p in PORTS)


class TestCRD(LossContract):
    """Later than the first batch, whose Z is a constant that moves with the inputs."""

    def make(self):
        return CRD(features=8)

    def reference(self, loss, student, teacher, batch):
        index = batch.index.tolist()
        return naive_crd(loss, student, teacher, index, others(tiny_facts(4).labels.tolist(), index))[0]

    def _case(self, *arguments, **options):
        case = super()._case(*arguments, **options)
        case.loss()
        case.objective.after_step(case.batch)
        return case


class TestTraining(RegimeContract):
    """Banks under all that a regime promises: a restored state, a deep copy, the teacher left alone."""

    def make(self):
        objective = Objective({"crd": Term(CRD(features=8), 0.8), "cross_entropy": Term(CrossEntropy())})
        return Offline(tiny_net(), self.teacher, objective)

    def test_soft_labels_work_unless_the_demands_refuse_them(self):
        with pytest.raises(InputError, match="hard labels"):
            self.bound(replace(self.facts, soft_labels=True))

    def test_the_state_holds_all_that_the_next_steps_read(self):
        regime, other = self.bound(), self.bound()
        self.train(regime, 3)
        other.load_state_dict(regime.state_dict())
        self.train(regime, 3)
        self.train(other, 3)
        for name, value in regime.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


class TestContrast:
    @pytest.mark.parametrize("negatives", [1, 7])
    def test_value(self, negatives):
        log_p = 3 * torch.randn(4, 1 + negatives, dtype=torch.float64) - 5
        expected = naive_contrast(log_p.exp().tolist(), 50)
        assert contrast(log_p, 50).item() == pytest.approx(expected, rel=1e-9)

    def test_it_is_summed_over_negatives_and_averaged_over_samples(self):
        log_p = torch.randn(3, 5, dtype=torch.float64)
        torch.testing.assert_close(contrast(log_p.repeat(2, 1), 50), contrast(log_p, 50))
        by_hand = 4 * math.log(2) + math.log(2)  # P = K / size everywhere: every h is a half
        assert contrast(torch.full((3, 5), math.log(4 / 50)), 50).item() == pytest.approx(by_hand)

    def test_the_positive_is_drawn_near_and_negatives_pushed_away(self):
        log_p = torch.randn(3, 5, requires_grad=True)
        contrast(log_p, 50).backward()
        assert (log_p.grad[:, 0] < 0).all()
        assert (log_p.grad[:, 1:] > 0).all()

    def test_extremes(self):
        log_p = torch.tensor([[-900.0, 900.0, 0.0], [60.0, -60.0, 60.0]], requires_grad=True)
        value = contrast(log_p, 50)
        value.backward()
        assert value.isfinite()
        assert log_p.grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_precision(self, dtype):
        log_p = torch.randn(3, 5).to(dtype)
        assert contrast(log_p, 50).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert contrast(log_p, 50).item() == pytest.approx(contrast(log_p.double(), 50).item(), rel=1e-6)

    @pytest.mark.parametrize("shape", [(3,), (3, 1)])
    def test_wrong_shapes_are_told(self, shape):
        with pytest.raises(ValueError) as error:
            contrast(torch.zeros(shape), 50)
        assert str(shape) in str(error.value)


class TestZ:
    def test_the_first_batch_sets_it_and_it_stays(self):
        loss = bound()
        student, teacher = outputs(4)
        expected, z = naive_crd(loss, student, teacher, range(4), others(tiny_facts(4).labels.tolist(), range(4)))
        assert loss(student, teacher, batch_of(range(4))).item() == pytest.approx(expected, rel=1e-5)
        loss.after_step(batch_of(range(4)))
        assert loss.z.tolist() == pytest.approx(z, rel=1e-5)
        fixed = loss.z.clone()
        loss(*outputs(4, seed=1), batch_of(range(4)))
        loss.after_step(batch_of(range(4)))
        assert torch.equal(loss.z, fixed)

    def test_a_step_that_was_skipped_sets_nothing(self):
        """As AMP skips one that overflows: `after_step` is not called."""
        loss = bound()
        state = copy.deepcopy(loss.state_dict())
        loss(*outputs(4), batch_of(range(4)))
        assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())
        loss(*outputs(4, seed=1), batch_of(range(4)))
        loss.after_step(batch_of(range(4)))
        other = bound()
        other(*outputs(4, seed=1), batch_of(range(4)))
        other.after_step(batch_of(range(4)))
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in loss.state_dict().items())

    def test_it_lets_no_gradient_through(self):
        """Gradients of the first batch are those with Z a constant."""
        student, teacher = outputs(4)
        gradients = []
        for known in (False, True):
            loss = bound()
            if known:
                loss(student, teacher, batch_of(range(4)))
                assert loss._seen is not None
                loss.z.copy_(loss._seen[-1])
            loss(student, teacher, batch_of(range(4))).backward()
            gradients.append(loss.embed_student.weight.grad)
        torch.testing.assert_close(*gradients)


class TestBanks:
    def test_entries_of_the_batch_move_by_the_momentum_and_have_length_1(self):
        loss = bound()
        before = loss.student_bank.tolist(), loss.teacher_bank.tolist()
        student, teacher = outputs(3)
        index = [7, 0, 10]
        loss(student, teacher, batch_of(index))
        loss.after_step(batch_of(index))
        layers = (loss.embed_student, student), (loss.embed_teacher, teacher)
        banks = loss.student_bank, loss.teacher_bank
        for bank, old, (layer, side) in zip(banks, before, layers, strict=True):
            for i, new in zip(index, naive_embed(layer, side.embedding.tolist()), strict=True):
                old[i] = unit([(a + b) / 2 for a, b in zip(old[i], new, strict=True)])
            torch.testing.assert_close(bank, torch.tensor(old))

    def test_the_momentum_is_the_share_of_the_old(self):
        loss = bound(momentum=0.9)
        old = loss.teacher_bank[2].tolist()
        student, teacher = outputs(1)
        loss(student, teacher, batch_of([2]))
        loss.after_step(batch_of([2]))
        (new,) = naive_embed(loss.embed_teacher, teacher.embedding.tolist())
        expected = unit([0.9 * a + 0.1 * b for a, b in zip(old, new, strict=True)])
        torch.testing.assert_close(loss.teacher_bank[2], torch.tensor(expected))

    def test_forward_reads_them_and_writes_nothing(self):
        loss = bound()
        state = copy.deepcopy(loss.state_dict())
        first, again = (loss(*outputs(4), batch_of(range(4))) for _ in range(2))
        assert torch.equal(first, again)
        assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())

    def test_the_two_nets_are_contrasted_across(self):
        """The student with the teacher's bank alone, the teacher with the student's."""
        loss = bound()
        loss.z.fill_(12)
        student, teacher = outputs(4)
        loss.student_bank.zero_()
        half = loss(student, teacher, batch_of(range(4)))
        gradients = torch.autograd.grad(half, [loss.embed_student.weight, loss.embed_teacher.weight])
        assert gradients[0].any()
        assert not gradients[1].any()

    def test_what_is_in_the_checkpoint(self):
        facts = tiny_facts(4)
        kept = {name: tuple(value.shape) for name, value in bound(facts).state_dict().items() if "embed" not in name}
        assert kept == {"student_bank": (12, 128), "teacher_bank": (12, 128), "z": (2,), "seed": (1,)}

    def test_what_is_kept_for_them_hangs_on_no_graph(self):
        loss = bound()
        loss(*outputs(4), batch_of(range(4)))
        copy.deepcopy(loss)  # torch copies no tensor within a graph: an EMA would fail
        loss.after_step(batch_of(range(4)))
        assert loss._seen is None


class TestNegatives:
    labels = torch.tensor([0] * 20 + [1] * 50 + [2] * 30 + [3] * 100)[
        torch.randperm(200, generator=torch.Generator().manual_seed(0))
    ]
    facts = replace(tiny_facts(4), labels=labels)

    def draws(self, negatives, step=0, seed=0, index=range(200)):
        loss = bound(self.facts, seed, negatives=negatives)
        return loss.draw(batch_of(index, step, self.labels))

    def test_all_are_of_other_classes(self):
        drawn = self.draws(40)
        assert drawn.shape == (200, 40)
        assert (self.labels[drawn] != self.labels[:, None]).all()

    def test_each_slice_gives_one(self):
        """So that no sample comes more than twice, and classes come as often as they should, to within one."""
        drawn = self.draws(40)
        for i, row in enumerate(drawn.tolist()):
            assert max(row.count(j) for j in row) <= 2
            for c in set(range(4)) - {int(self.labels[i])}:
                share = 40 * (self.labels == c).sum() / (self.labels != self.labels[i]).sum()
                assert abs(sum(self.labels[j] == c for j in row) - share) < 2

    def test_all_samples_of_other_classes_come_equally_often(self):
        index = int((self.labels == 3).nonzero()[0])  # 100 others, of which 30 are drawn
        counts = sum(self.draws(30, step, index=[index])[0].bincount(minlength=200) for step in range(600))
        assert not counts[self.labels == 3].any()
        expected = 600 * 30 / 100
        assert (counts[self.labels != 3] - expected).abs().max() < 5 * math.sqrt(expected)

    def test_where_the_data_is_smaller_there_are_as_many_as_every_class_has(self):
        drawn = self.draws(16384)
        assert drawn.shape == (200, 100)
        for i in (self.labels == 3).nonzero()[:3, 0]:
            assert sorted(drawn[i].tolist()) == (self.labels != 3).nonzero()[:, 0].tolist()

    def test_they_are_a_function_of_seed_step_and_index_alone(self):
        whole = self.draws(40)
        torch.manual_seed(5)
        torch.rand(3)
        assert torch.equal(self.draws(40, index=[9, 3]), whole[[9, 3]])
        assert not torch.equal(self.draws(40, step=1), whole)
        assert not torch.equal(self.draws(40, seed=1), whole)
        same = self.labels == self.labels[0]
        assert len(whole[same].unique(dim=0)) == same.sum()

    def test_drawing_leaves_the_global_generator_alone(self):
        loss = bound(self.facts, negatives=40)
        state = torch.get_rng_state()
        loss(*outputs(4), batch_of(range(4), 0, self.labels))
        assert torch.equal(torch.get_rng_state(), state)

    def test_the_value_is_over_those_that_are_drawn(self):
        loss = bound(self.facts, negatives=40)
        student, teacher = outputs(6)
        batch = batch_of([4, 8, 1, 0, 99, 7], 3, self.labels)
        expected, _ = naive_crd(loss, student, teacher, batch.index.tolist(), loss.draw(batch).tolist())
        assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-5)

    def test_a_class_without_samples(self):
        loss = bound(replace(tiny_facts(4), labels=torch.tensor([0, 0, 1, 3])))
        assert loss.draw(batch_of([0, 2, 3], 0, torch.tensor([0, 0, 1, 3]))).shape == (3, 2)

    def test_data_of_one_class_is_refused(self):
        with pytest.raises(InputError, match=r"CRD\.negatives: 16384: the data has one class"):
            bound(replace(tiny_facts(4), labels=torch.zeros(12, dtype=torch.long)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("features", 0),
        ("negatives", 0),
        ("temperature", 0.0),
        ("temperature", 0.01),
        ("momentum", -0.1),
        ("momentum", 1),
    ],
)
def test_hyper_parameters_that_cannot_be_are_refused(name, value):
    with pytest.raises(InputError, match=rf"CRD\.{name}"):
        CRD(**{name: value})


def test_the_temperature_that_is_allowed_last_keeps_z_finite():
    loss = bound(temperature=0.02)
    student, teacher = outputs(4)
    loss.teacher_bank[:4] = torch.tensor(naive_embed(loss.embed_student, student.embedding.tolist()))
    value = loss(student, teacher, batch_of(range(4)))
    loss.after_step(batch_of(range(4)))
    assert value.isfinite()
    assert loss.z.isfinite().all()


def test_an_embedding_of_zeros():
    loss = bound()
    student, teacher = outputs(4)
    with torch.no_grad():
        loss.embed_student.bias.zero_()
        student.embedding[0] = 0
    loss(student._replace(embedding=student.embedding.requires_grad_()), teacher, batch_of(range(4))).backward()
    assert student.embedding.grad.abs().max() < 1e4
    assert student.embedding.grad.isfinite().all()
