import pytest
import torch

from kd.batch import Batch, Clock, Facts, Needs, Outputs, Ports, View
from kd.errors import InputError
from kd.loss import Loss, Objective, Term

PORTS = Ports(classes=3, embedding=4, stages=((2, 4, 4), (4, 2, 2)))


def facts(**changes):
    known = {"classes": 3, "names": ("a", "b", "c"), "channels": 1, "image_size": (4, 4), "mean": (0.5,), "std": (0.2,)}
    return Facts(**known | {"labels": torch.tensor([0, 1, 2])} | changes)


def batch(epoch=0, n=4):
    view = View(torch.rand(n, 1, 4, 4), torch.arange(n) % 3, torch.arange(n), 0)
    return Batch((view,), Clock(0, 10, epoch, 5))


class Mean(Loss):
    """The mean logit, and what it was given."""

    def __init__(self, needs=None):
        super().__init__()
        self.needs, self.seen = needs or Needs(), None

    def forward(self, student, teacher, batch):
        self.seen = student.logits.dtype, torch.is_autocast_enabled("cpu")
        return student.logits.mean()


def test_the_total_is_the_weighted_sum_and_the_parts_are_unweighted():
    objective = Objective({"a": Term(Mean(), 2.0), "b": Term(Mean(), 0.5)})
    logits = torch.randn(4, 3, requires_grad=True)
    total, parts = objective(Outputs(logits), Outputs(logits.detach()), batch())
    assert total.item() == pytest.approx(2.5 * logits.mean().item())
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(
        dict.fromkeys("ab", logits.mean().item())
    )
    total.backward()
    torch.testing.assert_close(logits.grad, torch.full((4, 3), 2.5 / 12))


def test_no_parameter_is_idle_where_no_loss_reads_the_logits():
    class Hint(Loss):
        def forward(self, student, teacher, batch):
            return student.embedding.square().mean()

    head, embedding = torch.nn.Linear(4, 3), torch.randn(5, 4, requires_grad=True)
    with torch.no_grad():
        head.bias[0] = torch.inf  # the value is that of the hint, whatever the logits are
    total, parts = Objective({"hint": Term(Hint())})(
        Outputs(head(embedding), embedding), Outputs(torch.ones(5, 3)), batch()
    )
    total.backward()
    assert torch.equal(total, parts["hint"])
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in head.parameters())
    torch.testing.assert_close(embedding.grad, embedding.detach() / 10)


def test_a_warm_up_rises_linearly_and_then_stays():
    objective = Objective({"a": Term(Mean(), 6.0, warmup=3)})
    assert [objective.weight("a", epoch) for epoch in range(5)] == pytest.approx([2, 4, 6, 6, 6])
    ones = Outputs(torch.ones(4, 3))
    assert [objective(ones, ones, batch(epoch))[0].item() for epoch in range(4)] == pytest.approx([2, 4, 6, 6])


def test_a_weight_of_0_keeps_the_term_in_the_log():
    total, parts = Objective({"a": Term(Mean(), 0.0)})(Outputs(torch.ones(4, 3)), Outputs(torch.ones(4, 3)), batch())
    assert (total.item(), parts["a"].item()) == (0.0, 1.0)


def test_losses_run_in_float32_outside_autocast():
    loss = Mean()
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.ones(4, 3).bfloat16()
        total, _ = Objective({"a": Term(loss)})(Outputs(logits), Outputs(logits), batch())
    assert loss.seen == (torch.float32, False)
    assert total.dtype == torch.float32
    Objective({"a": Term(loss)})(Outputs(logits.double()), Outputs(logits.double()), batch())
    assert loss.seen[0] == torch.float64


def test_the_needs_of_all_losses_are_united():
    a, b = Needs(embedding=True, stages=(1,)), Needs(stages=(-1, 1), gathered=True)
    objective = Objective({"a": Term(Mean(a)), "b": Term(Mean(b))})
    assert objective.needs == Needs(embedding=True, stages=(1, -1), gathered=True)


@pytest.mark.parametrize("stage", [2, -3])
def test_a_stage_that_a_model_lacks_is_refused_before_training(stage):
    objective = Objective({"hint": Term(Mean(Needs(stages=(stage,))))})
    with pytest.raises(InputError, match=rf"hint.stages: {stage}: the student has 2 stages"):
        objective.bind(PORTS, PORTS, facts())


def test_soft_labels_are_refused_where_the_formula_is_for_hard_ones():
    objective = Objective({"a": Term(Mean(Needs(hard_labels=True)))})
    objective.bind(PORTS, PORTS, facts())
    with pytest.raises(InputError, match="hard labels only"):
        objective.bind(PORTS, PORTS, facts(soft_labels=True))


def test_an_objective_without_terms_is_refused():
    with pytest.raises(InputError, match="at least one term"):
        Objective({})
