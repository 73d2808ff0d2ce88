from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import students
from compress import Artefact, Context, Export, LowRank, Prune, Recover, Repeat, Report, measure
from compress.repeat import toward
from kd.data import Data, DataConfig, load
from kd.errors import InputError
from kd.evaluate import evaluate
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import KD
from teachers import Teacher

SHAPE = (1, 8, 8)
SEEN: list[tuple[float, nn.Module, nn.Module | None]] = []
finely = partial(Prune, round_to=1)  # for nets as narrow as these
STAGES = (finely(0.4), Recover(1))


@dataclass(frozen=True)
class Spy:
    """Notes its target, what came in and the reference; hands on the model."""

    target: float = 0.25

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        SEEN.append((self.target, model, context.reference))
        return model, Report("spy", (f"seen at {self.target}",), {"drawn": torch.rand(()).item()})


@dataclass(frozen=True)
class Zeros:
    """A stage whose setting grows towards its target."""

    sparsity: float = 0.75

    def toward(self, share: float) -> Zeros:
        return Zeros(1 - (1 - self.sparsity) ** share)

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        return model, Report("zeros")


@pytest.fixture(autouse=True)
def fresh():
    SEEN.clear()


@pytest.fixture(scope="module")
def few() -> Data:
    return load(DataConfig(train_size=300))


def objective() -> Objective:
    return Objective({"kd": Term(KD())})


@pytest.fixture
def settings(context, few, trained, tmp_path):
    def make(folder="run", **changes):
        fit = Fit(batch_size=50, lr=0.02, trackers=())
        given = {
            "data": few,
            "fit": fit,
            "folder": tmp_path / folder,
            "objective": lambda: Objective({"kd": Term(KD())}),
        }
        return context(**(given | changes))

    return make


class Killed(BaseException):
    """Ends a run like a kill would: nothing catches it."""


def top1(model: nn.Module, data: Data) -> float:
    return evaluate(model, data.evaluation("val")).top1


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def timeless(details: Any) -> Any:
    """Without the seconds that epochs took."""
    if isinstance(details, dict):
        return {name: timeless(value) for name, value in details.items() if name != "seconds"}
    return [timeless(value) for value in details] if isinstance(details, list) else details


def test_every_round_takes_the_same_share_relative_to_the_unpruned_model(trained, settings, few):
    made, report = Repeat(2, STAGES)(trained, settings())
    first, last = report.details["rounds"]
    macs = [measure(model, SHAPE).macs for model in (made, trained)]

    assert last["kept"]["macs"] == pytest.approx(0.4, abs=0.03)
    assert last["kept"]["macs"] == macs[0] / macs[1]
    assert first["kept"]["macs"] == pytest.approx(0.4**0.5, abs=0.03)
    assert last["top1"] == pytest.approx(top1(made, few))
    assert [stage["name"] for stage in first["stages"]] == ["prune", "recover"]
    assert [epoch["epoch"] for epoch in report.details["curve"]] == [0, 1]
    assert report.name == "repeat"
    assert len(report.notes) == 2
    for number, (note, told) in enumerate(zip(report.notes, (first, last), strict=True), 1):
        assert note.startswith(f"Round {number} of 2: {told['kept']['macs']:.0%} of the MACs")
        assert f"{told['top1']:.2f}%" in note


def test_targets_move_geometrically_to_the_last_which_is_exact(trained, settings):
    _, report = Repeat(3, (Spy(0.125),))(trained, settings())

    assert [target for target, *_ in SEEN] == pytest.approx([0.5, 0.25, 0.125])
    assert SEEN[-1][0] == 0.125
    assert all(reference is trained for *_, reference in SEEN)
    assert report.notes[3:] == ("seen at 0.125",)
    assert report.details["rounds"][0]["stages"][0]["notes"] == (f"seen at {SEEN[0][0]}",)


def test_what_came_before_it_is_the_reference_where_it_is_known(trained, settings):
    small, _ = finely(0.7)(trained, settings())
    made, report = Repeat(2, (finely(0.5),))(small, settings(reference=trained))

    assert measure(made, SHAPE).macs / measure(trained, SHAPE).macs == pytest.approx(0.5, abs=0.03)
    assert report.details["rounds"][0]["kept"]["macs"] == pytest.approx(0.7, abs=0.03)


def test_the_way_to_a_target_is_the_stages_own_where_it_has_one():
    assert toward(Zeros(0.75), 0.5) == Zeros(0.5)
    assert toward(Prune(0.25, by="params"), 0.5) == Prune(0.5, by="params")
    for stage in (LowRank(0.9), Recover(2), Export()):  # a share of what comes in, or of nothing
        assert toward(stage, 0.5) is stage


def test_without_a_teacher_the_unpruned_model_teaches(trained, settings, few, monkeypatch):
    """Labels play no part in this objective, so that a net which learns has learnt from another's answers."""
    wrong = copy.deepcopy(few)
    monkeypatch.setattr(wrong.train, "labels", torch.zeros_like(wrong.train.labels))
    bare, _ = Repeat(2, (finely(0.4),))(trained, settings("bare"))
    made, _ = Repeat(2, (finely(0.4), Recover(2)))(trained, settings(data=wrong))

    assert top1(made, few) > top1(bare, few) + 10


