from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import students
from compress.lowrank import LowRank
from compress.recover import Recover
from kd.data import Data, DataConfig, load
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import KD, SimKD
from teachers import Ensemble, Teacher


@pytest.fixture(scope="module")
def few() -> Data:
    return load(DataConfig(train_size=300))


@pytest.fixture
def damaged(trained: nn.Module) -> students.Classifier:
    """The trained net less a good part of a layer."""
    model = copy.deepcopy(trained)
    weight = model.net.get_submodule("layer3.0.conv1").weight
    with torch.no_grad():
        weight.add_(
            torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=4 * float(weight.std())
        )
    return model


def objective() -> Objective:
    return Objective({"kd": Term(KD())})


@pytest.fixture
def settings(context, few, trained):
    def make(**changes):
        fit = Fit(epochs=50, batch_size=50, lr=0.02, trackers=())
        return context(**({"data": few, "teacher": Teacher(trained), "fit": fit, "objective": objective} | changes))

    return make


def top1(model: nn.Module, data: Data) -> float:
    return evaluate(model, data.evaluation("val")).top1


def kept(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Killed(BaseException):
    """Ends a run like a kill would: nothing catches it."""


def test_a_damaged_net_is_mended(damaged, settings, few):
    before = top1(damaged, few)
    mended, report = Recover(epochs=3)(damaged, settings())
    after = top1(mended, few)

    assert after > before + 10
    assert report.name == "recover"
    assert report.notes == ()
    assert report.details["top1_before"] == pytest.approx(before)
    assert report.details["top1_after"] == pytest.approx(after)
    assert [epoch["epoch"] for epoch in report.details["curve"]] == [0, 1, 2]
    assert after == pytest.approx(max(epoch["top1_val"] for epoch in report.details["curve"]))
    assert not mended.training


def test_it_is_the_teacher_that_mends(damaged, settings, few, monkeypatch):
    """Labels play no part in this objective, so that a net which learns has learnt from the teacher's answers."""
    wrong = copy.deepcopy(few)
    monkeypatch.setattr(wrong.train, "labels", torch.zeros_like(wrong.train.labels), raising=True)
    mended, _ = Recover(epochs=3)(damaged, settings(data=wrong))

    assert top1(mended, few) > top1(damaged, few) + 10


def test_without_a_teacher_the_labels_mend_and_it_is_told(damaged, settings, few):
    mended, report = Recover(epochs=3)(damaged, settings(teacher=None))

    assert top1(mended, few) > top1(damaged, few) + 10
    assert report.notes == ("There is no teacher: the model learnt from the labels alone.",)


def test_the_given_model_stays_as_it_was(damaged, settings):
    before, plan = kept(damaged), damaged.blueprint
    frozen = [parameter.requires_grad for parameter in damaged.parameters()]
    mended, _ = Recover(epochs=1)(damaged, settings())

    assert mended is not damaged
    assert not same(mended, damaged)
    assert damaged.blueprint is plan
    assert [parameter.requires_grad for parameter in damaged.parameters()] == frozen
    assert not any(module.training for module in damaged.modules())
    assert all(parameter.grad is None for parameter in damaged.parameters())
    assert all(torch.equal(value, before[name]) for name, value in damaged.state_dict().items())


def test_what_it_would_make_worse_it_hands_back_as_it_came(trained, settings, few):
    before, values = top1(trained, few), kept(trained)
    model, report = Recover(epochs=1, lr=5.0)(trained, settings())

    assert model is trained
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    (note,) = report.notes
    worse = report.details["curve"][0]["top1_val"]
    assert worse < before
    assert "undone" in note
    assert f"{worse:.2f}% of {before:.2f}%" in note
    assert report.details["top1_before"] == report.details["top1_after"] == pytest.approx(before)


def test_the_stage_says_how_long_and_how_fast(damaged, settings, monkeypatch):
    seen = []

    def watch(regime, data, config, *rest, **options):
        seen.append(config)
        raise Killed

    monkeypatch.setattr("compress.recover.fit", watch)
    fit = Fit(epochs=50, batch_size=50, lr=0.02, warmup_epochs=7, momentum=0.5, trackers=())
    for stage in (Recover(epochs=2), Recover(epochs=4, lr=0.3)):
        with pytest.raises(Killed):
            stage(damaged, settings(fit=fit))

    assert seen == [
        replace(fit, epochs=2, warmup_epochs=0),
        replace(fit, epochs=4, lr=0.3, warmup_epochs=0),
    ]


def test_factorised_nets_recover_and_reload(trained, settings, few, tmp_path):
    cut, _ = LowRank(0.3)(trained, settings())
    mended, _ = Recover(epochs=3)(cut, settings())
    students.save(mended, tmp_path / "mended")

    assert top1(mended, few) > top1(cut, few) + 10
    assert same(students.load(tmp_path / "mended"), mended)


def test_weights_that_are_zero_stay_zero_unless_told_otherwise(damaged, settings, few, tmp_path):
    weight = damaged.net.get_submodule("layer3.0.conv1").weight
    with torch.no_grad():
        weight.masked_fill_(weight.abs() < weight.abs().median(), 0)
    zero = weight == 0
    assert 0.4 < zero.float().mean() < 0.6
    mended, _ = Recover(epochs=3)(damaged, settings(folder=tmp_path / "kept"))
    loose, _ = Recover(epochs=3, keep_zeros=False)(damaged, settings(folder=tmp_path / "loose"))

    assert top1(mended, few) > top1(damaged, few) + 10
    assert torch.equal(mended.net.get_submodule("layer3.0.conv1").weight == 0, zero)
    assert not (loose.net.get_submodule("layer3.0.conv1").weight == 0).any()
    assert mended.state_dict().keys() == damaged.state_dict().keys()


def test_what_is_scored_is_what_comes_out(damaged, settings, few):
    """SimKD ships another net than the one that it trains."""
    plan = settings(objective=lambda: Objective({"simkd": Term(SimKD())}))
    made, report = Recover(epochs=15, lr=0.05)(damaged, plan)
    assert report.notes == ()
    assert top1(made, few) == pytest.approx(report.details["top1_after"])
    assert [type(edit) for edit in made.blueprint.edits] == [students.Reclassify, students.Replace]


@pytest.mark.parametrize("dies_at", [2, 9])
def test_a_killed_recovery_ends_bit_for_bit_like_one_that_was_not(dies_at, damaged, settings, tmp_path, monkeypatch):
    whole, expected = Recover(epochs=3)(damaged, settings(folder=tmp_path / "whole"))
    steps = []

    def die(regime, batch, step):
        steps.append(batch.clock.step)
        if len(steps) == dies_at:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("kd.regimes.Offline.after_step", die)
        with pytest.raises(Killed):
            Recover(epochs=3)(damaged, settings(folder=tmp_path / "broken"))
    left = []
    with monkeypatch.context() as patched:
        patched.setattr("kd.regimes.Offline.after_step", lambda regime, batch, step: left.append(batch.clock.step))
        again, report = Recover(epochs=3)(damaged, settings(folder=tmp_path / "broken"))

    assert left[0] == 6 * ((dies_at - 1) // 6)  # six steps an epoch, and a checkpoint after each epoch
    assert same(again, whole)
    drop = lambda epochs: [{k: v for k, v in e.items() if k != "seconds"} for e in epochs]  # noqa: E731
    assert drop(report.details["curve"]) == drop(expected.details["curve"])
    assert report.details["top1_after"] == expected.details["top1_after"]


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", 0), ("epochs", -1), ("lr", 0.0), ("lr", -0.1), ("lr", float("nan"))]
)
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(InputError, match="must be above 0") as refused:
        Recover(**{field: value})
    assert refused.value.field == f"recover.{field}"


def test_a_file_does_not_train(exported, settings):
    with pytest.raises(InputError, match="must come before export") as refused:
        Recover()(exported, settings())
    assert refused.value.field == "stages"


def other(**changes: int) -> students.Classifier:
    return students.create("cifar_resnet8", **({"num_classes": 10, "in_chans": 1, "image_size": 8} | changes))


@pytest.mark.parametrize(
    ("model", "teacher", "words"),
    [
        (other(num_classes=5), other(num_classes=5), "student: 5 classes: the data has 10"),
        (other(num_classes=12), None, "student: 12 classes: the data has 10"),
        (other(in_chans=3), None, r"data\.image_size: 1x8x8: .* cannot take it"),
        (other(), other(num_classes=5), r"teacher\.source: 5 classes: the student has 10"),
        (other(), other(in_chans=3), r"data\.image_size: 1x8x8: .* cannot take it"),
    ],
)
def test_model_teacher_and_data_that_do_not_go_together_are_refused(model, teacher, words, settings):
    with pytest.raises(InputError, match=words):
        Recover(epochs=1)(model, settings(teacher=teacher and Teacher(teacher)))


def test_an_ensemble_mends_too(damaged, settings, trained, few):
    before = top1(damaged, few)
    mended, _ = Recover(epochs=3)(damaged, settings(teacher=Ensemble([Teacher(trained), Teacher(trained)])))
    assert top1(mended, few) > before + 10
