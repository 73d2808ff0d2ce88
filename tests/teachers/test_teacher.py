from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from kd.batch import Facts, Needs, View
from kd.errors import InputError
from students import Blueprint
from teachers import Ensemble, Teacher
from teachers.ensemble import confidence


def net(seed: int = 0, **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("resnet18", num_classes=5, layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), **kwargs)


def view(channels: int = 3, size: int = 32) -> View:
    x = torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(7))
    return View(x, torch.zeros(4, dtype=torch.long), torch.arange(4), 0)


def facts(channels: int = 3, size: int = 32) -> Facts:
    return Facts(5, tuple("abcde"), channels, (size, size), (0.5,) * channels, (0.5,) * channels, torch.zeros(4))


def test_is_a_frozen_copy_that_leaves_the_callers_model_as_it_was() -> None:
    model = net().train()
    teacher = Teacher(model)
    teacher.predict(view().x)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert any(isinstance(module, _BatchNorm) for module in teacher.model.modules())


def test_answers_like_the_model_folded_or_not() -> None:
    model, x = net().eval(), view().x
    with torch.no_grad():
        expected = model(x)
    for fold in (True, False):
        torch.testing.assert_close(Teacher(model, fold=fold).predict(x), expected, rtol=1e-4, atol=1e-5)


def test_its_outputs_are_constants_in_a_students_graph() -> None:
    outputs = Teacher(net())(view(), Needs(embedding=True, stages=(-1,)))
    assert outputs.embedding is not None
    weight = torch.ones(5, requires_grad=True)
    loss = (outputs.logits * weight).square().sum() + outputs.embedding.sum() + outputs.stages[-1].sum()
    loss.backward()
    torch.testing.assert_close(weight.grad, 2 * outputs.logits.square().sum(0))
    assert not outputs.logits.requires_grad


def test_ports_tell_the_shapes_of_what_it_gives() -> None:
    teacher = Teacher(net())
    ports = teacher.ports(facts())
    outputs = teacher(view(), Needs(embedding=True, stages=(-1,)))
    assert outputs.embedding is not None
    assert (ports.classes, ports.embedding) == (outputs.logits.shape[1], outputs.embedding.shape[1])
    assert ports.stages == tuple(tuple(stage.shape[1:]) for stage in outputs.stages)


@pytest.mark.parametrize("size", [8, 80])
def test_works_at_its_own_resolution(size: int) -> None:
    model, x = net().eval(), view(size=size).x
    teacher = Teacher(model, image_size=32)
    with torch.no_grad():
        expected = model(F.interpolate(x, (32, 32), mode="bilinear", antialias=True))
    torch.testing.assert_close(teacher.predict(x), expected, rtol=1e-4, atol=1e-5)
    assert teacher.ports(facts(size=size)) == Teacher(model).ports(facts(size=32))