@pytest.mark.parametrize("source", ["teacher", "reference"])
def test_the_stage_says_who_teaches(source, trained, settings, few):
    torch.manual_seed(0)
    ignorant = Teacher(students.create("cifar_resnet8", num_classes=10, in_chans=1, image_size=8))
    _, report = Repeat(1, (finely(0.4), Recover(2, source=source)))(trained, settings(teacher=ignorant))
    recovered = report.details["rounds"][0]["stages"][1]["details"]
    learnt = recovered["curve"] if "curve" in recovered else report.details["curve"]

    better = max(epoch["top1_val"] for epoch in learnt) > recovered["top1_before"] + 10
    assert better == (source == "reference")


@pytest.mark.parametrize("dies_at", [2, 9])
def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(dies_at, trained, settings, monkeypatch):
    """In the recovery of the first round or of the second: each is an epoch of six steps."""
    stage = Repeat(2, (Spy(), finely(0.4), Recover(1)))
    whole, expected = stage(trained, settings("whole"))
    steps = []

    def die(regime, batch, step):
        steps.append(batch.clock.step)
        if len(steps) == dies_at:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("kd.regimes.Offline.after_step", die)
        with pytest.raises(Killed):
            stage(trained, settings("broken"))
    SEEN.clear()
    torch.manual_seed(dies_at)  # the next life has random numbers of its own
    again, report = stage(trained, settings("broken"))

    assert [target for target, *_ in SEEN] == ([0.25] if dies_at < 6 else []), "what was done is not done again"
    assert same(again, whole)
    assert again.blueprint == whole.blueprint
    assert timeless(report.details) == timeless(expected.details)
    assert report.notes == expected.notes


def test_a_recovery_goes_on_inside(trained, settings, monkeypatch):
    stage, steps = Repeat(1, (finely(0.4), Recover(2))), []

    def die(regime, batch, step):
        steps.append(batch.clock.step)
        if len(steps) == 8:
            raise Killed

    monkeypatch.setattr("kd.regimes.Offline.after_step", die)
    with pytest.raises(Killed):
        stage(trained, settings())
    stage(trained, settings())
    assert steps == [*range(8), *range(6, 12)]


def test_what_was_kept_of_other_settings_is_thrown_away(trained, settings):
    expected, _ = Repeat(1, (finely(0.3), Recover(1)))(trained, settings("fresh"))
    Repeat(1, STAGES)(trained, settings())
    made, _ = Repeat(1, (finely(0.3), Recover(1)))(trained, settings())
    assert same(made, expected)


def test_what_was_kept_of_other_models_seeds_and_fits_is_thrown_away(trained, settings):
    other = copy.deepcopy(trained)
    other.net.get_classifier().weight.mul_(2)
    given = [(trained, {}), (other, {}), (other, {"seed": 1}), (other, {"seed": 1, "fit": Fit(lr=0.05)})]
    for model, changes in given:
        for _ in range(2):
            made, _ = Repeat(1, (Spy(),))(model, settings(**changes))
            assert same(made, model)
    assert [model for _, model, _ in SEEN] == [model for model, _ in given]


def test_a_folder_that_is_gone_is_made_anew(trained, settings, tmp_path):
    stage = Repeat(2, (Spy(), finely(0.4)))
    whole, _ = stage(trained, settings())
    shutil.rmtree(tmp_path / "run" / "round-1" / "02-prune")
    again, _ = stage(trained, settings())
    assert same(again, whole)
    assert len(SEEN) == 2


def test_a_file_may_come_out_of_the_only_round(trained, settings):
    made, report = Repeat(1, (finely(0.4), Export()))(trained, settings())
    assert made.path.parent.name == "02-export"
    assert report.details["rounds"][0]["kept"]["macs"] == pytest.approx(0.4, abs=0.03)
    again, _ = Repeat(1, (finely(0.4), Export()))(trained, settings())
    assert again.path == made.path


def test_the_given_model_stays_as_it_was(trained, settings):
    before = copy.deepcopy(trained)
    Repeat(1, STAGES)(trained, settings())
    assert same(trained, before)
    assert not any(parameter.requires_grad for parameter in trained.parameters())


@pytest.mark.parametrize(
    ("rounds", "stages", "words"),
    [
        (0, STAGES, r"^repeat\.rounds: 0: must be 1 or more$"),
        (-1, STAGES, r"^repeat\.rounds: -1: must be 1 or more$"),
        (2, (), r"^repeat\.stages: \(\): name at least one, such as compress.Prune$"),
        (2, (Recover(), LowRank()), r"^repeat\.stages: recover, lowrank: one needs a target to come nearer to"),
    ],
)
def test_settings_that_make_no_sense_are_refused(rounds, stages, words):
    with pytest.raises(InputError, match=words):
        Repeat(rounds, stages)
