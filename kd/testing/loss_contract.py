"""`LossContract`: what every `Loss` promises."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from kd.batch import Batch, Outputs, Ports, View
from kd.errors import InputError
from kd.loss import Loss, Objective, Term
from kd.testing.graph import trained_by
from kd.testing.tiny import tiny_batch, tiny_facts


def _pack(tensors: Sequence[Tensor], views: int) -> Outputs:
    """From a row of logits, embedding, classifier, scales, stage maps and as many before their activation, for each
    view."""
    size = len(tensors) // views
    first, *others = [tensors[start : start + size] for start in range(0, len(tensors), size)]
    (logits, embedding, classifier, scales), maps = first[:4], tuple(first[4:])
    half = len(maps) // 2
    extra = {"classifier": classifier, "scales": scales, "final": maps[half - 1]}
    outputs = Outputs(logits, embedding, maps[:half], extra, maps[half:])
    return outputs._replace(others=tuple(_pack(other, 1) for other in others))


def _shapes(ports: Ports, samples: int) -> list[tuple[int, ...]]:
    """Of the tensors that `_pack` takes."""
    maps = [(samples, *shape) for shape in (*ports.stages, *ports.stages)]
    classifier, scales = (ports.classes, ports.stages[-1][0]), (_scales(ports),)
    return [(samples, ports.classes), (samples, ports.embedding), classifier, scales, *maps]


def _scales(ports: Ports) -> int:
    return sum(channels for channels, *_ in ports.stages)


def _ports(ports: Ports) -> Ports:
    """With norms and a classifier."""
    norms = tuple((torch.rand(channels) + 0.5, torch.randn(channels)) for channels, *_ in ports.stages)
    final = ports.stages[-1]
    classifier = torch.randn(ports.classes, final[0]), torch.randn(ports.classes)
    return replace(ports, norms=norms, classifier=classifier, final=final, scales=_scales(ports))


@dataclass
class _Case:
    """A bound loss and random inputs."""

    objective: Objective
    student: list[Tensor]
    teacher: list[Tensor]
    batch: Batch

    def loss(self, *student: Tensor) -> Tensor:
        """The value for the student's tensors, for those of the case by default."""
        return self.objective(self.pack(student or self.student), self.pack(self.teacher), self.batch)[0]

    def pack(self, tensors: Sequence[Tensor]) -> Outputs:
        return _pack(tensors, len(self.batch.views))

    def learn(self) -> list[Tensor]:
        """Let gradients reach the student's tensors, and return them."""
        return [x.requires_grad_() for x in self.student]


