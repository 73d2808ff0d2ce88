import pytest
import torch

from kd.batch import Outputs
from kd.tensors import each, expect, pair, probabilities, widen


def test_half_precision_is_widened_and_nothing_else():
    for before, after in (("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64"), ("int64", "int64")):
        assert widen(torch.ones(2, dtype=getattr(torch, before))).dtype == getattr(torch, after)


def test_a_pair_has_the_students_precision_and_no_gradient_to_the_teacher():
    student, teacher = (torch.ones(2, dtype=kind, requires_grad=True) for kind in (torch.float16, torch.float64))
    ours, theirs = pair(student, teacher)
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours.requires_grad, theirs.requires_grad) == (True, False)


def test_wrong_shapes_are_all_told():
    expect(True, "anything")
    with pytest.raises(ValueError, match=r"expected a pair, got \(2, 3\) and \(4,\)"):
        expect(False, "a pair", torch.ones(2, 3), torch.ones(4))


def test_labels_become_probabilities():
    soft = torch.tensor([[0.25, 0.75]])
    assert torch.equal(probabilities(torch.tensor([1, 0]), 2), torch.tensor([[0, 1], [1, 0]]))
    assert torch.equal(probabilities(soft, 2), soft)


def test_each_changes_every_tensor_of_every_view():
    one = torch.ones(1)
    other = Outputs(one, None, (one, one), before=(one,))
    changed = each(lambda x: x + 1, Outputs(one, one, (one,), {"gate": one}, (one, one), (other,)))
    two = one + 1
    assert changed == Outputs(
        two, two, (two,), {"gate": two}, (two, two), (Outputs(two, None, (two, two), {}, (two,)),)
    )
