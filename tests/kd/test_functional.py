"""What all pure functions promise alike; their values are tested beside their losses and regimes."""

from __future__ import annotations

import inspect

import pytest
import torch

from kd import functional

SIGNATURES = {
    "kd": {"student": ..., "teacher": ..., "temperature": 4.0},
    "hint": {"student": ..., "teacher": ...},
    "rkd_distance": {"student": ..., "teacher": ...},
    "rkd_angle": {"student": ..., "teacher": ...},
    "dml": {"logits": ..., "temperature": 1.0},
    "ps_kd_target": {"target": ..., "past_probs": ..., "alpha": ...},
}
SHAPES = {
    "kd": ((5, 4), (5, 4)),
    "hint": ((5, 3, 2, 2), (5, 3, 2, 2)),
    "rkd_distance": ((5, 3), (5, 7)),
    "rkd_angle": ((5, 3), (5, 7)),
}
WRONG = {
    "kd": [((5, 4), (5, 3)), ((5, 4), (4, 4)), ((4,), (4,))],
    "hint": [((5, 3, 2, 2), (5, 3, 4, 4)), ((5, 3), (5, 3))],
    "rkd_distance": [((5, 3), (4, 3)), ((5, 3, 1), (5, 3, 1))],
    "rkd_angle": [((5, 3), (4, 3)), ((5, 3, 1), (5, 3, 1))],
}


def pair(name, dtype=torch.float64):
    draws = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=draws).to(dtype) for shape in SHAPES[name]]


def test_every_function_is_listed():
    assert sorted(SIGNATURES) == sorted(functional.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    parameters = inspect.signature(getattr(functional, name)).parameters.values()
    assert {p.name: ... if p.default is p.empty else p.default for p in parameters} == SIGNATURES[name]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(name, dtype):
    student, teacher = pair(name, dtype)
    value = getattr(functional, name)(student, teacher)
    exact = getattr(functional, name)(student.double(), teacher.double())
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_no_gradient_flows_into_the_teacher(name):
    student, teacher = (x.requires_grad_() for x in pair(name))
    getattr(functional, name)(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize(("name", "shapes"), [(name, shapes) for name, cases in WRONG.items() for shapes in cases])
def test_wrong_shapes_are_told(name, shapes):
    with pytest.raises(ValueError) as error:
        getattr(functional, name)(*map(torch.zeros, shapes))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_wrong_shapes_of_peers_are_told():
    with pytest.raises(ValueError, match=r"\(5, 4\).*\(5, 3\)"):
        functional.dml([torch.zeros(5, 4), torch.zeros(5, 3)])
    with pytest.raises(ValueError, match="two or more"):
        functional.dml([torch.zeros(5, 4)])


def test_wrong_shapes_of_past_predictions_are_told():
    with pytest.raises(ValueError, match=r"\(5,\).*\(4, 3\)"):
        functional.ps_kd_target(torch.zeros(5, dtype=torch.long), torch.zeros(4, 3), 0.5)


def test_half_past_predictions_give_float32_targets():
    past = torch.rand(5, 3).softmax(1).bfloat16()
    assert functional.ps_kd_target(torch.zeros(5, dtype=torch.long), past, 0.5).dtype == torch.float32