class LossContract:
    """Override `make` and `reference`; the attributes where the defaults do not suit the loss.

    Attributes:
        student, teacher: the ports of the pair; both ways round are tested.
        samples: how many samples a batch has.
        perfect: the least value, taken where the student's outputs are the teacher's; None where there is no such.
        ordered: whether the value depends on the order of the samples.
        gradcheck: False for a loss whose gradient is not its derivative (gradient reversal).
    """

    student = Ports(classes=4, embedding=3, stages=((2, 6, 6), (3, 4, 4)))
    teacher = Ports(classes=4, embedding=5, stages=((3, 6, 6), (4, 2, 2)))
    samples = 5
    perfect: float | None = None
    ordered = False
    gradcheck = True

    def make(self) -> Loss:
        raise NotImplementedError("make() returns the loss under test, not bound")

    def reference(self, loss: Loss, student: Outputs, teacher: Outputs, batch: Batch) -> float:
        raise NotImplementedError("reference() computes the value by naive loops over float64 inputs")

    def _case(
        self,
        student: Ports | None = None,
        teacher: Ports | None = None,
        dtype: torch.dtype = torch.float64,
        soft: bool = False,
        seed: int = 0,
    ) -> _Case:
        both = student or self.student, teacher or self.teacher
        facts = tiny_facts(both[0].classes, soft_labels=soft)
        objective = Objective({"loss": Term(self.make())})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            objective.bind(_ports(both[0]), _ports(both[1]), facts)
            views = objective.needs.views
            tensors = [[torch.randn(shape, dtype=dtype) for shape in views * _shapes(p, self.samples)] for p in both]
        half = dtype in (torch.float16, torch.bfloat16)
        objective.to(torch.float32 if half else dtype)
        return _Case(objective, tensors[0], tensors[1], tiny_batch(facts, self.samples, views))

    def _expected(self, case: _Case, shift: float = 0.0, along: Sequence[Tensor] = ()) -> float:
        """The reference's value on the case's inputs, the student's moved by `shift` along a direction."""
        student = [x.detach().double() for x in case.student]
        if along:
            student = [x + shift * direction for x, direction in zip(student, along, strict=True)]
        teacher = case.pack([x.detach().double() for x in case.teacher])
        loss = copy.deepcopy(case.objective).double().losses["loss"]
        assert isinstance(loss, Loss)
        return float(self.reference(loss, case.pack(student), teacher, case.batch))

    def test_value_is_the_references(self) -> None:
        case = self._case()
        assert case.loss().dtype == torch.float64
        assert case.loss().shape == ()
        assert case.loss().item() == pytest.approx(self._expected(case), rel=1e-6, abs=1e-9)

    def test_value_where_the_student_is_wider(self) -> None:
        case = self._case(self.teacher, self.student)
        assert case.loss().item() == pytest.approx(self._expected(case), rel=1e-6, abs=1e-9)

    def test_gradient_is_the_references(self) -> None:
        case = self._case()
        gradients = torch.autograd.grad(case.loss(*case.learn()), case.student, materialize_grads=True)
        draws = torch.Generator().manual_seed(0)
        for _ in range(3):
            along = [torch.randn(x.shape, dtype=x.dtype, generator=draws) for x in gradients]
            slope = sum((g * d).sum().item() for g, d in zip(gradients, along, strict=True))
            rise = self._expected(case, 1e-6, along) - self._expected(case, -1e-6, along)
            assert slope == pytest.approx(rise / 2e-6, rel=1e-4, abs=1e-6)

    def test_gradcheck(self) -> None:
        if not self.gradcheck:
            pytest.skip("the gradient is declared not to be the derivative")
        case = self._case()
        assert torch.autograd.gradcheck(case.loss, case.learn())

    def test_teacher_gets_no_gradient(self) -> None:
        case = self._case()
        case.learn()
        case.teacher = [x.requires_grad_() for x in case.teacher]
        case.loss().backward()
        assert all(x.grad is None or not x.grad.any() for x in case.teacher)

    def test_perfect_student(self) -> None:
        if self.perfect is None:
            pytest.skip("declared to have no least value where the outputs are equal")
        case = self._case(self.teacher)
        assert case.loss().item() >= self.perfect
        case.student = [x.clone() for x in case.teacher]
        gradients = torch.autograd.grad(case.loss(*case.learn()), case.student, materialize_grads=True)
        assert case.loss().item() == pytest.approx(self.perfect, abs=1e-9)
        assert all(gradient.abs().max() < 1e-6 for gradient in gradients)

    def test_order_of_samples(self) -> None:
        if self.ordered:
            pytest.skip("declared to depend on the order of the samples")
        case = self._case()
        value, order = case.loss().item(), torch.arange(self.samples).roll(2)
        case.student, case.teacher = (
            [x[order] if len(x) == self.samples else x for x in side] for side in (case.student, case.teacher)
        )
        views = tuple(View(v.x[order], v.y[order], v.index[order], v.draw) for v in case.batch.views)
        case.batch = case.batch._replace(views=views)
        assert case.loss().item() == pytest.approx(value, rel=1e-9)

    def test_soft_labels_work_or_are_refused(self) -> None:
        if self.make().needs.hard_labels:
            with pytest.raises(InputError, match="hard labels"):
                self._case(soft=True)
        else:
            case = self._case(soft=True)
            assert case.loss().item() == pytest.approx(self._expected(case), rel=1e-6, abs=1e-9)

    def test_half_precision(self) -> None:
        case = self._case(dtype=torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            value = case.loss()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(self._expected(case), rel=1e-2)

    def test_extreme_logits(self) -> None:
        case = self._case(dtype=torch.float32)
        for side in (case.student, case.teacher):
            side[0] = 60 * side[0].sign()
        value = case.loss(*case.learn())
        gradients = torch.autograd.grad(value, case.student, materialize_grads=True)
        assert all(x.isfinite().all() for x in (value, *gradients))

    def test_state_dict_restores_the_value(self) -> None:
        case, other = self._case(), self._case(seed=1)
        other.student, other.teacher = case.student, case.teacher
        other.objective.load_state_dict(case.objective.state_dict())
        assert torch.equal(other.loss(), case.loss())

    def test_all_that_trains_is_registered_and_none_is_idle(self) -> None:
        case = self._case(dtype=torch.float32)
        assert trained_by(case.loss()) == {p for p in case.objective.parameters() if p.requires_grad}
