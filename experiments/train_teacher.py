"""Get the teacher: train it on the data, or load what `--teacher.source` names, and keep it as a model folder.

Example: python -m experiments.train_teacher --out runs/teacher --teacher.architecture cifar_resnet20
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import students
import teachers
from experiments import cli
from experiments.config import TeacherConfig, blueprint, seeded
from experiments.steps import Outcome, Run, in_main_process
from kd.batch import Needs
from kd.data import Data, DataConfig
from kd.data import load as load_data
from kd.errors import InputError
from kd.fit import fit
from kd.regimes import Supervised


@dataclass(frozen=True)
class TrainTeacherConfig:
    """Get a teacher.

    Attributes:
        out: the run folder.
        seed: of weights, order and dropout (the split has its own: data.seed).
        data: what it learns from.
        teacher: what it is.
    """

    out: str = "runs/teacher"
    seed: int = 0
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()


def check(config: TeacherConfig, data: Data) -> None:
    """Raise InputError for a teacher that cannot be had, before anything is written."""
    if config.source is None:
        if config.image_size is not None:
            raise InputError(
                "teacher.image_size", config.image_size, "is for a teacher.source: one is trained on the data"
            )
        _plan(config, data).build("meta")
    else:
        if config.image_size is not None and any(Path(source).is_dir() for source in config.sources):
            raise InputError(
                "teacher.image_size", config.image_size, "is not for a folder: its blueprint tells the size"
            )
        _load(config, data)


def obtain(config: TeacherConfig, data: Data, folder: Path, seed: int) -> Outcome:
    """The step: leaves a model folder, or one for each of an ensemble."""
    if config.source is not None:
        loaded = _load(config, data)
        places = _places(config, folder)
        in_main_process(lambda: [students.save(each.model, place) for each, place in zip(loaded, places, strict=True)])
        return Outcome(
            "teacher",
            notes=("The teacher was loaded, not trained here: it may have seen the validation images.",),
            seconds=0.0,
        )
    schedule = seeded(config.fit, seed)
    model = _plan(config, data).build()
    history = fit(Supervised(model), data, schedule, folder, label="teacher")
    in_main_process(lambda: students.save(model, folder))
    return Outcome("teacher", seconds=history.seconds, curve=history.epochs)


def open_teacher(config: TeacherConfig, folder: Path) -> teachers.Teacher | teachers.Ensemble:
    """The frozen teacher, or the ensemble, that `obtain` left in `folder`."""
    models = [students.load(place) for place in _places(config, folder)]
    frozen = [
        teachers.Teacher(model, image_size=model.blueprint.image_size, channels=model.blueprint.in_chans)
        for model in models
    ]
    return teachers.Ensemble(frozen, config.weighting) if isinstance(config.source, tuple) else frozen[0]


def guide(config: TeacherConfig, data: Data, run: Run, seed: int, needs: Needs) -> teachers.AnyTeacher:
    """The step, and what students learn from: where draws are bounded, answers are stored and asked for once."""
    folder = run.step("teacher", lambda folder: obtain(config, data, folder, seed))
    return answering(open_teacher(config, folder), data, folder / "answers", needs)


def answering(
    teacher: teachers.Teacher | teachers.Ensemble, data: Data, folder: Path, needs: Needs
) -> teachers.AnyTeacher:
    """The teacher, or where draws are bounded what it answers, stored in `folder`."""
    if data.augment.views is None or needs.maps:  # maps are too large to store
        return teacher
    return teachers.Cached(teacher, folder, data, needs)


def _places(config: TeacherConfig, folder: Path) -> list[Path]:
    """The model folders of the step."""
    several = isinstance(config.source, tuple)
    return [folder / str(number) for number in range(len(config.sources))] if several else [folder]


def _plan(config: TeacherConfig, data: Data) -> students.Blueprint:
    """The net that is trained here."""
    if config.architecture is None:
        raise InputError("teacher.architecture", None, "name the net to train, or a teacher.source to load")
    plan = blueprint(config.architecture, config.width, config.depth, data)
    return replace(plan, normalize=config.normalize) if config.normalize else plan


def _load(config: TeacherConfig, data: Data) -> list[teachers.Teacher]:
    """Of each source. Raises InputError for a list of none."""
    loaded = teachers.load(
        config.sources,
        classes=data.facts.classes,
        channels=data.facts.channels,
        image_size=config.image_size,
        architecture=config.architecture,
        normalize=config.normalize,
    )
    assert isinstance(loaded, teachers.Ensemble)
    return list(loaded.teachers)


def main(config: TrainTeacherConfig, resolved: str) -> None:
    data = load_data(config.data)
    check(config.teacher, data)
    run = Run(Path(config.out), resolved, cli.command("train_teacher"))
    run.step("teacher", lambda folder: obtain(config.teacher, data, folder, config.seed))


if __name__ == "__main__":
    sys.exit(cli.run("train_teacher", TrainTeacherConfig, main))
