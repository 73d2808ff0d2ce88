"""A worker of two processes: both train each candidate, and one that fails in one of them fails alone.

Run as a script, this file is one of the two processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import torch
import torch.distributed as dist
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import BaseTrial, TrialState
from torch import Tensor

import kd.data
from kd.batch import Batch, Outputs
from kd.data import Augment, DataConfig
from kd.fit import Fit
from kd.loss import Objective, Term
from kd.losses import KD
from search import Candidate, Result, SearchConfig, run
from search.storage import FILE
from students import Blueprint
from teachers import Cached, Teacher

BASE = Blueprint("cifar_resnet8", num_classes=10, in_chans=1, image_size=8)


class FailsInOne(KD):
    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        if dist.get_rank() == 1:
            raise RuntimeError("out of memory")
        return super().forward(student, teacher, batch)


def space(trial: BaseTrial) -> Candidate:
    width = float(trial.suggest_categorical("width", [0.25, 0.5, 0.75]))
    loss = FailsInOne if width == 0.5 else KD
    return Candidate(replace(BASE, width=width), lambda: Objective({"kd": Term(loss())}))


def searched(folder: Path) -> Result:
    data = kd.data.load(DataConfig(train_size=128, augment=Augment(crop=1, views=2)))
    torch.manual_seed(0)
    teacher = Cached(Teacher(BASE.build()), folder / "answers", data)
    fit = Fit(epochs=3, batch_size=16, trackers=())
    config = SearchConfig(trials=2, sampler="grid", fit=fit, retries=1, rungs=(1,))
    return run(space, data, teacher, config, folder / "search", lambda: Objective({"kd": Term(KD())}))


def launched(command: list[str], environment: dict[str, str], said: Path, patience: float = 300.0) -> int | None:
    """The exit status; None where it had to be killed, with all that it had started."""
    with said.open("w") as out:
        child = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        try:
            return child.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return None


def test_a_failure_in_one_process_fails_the_trial_and_not_the_study(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(kd.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment |= {"ACCELERATE_USE_CPU": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # as experiments.cli has it
    status = launched([*torchrun, "--max_restarts", "4", __file__, str(tmp_path)], environment, tmp_path / "said")
    assert status == 0, (tmp_path / "said").read_text()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert sorted(trial["width"] for trial in first if trial["state"] in ("trained", "stopped")) == [0.25, 0.75]
    journal = JournalStorage(JournalFileBackend(str(tmp_path / "search" / FILE)))
    trials = optuna.load_study(study_name="search", storage=journal).trials
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert [trial.params["width"] for trial in failed] == [0.5, 0.5]  # once, and tried again once


if __name__ == "__main__":
    found = searched(Path(sys.argv[1]))
    (Path(sys.argv[1]) / f"{os.environ['RANK']}.json").write_text(json.dumps(found.trials))
