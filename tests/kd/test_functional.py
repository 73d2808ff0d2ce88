"""What all pure functions promise alike; their values are tested beside their losses and regimes."""

from __future__ import annotations

import inspect

import pytest
import torch

from kd import functional

LOGITS = {"student": (5, 4), "teacher": (5, 4)}
VIEWS = {"student_weak": (5, 4), "student_strong": (5, 4), "teacher_weak": (5, 4), "teacher_strong": (5, 4)}
EMBEDDINGS = {"student": (5, 3), "teacher": (5, 7)}
MAPS = {"student": (5, 3, 2, 2), "teacher": (5, 3, 2, 2)}
UNEQUAL = {"student": (5, 3, 4, 4), "teacher": (5, 6, 2, 2)}
LABELS = {"target": (5,)}

# name: tensor arguments with shapes that fit, and the other arguments with their defaults
CONTRACT = {
    "kd": (LOGITS, {"temperature": 4.0}),
    "dkd": (LOGITS | LABELS, {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}),
    "dist": (LOGITS, {"beta": 1.0, "gamma": 1.0, "temperature": 1.0}),
    "nkd": (LOGITS | LABELS, {"gamma": 1.5, "temperature": 1.0}),
    "ofa": (LOGITS | LABELS, {"eps": 1.0, "temperature": 1.0}),
    "mlkd": (VIEWS, {"temperatures": (2, 3, 4, 5, 6)}),
    "hint": (MAPS, {}),
    "attention_transfer": (UNEQUAL, {}),
    "nst": (UNEQUAL, {}),
    "factor_transfer": (MAPS, {}),
    "activation_boundary": (MAPS, {"margin": 1.0}),
    "ofd": (MAPS | {"margin": (3,)}, {}),
    "vid": ({"student_mean": (5, 3, 2, 2), "teacher": (5, 3, 2, 2), "log_scale": (3,)}, {}),
    "hcl": (MAPS, {}),
    "class_attention": (
        {"student_cam": (5, 3, 4, 4), "teacher_cam": (5, 3, 2, 2)},
        {"pool": 2, "normalize": False},
    ),
    "similarity_preserving": (UNEQUAL, {}),
    "pkt": (EMBEDDINGS, {"eps": 1e-7}),
    "correlation_congruence": ({"student": (5, 3), "teacher": (5, 3)}, {"gamma": 0.4, "order": 2}),
    "inter_channel_correlation": ({"student": (5, 3, 4, 4), "teacher": (5, 3, 2, 2)}, {}),
    "rkd_distance": (EMBEDDINGS, {}),
    "rkd_angle": (EMBEDDINGS, {}),
}
# these compare no student with a teacher
OTHERS = {
    "standardize": {"logits": ..., "eps": 1e-7},
    "fsp": {"student_pair": ..., "teacher_pair": ...},
    "ofd_margin": {"bn_weight": ..., "bn_bias": ...},
    "kdcl_ensemble": {"logits": ..., "target": ..., "method": "mean"},
    "tf_kd_teacher": {"target": ..., "classes": ..., "correct": 0.99, "temperature": 20.0},
    "dml": {"logits": ..., "temperature": 1.0},
    "ps_kd_target": {"target": ..., "past_probs": ..., "alpha": ...},
}
SIGNATURES = {name: dict.fromkeys(shapes, ...) | rest for name, (shapes, rest) in CONTRACT.items()} | OTHERS
# name: shapes of the arguments that do not fit
WRONG = [
    *((name, [(5, 4), (5, 3)]) for name in ("kd", "dist")),
    *((name, [(5, 4), (4, 4)]) for name in ("kd", "dist")),
    *((name, [(4,), (4,)]) for name in ("kd", "dist")),
    *((name, [(5, 4), (5, 3), (5,)]) for name in ("dkd", "nkd", "ofa")),
    *((name, [(5, 4), (5, 4), (4,)]) for name in ("dkd", "nkd", "ofa")),
    *((name, [(5, 4), (5, 4), (5, 3)]) for name in ("dkd", "nkd", "ofa")),
    ("mlkd", [(5, 4), (5, 4), (5, 4), (5, 3)]),
    ("hint", [(5, 3, 2, 2), (5, 3, 4, 4)]),
    ("hint", [(5, 3), (5, 3)]),
    *((name, [(5, 3), (4, 3)]) for name in ("rkd_distance", "rkd_angle")),
    *((name, [(5, 3, 1), (5, 3, 1)]) for name in ("rkd_distance", "rkd_angle")),
    ("standardize", [(5,)]),
    *((name, [(5, 3, 2, 2), (4, 3, 2, 2)]) for name in ("attention_transfer", "nst", "factor_transfer")),
    *((name, [(5, 3, 2, 2), (5, 4, 2, 2)]) for name in ("factor_transfer", "activation_boundary")),
    *((name, [(5, 3), (5, 3)]) for name in ("attention_transfer", "nst", "factor_transfer", "activation_boundary")),
    ("hcl", [(5, 3, 2, 2), (5, 4, 2, 2)]),
    ("class_attention", [(5, 3, 2, 2), (5, 4, 2, 2)]),
    ("similarity_preserving", [(5, 3), (4, 3)]),
    ("pkt", [(5, 3), (4, 3)]),
    ("correlation_congruence", [(5, 3), (5, 4)]),
    ("inter_channel_correlation", [(5, 3, 2, 2), (5, 4, 2, 2)]),
    ("ofd", [(5, 3, 2, 2), (5, 4, 2, 2), (3,)]),
    ("vid", [(5, 3, 2, 2), (5, 4, 2, 2), (3,)]),
]


def arguments(name, dtype=torch.float64):
    """By name; the labels are classes."""
    draws = torch.Generator().manual_seed(0)
    made = {}
    for argument, shape in CONTRACT[name][0].items():
        if argument == "target":
            made[argument] = torch.arange(shape[0]) % 4
        else:
            made[argument] = torch.randn(shape, dtype=torch.float64, generator=draws).to(dtype)
    return made


def test_every_function_is_listed():
    assert sorted(SIGNATURES) == sorted(functional.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    parameters = inspect.signature(getattr(functional, name)).parameters.values()
    assert {p.name: ... if p.default is p.empty else p.default for p in parameters} == SIGNATURES[name]


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision(name, dtype):
    given = arguments(name, dtype)
    value = getattr(functional, name)(**given)
    exact = getattr(functional, name)(**{k: v.double() if v.is_floating_point() else v for k, v in given.items()})
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.shape == ()
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("name", CONTRACT)
def test_no_gradient_flows_into_the_teacher(name):
    given = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in arguments(name).items()}
    getattr(functional, name)(**given).backward()
    for argument, value in given.items():
        if argument.startswith("teacher"):
            assert value.grad is None
        elif argument.startswith("student"):
            assert value.grad.any()


@pytest.mark.parametrize("name", [name for name, (shapes, _) in CONTRACT.items() if "target" in shapes])
def test_certain_probabilities_are_labels(name):
    given = arguments(name)
    soft = torch.nn.functional.one_hot(given["target"], 4).double()
    value = getattr(functional, name)(**given)
    assert getattr(functional, name)(**given | {"target": soft}).item() == pytest.approx(value.item(), rel=1e-9)


@pytest.mark.parametrize(("name", "shapes"), WRONG, ids=str)
def test_wrong_shapes_are_told(name, shapes):
    tensors = [torch.zeros(shape, dtype=torch.long if len(shape) == 1 else torch.float32) for shape in shapes]
    with pytest.raises(ValueError) as error:
        getattr(functional, name)(*tensors)
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