def test_sees_grey_images_with_the_channel_repeated() -> None:
    model, grey = net().eval(), view(channels=1).x
    with torch.no_grad():
        expected = model(grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(Teacher(model, channels=3).predict(grey), expected, rtol=1e-4, atol=1e-5)


def test_refuses_images_of_other_channels() -> None:
    with pytest.raises(InputError, match=r"data.channels: 3: .*takes 1"):
        Teacher(net(in_chans=1), channels=1).ports(facts(channels=3))


def test_identity_is_that_of_weights_and_resolution() -> None:
    teacher = Teacher(net())
    first = teacher.identity()
    teacher.predict(view().x)
    assert first == teacher.identity() == Teacher(net()).identity()
    assert len({first, Teacher(net(seed=1)).identity(), Teacher(net(), image_size=64).identity()}) == 3


def test_an_ensemble_answers_with_the_mean_logits_and_all_embeddings() -> None:
    first, second = Teacher(net(0)), Teacher(net(1))
    ensemble = Ensemble([first, second])
    a, b = first(view(), Needs(embedding=True)), second(view(), Needs(embedding=True))
    both = ensemble(view(), Needs(embedding=True))
    for i in range(4):
        for k in range(5):
            mean = (a.logits[i, k].item() + b.logits[i, k].item()) / 2
            assert both.logits[i, k].item() == pytest.approx(mean, abs=1e-6)
    assert a.embedding is not None
    assert b.embedding is not None
    torch.testing.assert_close(both.embedding, torch.cat([a.embedding, b.embedding], 1))
    torch.testing.assert_close(ensemble.predict(view().x), both.logits)
    ports = ensemble.ports(facts())
    assert (ports.classes, ports.embedding, ports.stages) == (5, 32, ())
    assert ensemble.identity() != Ensemble([second, second]).identity()


def test_the_weights_of_confidence_against_a_loop() -> None:
    torch.manual_seed(0)
    logits, soft = torch.randn(3, 4, 5, dtype=torch.float64), torch.rand(4, 5, dtype=torch.float64).softmax(1)
    for target in (torch.tensor([0, 4, 2, 2]), soft):
        weights = confidence(logits, target)
        for n in range(4):
            losses = []
            for z in logits[:, n].tolist():
                norm = math.log(sum(math.exp(v) for v in z))
                truth = target[n].tolist() if target.dim() == 2 else [float(c == target[n]) for c in range(5)]
                losses.append(-sum(p * (v - norm) for p, v in zip(truth, z, strict=True)))
            total = sum(map(math.exp, losses))
            for k, loss in enumerate(losses):
                assert weights[k, n].item() == pytest.approx((1 - math.exp(loss) / total) / 2, rel=1e-12)
        torch.testing.assert_close(weights.sum(0), torch.ones(4, dtype=torch.float64))


def test_an_ensemble_may_trust_each_teacher_as_far_as_it_knows_the_label() -> None:
    members = [Teacher(net(seed)) for seed in (0, 1, 2)]
    answers = torch.stack([member(view(), Needs()).logits for member in members])
    weights = confidence(answers, view().y)
    expected = sum(weight[:, None] * logits for weight, logits in zip(weights, answers, strict=True))
    trusting = Ensemble(members, "confidence")
    torch.testing.assert_close(trusting(view(), Needs()).logits, expected)
    torch.testing.assert_close(trusting.predict(view().x), answers.mean(0))
    assert trusting.identity() != Ensemble(members).identity()
    alone = Ensemble(members[:1], "confidence")
    torch.testing.assert_close(alone(view(), Needs()).logits, answers[0])
    with pytest.raises(InputError, match=r"teacher\.weighting: median: must be one of: mean, confidence"):
        Ensemble(members, "median")  # type: ignore[arg-type]


def test_runs_channels_last_folded_and_without_a_graph() -> None:
    seen: list[Tensor] = []
    teacher = Teacher(net())
    teacher.predict(view().x)
    swift = teacher._network(view().x)
    assert not any(isinstance(module, _BatchNorm) for module in swift.modules())
    convs = [module for module in swift.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in convs)
    for conv in convs:
        conv.register_forward_hook(lambda module, inputs, output: seen.extend([*inputs, output]))
    teacher(view(), Needs(embedding=True, stages=(-1,)))
    assert len(seen) >= 2 * len(convs) > 10
    assert all(x.is_contiguous(memory_format=torch.channels_last) and x.grad_fn is None for x in seen)


def test_each_of_an_ensemble_works_folded_at_its_own_resolution_with_its_own_normalisation() -> None:
    plans = [
        Blueprint("cifar_resnet8", 5, image_size=16, normalize=((0.2,), (0.5,))),
        Blueprint("cifar_wrn_16_1", 5, image_size=32, normalize=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))),
    ]
    models = [plan.build().eval() for plan in plans]
    ensemble = Ensemble([Teacher(model, image_size=model.blueprint.image_size, channels=3) for model in models])
    x = view(channels=1, size=24).x
    expected = torch.zeros(4, 5)
    for model in models:
        side = model.blueprint.image_size
        resized = F.interpolate(x.repeat(1, 3, 1, 1), (side, side), mode="bilinear", antialias=True)
        with torch.no_grad():
            expected += model.net(model.normalize(resized)) / 2
    torch.testing.assert_close(ensemble.predict(x), expected, rtol=1e-4, atol=1e-5)
    for teacher, left in zip(ensemble.teachers, (0, 7), strict=True):  # a wide ResNet's shortcuts pass by 7 norms
        assert sum(isinstance(module, _BatchNorm) for module in teacher._network(x).modules()) == left


def test_an_ensemble_of_nobody_or_of_other_classes_is_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        Ensemble([])
    other = timm.create_model("resnet18", num_classes=3, layers=(1, 1, 1, 1), channels=(8, 8, 16, 16))
    with pytest.raises(InputError, match=r"\[3, 5\] classes"):
        Ensemble([Teacher(net()), Teacher(other)]).ports(facts())
