from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd.batch import Place, Ports
from kd.errors import InputError
from kd.loss import Objective, Term
from kd.losses.feature.sim_kd import SimKD, projector
from kd.regimes import Offline
from kd.testing import (
    LossContract,
    TinyTeacher,
    naive_mse,
    naive_net,
    naive_pooled,
    tiny_batch,
    tiny_facts,
    tiny_net,
)


class TestSimKD(LossContract):
    student = Ports(classes=4, embedding=7, stages=((2, 5, 5), (3, 4, 4)))
    teacher = Ports(classes=4, embedding=4, stages=((3, 5, 5), (4, 3, 2)))

    def make(self):
        return SimKD()

    def reference(self, loss, student, teacher, batch):
        ours, theirs = student.stages[-1].tolist(), teacher.extra["final"].tolist()
        size = min(len(ours[0][0]), len(theirs[0][0])), min(len(ours[0][0][0]), len(theirs[0][0][0]))
        return naive_mse(naive_net(loss.projector, naive_pooled(ours, size)), naive_pooled(theirs, size))


def test_the_projector():
    layers = projector(5, 4, 8)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
    shapes = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Conv2d)]
    assert shapes == [(4, 5, 1, 1), (4, 4, 3, 3), (8, 4, 1, 1)]
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize(("target", "factor", "middle"), [(8, 2, 4), (8, 4, 2), (1, 2, 1)])
def test_the_projector_is_narrower_by_the_factor_in_the_middle(target, factor, middle):
    loss, classifier = SimKD(factor), (torch.randn(3, target), torch.randn(3))
    loss.bind(Ports(3, 5, ((5, 2, 2),)), Ports(3, target, (), (), classifier, (target, 3, 3)), tiny_facts())
    assert loss.projector[0].out_channels == middle
    assert loss.projector(torch.randn(2, 5, 2, 2)).shape == (2, target, 2, 2)


@pytest.fixture
def regime():
    torch.manual_seed(0)
    regime = Offline(tiny_net(), TinyTeacher(), Objective({"sim": Term(SimKD())}))
    regime.bind(tiny_facts())
    return regime


def test_the_student_is_deployed_with_the_classifier_of_the_teacher(regime):
    shipped = regime.deploy().eval()
    batch, teacher = tiny_batch(tiny_facts(), 4), regime.teacher.guide.model
    last = regime.student[:6](batch.x)
    made = regime.objective.losses["sim"].projector(last).mean((2, 3))
    torch.testing.assert_close(shipped(batch.x), F.linear(made, teacher[-1].weight, teacher[-1].bias))
    assert not torch.allclose(shipped(batch.x), regime.student(batch.x))


def test_what_is_deployed_classifies_a_perfect_map_as_the_teacher_does(regime):
    loss, teacher, x = regime.objective.losses["sim"], regime.teacher.guide.model, tiny_batch(tiny_facts(), 4).x
    loss.projector = nn.Identity()
    torch.testing.assert_close(loss.deployed(teacher).eval()(x), teacher(x))


@pytest.mark.parametrize(("ours", "theirs"), [((8, 8), (4, 4)), ((4, 4), (8, 8)), ((8, 3), (4, 5))])
def test_what_is_deployed_sees_maps_of_the_size_that_the_projector_learned(ours, theirs):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage, self.head = nn.AdaptiveAvgPool2d(ours), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.stage(x).mean((2, 3)))

    classifier = torch.randn(3, 4), torch.randn(3)
    loss, net, x = SimKD(), Net().eval(), torch.rand(2, 3, 8, 8)
    loss.bind(
        Ports(3, 3, ((3, *ours),), last=Place("stage", 0, ours, False)),
        Ports(3, 4, (), (), classifier, (4, *theirs)),
        tiny_facts(),
    )
    size = min(ours[0], theirs[0]), min(ours[1], theirs[1])
    shipped = loss.deployed(net).eval()
    made = loss.projector(F.adaptive_avg_pool2d(net.stage(x), size)).mean((2, 3))
    torch.testing.assert_close(shipped(x), made @ classifier[0].T + classifier[1])


def test_deploying_leaves_the_student_as_it_is_and_shares_its_weights(regime):
    names, shipped = [*regime.state_dict()], regime.deploy()
    assert [*regime.state_dict()] == names
    owned = {value.data_ptr() for value in regime.state_dict().values()}
    assert {p.data_ptr() for p in shipped.parameters()} <= owned


def test_the_classifier_of_the_teacher_is_kept_and_does_not_train(regime):
    loss, teacher = regime.objective.losses["sim"], regime.teacher.guide.model
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"projector"}
    assert {"weight", "bias"} <= set(loss.state_dict())
    torch.testing.assert_close(loss.weight, teacher[-1].weight.detach())
    with torch.no_grad():
        teacher[-1].weight.zero_()
    assert loss.weight.any()


def test_a_teacher_that_classifies_otherwise_is_refused():
    student = Ports(3, 4, ((4, 2, 2),))
    with pytest.raises(InputError, match=r"SimKD\.teacher: classifies by no linear layer"):
        SimKD().bind(student, Ports(3, 4, ((4, 2, 2),), final=(4, 2, 2)), tiny_facts())
    tokens = Ports(3, 4, ((4, 2, 2),), classifier=(torch.zeros(3, 4), torch.zeros(3)))
    with pytest.raises(InputError, match=r"SimKD\.teacher: classifies by no average of a map"):
        SimKD().bind(student, tokens, tiny_facts())


def test_a_factor_that_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"SimKD\.factor"):
        SimKD(factor=0)
