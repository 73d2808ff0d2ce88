"""Three processes search in one folder, one of them is killed in mid-trial, and nothing else is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

import kd.data
from kd.data import Augment, DataConfig
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import KD
from search import Result, SearchConfig, run, uniform
from search.storage import FILE
from students import Blueprint
from teachers import Cached, Teacher

TRIALS = 5


def searched(folder: Path, storage: str | None) -> Result:
    base = Blueprint("cifar_resnet8", num_classes=10, in_chans=1, image_size=8)
    data = kd.data.load(DataConfig(train_size=64, augment=Augment(crop=1, views=2)))
    torch.manual_seed(0)
    teacher = Cached(Teacher(base.build()), folder / "answers", data)
    fit = Fit(epochs=20, batch_size=32, trackers=())
    config = SearchConfig(trials=TRIALS, startup=3, fit=fit, storage=storage)
    return run(uniform(base), data, teacher, config, folder / "search", lambda: Objective({"kd": Term(KD())}))


class Worker:
    def __init__(self, folder: Path, storage: str | None) -> None:
        self.said, self.found = (folder / f"{uuid}.txt" for uuid in (f"{id(self)}-said", f"{id(self)}-found"))
        environment = {**os.environ, "PYTHONPATH": str(Path(kd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(folder), str(self.found), *([storage] if storage else [])]
        self.process = subprocess.Popen(command, env=environment, stderr=self.said.open("wb"))

    def until(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not seen():
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.01)


def study(folder: Path, storage: str | None) -> optuna.Study:
    if storage:
        return optuna.load_study(study_name=None, storage=storage)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "search" / FILE))
    return optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))


@pytest.mark.parametrize("storage", [None, "sqlite:///{}/study.db"], ids=["journal", "data base"])
def test_of_three_workers_one_is_killed_and_nothing_is_lost(tmp_path: Path, storage: str | None) -> None:
    storage = storage and storage.format(tmp_path)
    victim = Worker(tmp_path, storage)
    checkpoints = tmp_path / "search/trials"
    victim.until(lambda: bool(list(checkpoints.glob("*/checkpoints/step-00000000[3-9].safetensors"))))
    victim.process.send_signal(signal.SIGSTOP)  # it lives, and keeps what it has, but comes to no end
    others = [Worker(tmp_path, storage), Worker(tmp_path, storage)]
    for worker in others:
        worker.until(lambda worker=worker: "\nsearch " in worker.said.read_text())
    (running,) = (t for t in study(tmp_path, storage).trials if "record" in t.user_attrs and t.number == 0)
    assert running.state == TrialState.RUNNING  # nobody took it from the living
    victim.process.kill()
    assert victim.process.wait() == -signal.SIGKILL
    assert [worker.process.wait(timeout=240) for worker in others] == [0, 0]

    first, second = (json.loads(worker.found.read_text()) for worker in others)
    assert first == second
    trained = [trial for trial in first if trial["state"] == "trained"]
    assert len(trained) == len({trial["key"] for trial in trained}) == TRIALS
    trials = study(tmp_path, storage).trials
    assert [trial.number for trial in trials if trial.state == TrialState.FAIL] == [0]
    (again,) = (trial for trial in trials if trial.user_attrs.get("repeats") == 0)
    assert (again.state, again.params) == (TrialState.COMPLETE, running.params)
    assert again.user_attrs["record"]["state"] == "trained"
    assert sum("resumes at epoch" in worker.said.read_text() for worker in others) == 1


if __name__ == "__main__":
    result = searched(Path(sys.argv[1]), sys.argv[3] if len(sys.argv) > 3 else None)
    Path(sys.argv[2]).write_text(json.dumps(result.trials))
