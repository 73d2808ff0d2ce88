from __future__ import annotations

import pytest
from optuna.trial import BaseTrial, FixedTrial

import students
from compress import Prune, Stage
from kd.loss import Loss
from kd.losses import DIST, KD
from search import any_of, at, compound, compressed, distilled, per_stage, uniform
from students import Blueprint

BASE = Blueprint("cifar_resnet8", num_classes=10)


def test_a_width_and_a_depth() -> None:
    found = uniform(BASE, width=(0.5, 1.0))(FixedTrial({"width": 0.75, "depth": 0.5}))
    assert (found.blueprint.width, found.blueprint.depth) == (0.75, 0.5)
    assert (found.objective, found.stages) == (None, ())


def test_a_width_and_a_depth_for_each_stage() -> None:
    counts = dict(zip(("width", "depth"), students.stages(BASE.name), strict=True))
    drawn = {f"{axis}_{n + 1}": 0.5 + n / 8 for axis, count in counts.items() for n in range(count)}
    found = per_stage(BASE)(FixedTrial(drawn)).blueprint
    assert (found.width, found.depth) == ((0.5, 0.625, 0.75, 0.875), (0.5, 0.625, 0.75))
    found.build("meta")
    plain = per_stage(Blueprint("regnetx_002", num_classes=10, image_size=64))  # one number for all of them
    assert plain(FixedTrial({"width": 0.5, "depth": 0.75})).blueprint.width == 0.5


def test_one_factor_on_both() -> None:
    found = compound(BASE)(FixedTrial({"factor": 0.6})).blueprint
    assert found.width == found.depth == 0.6


def test_a_family_and_a_resolution() -> None:
    families = {name: uniform(Blueprint(name, num_classes=10)) for name in ("cifar_resnet8", "mobilenetv2_050")}
    space = at(any_of(families), (24, 32))
    trial = {"width": 0.75, "depth": 0.5, "family": "mobilenetv2_050", "image_size": 24}
    found = space(FixedTrial(trial)).blueprint
    assert (found.name, found.width, found.image_size) == ("mobilenetv2_050", 0.75, 24)


def warm(trial: BaseTrial) -> Loss:
    return KD(temperature=trial.suggest_float("temperature", 1, 8))


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_a_loss_with_its_temperature_and_weight(share: float) -> None:
    space = distilled(uniform(BASE), {"kd": warm, "dist": lambda trial: DIST()})
    fixed = {"width": 1.0, "depth": 1.0, "weight": share}
    found = space(FixedTrial(fixed | {"loss": "kd", "temperature": 3.0}))
    assert found.objective is not None
    first, second = found.objective(), found.objective()
    assert first.losses["kd"].temperature == 3.0
    assert first.losses["kd"] is not second.losses["kd"]  # each is bound to one pair of nets
    assert first.weight("kd", 0) == share
    assert [first.weight(name, 0) for name in first.weights if name != "kd"] == ([] if share == 1 else [1 - share])
    other = space(FixedTrial(fixed | {"loss": "dist"}))
    assert other.objective is not None
    assert isinstance(other.objective().losses["dist"], DIST)


def test_stages_with_a_ratio() -> None:
    def stages(trial: BaseTrial) -> list[Stage]:
        return [Prune(target=trial.suggest_float("kept", 0.3, 0.9))]

    found = compressed(uniform(BASE), stages)(FixedTrial({"width": 1.0, "depth": 1.0, "kept": 0.4}))
    assert found.stages == (Prune(target=0.4),)
