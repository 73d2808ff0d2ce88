from __future__ import annotations

import pytest
import torch
from torch import nn

import students
from kd.batch import Facts
from kd.errors import InputError
from kd.losses import SimKD
from kd.losses.feature.sim_kd import Reclassified
from kd.taps import ports
from students import Classifier, Replace


def shipped(name: str = "cifar_resnet8", size: int = 8) -> Reclassified:
    """What SimKD ships of a student in training."""
    torch.manual_seed(0)
    student = students.create(name, num_classes=5, image_size=size, normalize=((0.4,), (0.3,)))
    return reclassified(student)


def reclassified(student: Classifier) -> Reclassified:
    teacher, size = (
        students.create("cifar_resnet14", num_classes=5, image_size=8, width=0.5),
        student.blueprint.image_size,
    )
    sides = ports(student, 3, (size, size)), ports(teacher, 3, (8, 8))
    loss = SimKD()
    loss.bind(*sides, Facts(5, tuple("abcde"), 3, (size, size), (0.5,) * 3, (0.2,) * 3, torch.arange(5)))
    model = loss.deployed(student)
    assert isinstance(model, Reclassified)
    model(torch.rand(8, 3, size, size))
    return model


NETS = [  # the last one shows in the middle of a block what counts as its last map
    ("cifar_resnet8", 8, {"linear"}),
    ("cifar_mobilenetv2_x0_5", 8, {"conv2", "classifier"}),
    ("mobilenetv3_small_050", 32, {"conv_head", "classifier"}),
    ("vit_tiny_patch16_224", 16, {"norm", "head"}),
    ("tv_resnet18", 32, {"layer4", "fc"}),
    ("tv_squeezenet1_1", 32, {"features.9", "features.10", "features.11", "features.12", "classifier"}),
]


@pytest.mark.parametrize(("name", "size", "idle"), NETS)
def test_the_student_of_simkd_becomes_a_classifier_of_the_same_answers(name: str, size: int, idle: set[str]) -> None:
    model, x = shipped(name, size).eval(), torch.rand(3, 3, size, size)
    made = students.adopt(model)
    assert isinstance(made, Classifier)
    assert torch.equal(made(x), model(x))
    assert {edit.module for edit in made.blueprint.edits if isinstance(edit, Replace)} == {
        f"net.{path}" for path in idle
    }
    made(x).sum().backward()
    assert all(parameter.grad is not None for module in made.net.children() for parameter in module.parameters())
    assert ports(made, 3, (size, size)).embedding == model.classifier.in_features


def test_what_is_idle_stays_where_the_pass_does_not_come_through_without_it() -> None:
    model, x = shipped("tv_mnasnet0_5", 32).eval(), torch.rand(3, 3, 32, 32)
    made = students.adopt(model)
    layers = made.net.net.layers
    assert not [*layers[13].parameters()]
    assert [*layers[12][0].layers[3].parameters()]  # a convolution before an activation that would write over the map
    assert torch.equal(made(x), model(x))
    made(x).sum().backward()


def test_the_shipped_model_stays_as_it_was_and_its_mode_is_kept() -> None:
    model = shipped()
    assert isinstance(model.net, Classifier)
    before, plan = {name: value.clone() for name, value in model.state_dict().items()}, model.net.blueprint
    assert students.adopt(model).training
    assert not students.adopt(model.eval()).training
    assert not any(module.training for module in students.adopt(model).modules())
    assert model.net.blueprint is plan
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_student_of_simkd_can_be_a_student_of_simkd_again() -> None:
    once = students.adopt(shipped())
    twice, x = reclassified(once).eval(), torch.rand(3, 3, 8, 8)
    made = students.adopt(twice)
    assert torch.equal(made(x), twice(x))
    assert not torch.equal(made(x), once.eval()(x))
    assert [edit.module for edit in made.blueprint.edits if isinstance(edit, Replace)] == [
        "net.linear",
        "net.classifier",
    ]


def test_a_classifier_is_itself() -> None:
    model = students.create("cifar_resnet8", num_classes=5)
    assert students.adopt(model) is model


@pytest.mark.parametrize("inside", [False, True])
def test_a_module_without_blueprint_is_refused(inside: bool) -> None:
    model = shipped()
    assert isinstance(model.net, Classifier)
    bare: nn.Module = model.net.net
    if inside:
        model.net = bare
    with pytest.raises(InputError, match=r"only a students\.Classifier"):
        students.adopt(model if inside else bare)
