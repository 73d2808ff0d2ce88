"""Every method trains a real student from a real teacher, and what it ships is a model that saves and loads."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import students
from kd.data import Augment, DataConfig, load
from kd.errors import InputError
from kd.fit import Fit
from kd.methods import METHODS, Setting
from kd.phases import train
from teachers import Teacher

PAIRS = [("cifar_resnet8", "cifar_resnet14"), ("cifar_mobilenetv2_x0_5", "cifar_wrn_16_1")]
REFUSED = {("FSP", PAIRS[1]): "channels there"}  # it compares channels one by one
NET = {"num_classes": 10, "in_chans": 1, "image_size": 8}
FIT = Fit(epochs=2, batch_size=16, lr=0.001, trackers=())


@pytest.fixture(scope="module")
def data():
    return load(DataConfig(train_size=48, augment=Augment(crop=1)))


def setting(nets, *others):
    student, teacher = nets
    torch.manual_seed(0)
    make = partial(partial, students.create, width=0.5, **NET)
    guide = Teacher(students.create(teacher, width=0.5, **NET), image_size=8, channels=1)
    return Setting(make(student), guide, Teacher, tuple(map(make, others)))


def cases():
    return [(name, pair) for pair in PAIRS for name in METHODS]


@pytest.mark.parametrize(("name", "nets"), [case for case in cases() if case not in REFUSED])
def test_a_method_trains_and_ships(data, tmp_path, name, nets):
    phases = METHODS[name].phases(setting(nets, "cifar_resnet14"), FIT.epochs)
    trained = train(phases, data, FIT, tmp_path / "fit")
    assert sum(len(history.epochs) for _, history in trained) >= FIT.epochs
    regime, history = trained[-1]
    shipped = regime.deploy(history.best_name).eval()
    students.save(shipped, tmp_path / "shipped")
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(students.load(tmp_path / "shipped").eval()(x), shipped(x))


@pytest.mark.parametrize(("name", "nets"), REFUSED)
def test_what_cannot_work_is_refused_before_it_trains(data, name, nets):
    first = next(METHODS[name].phases(setting(nets), FIT.epochs))
    with pytest.raises(InputError, match=REFUSED[name, nets]):
        first.regime.bind(data.facts)


def test_peers_may_be_of_other_architectures(data):
    regime = next(METHODS["DML"].phases(setting(PAIRS[0], "cifar_mobilenetv2_x0_5", "cifar_wrn_16_1"), 2)).regime
    names = [peer.blueprint.name for peer in regime.candidates().values()]
    assert names == ["cifar_resnet8", "cifar_mobilenetv2_x0_5", "cifar_wrn_16_1"]


def test_the_last_assistant_teaches_the_student(data):
    phases = train(METHODS["TAKD"].phases(setting(PAIRS[0], "cifar_resnet14", "cifar_resnet8"), 2), data, FIT)
    assistants = [regime.student for regime, _ in phases]
    assert [net.blueprint.name for net in assistants] == ["cifar_resnet14", "cifar_resnet8", "cifar_resnet8"]
    x = torch.rand(3, 1, 8, 8)
    for net, (regime, _) in zip(assistants, phases[1:], strict=False):
        torch.testing.assert_close(regime.teacher.guide.predict(x), net.eval()(x))


def test_assistants_must_be_named():
    with pytest.raises(InputError, match=r"others: .*TAKD needs one or more"):
        next(METHODS["TAKD"].phases(setting(PAIRS[0]), 2))


def test_an_initial_phase_needs_an_epoch_of_its_own():
    with pytest.raises(InputError, match=r"fit\.epochs: 1: AB trains in two phases"):
        next(METHODS["AB"].phases(setting(PAIRS[0]), 1))
    assert [phase.epochs for phase in METHODS["AB"].phases(setting(PAIRS[0]), 240)] == [30, 210]


def test_ft_learns_from_the_paraphraser_that_was_trained(data):
    (first, _), (second, _) = train(METHODS["FT"].phases(setting(PAIRS[0]), 2), data, FIT)
    trained, used = first.objective.losses["Paraphrase"].paraphraser.encoder, second.objective.losses["FT"].encoder
    for value, other in zip(trained.parameters(), used.parameters(), strict=True):
        assert torch.equal(value, other)
