"""Defects that public ports are known for: planted in our own losses and regimes, each fails a test of theirs.

What only several processes show is planted in test_two_processes.py.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from kd.batch import Needs
from kd.losses import CRD, CTKD, VID, FitNet
from kd.regimes import DML, PSKD
from kd.tensors import pair

HERE = Path(__file__).parent


def failures(path):
    """Names of the tests of a file's contract classes that fail."""
    spec = importlib.util.spec_from_file_location(f"planted_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    failed = set()
    for contract in (value for name, value in vars(module).items() if name.startswith("Test")):
        for name in dir(contract):
            if not name.startswith("test_") or getattr(getattr(contract, name), "pytestmark", None):
                continue
            case = contract()
            case.setup_method() if hasattr(case, "setup_method") else None
            try:
                getattr(case, name)()
            except pytest.skip.Exception:
                continue
            except (Exception, pytest.fail.Exception):  # an error fails a test as an assertion does
                failed.add(name.removeprefix("test_"))
    return failed


def added_relation(patch):
    from kd.losses.response.dist import dist

    def broken(student, teacher, beta, gamma, temperature):
        added = 2 * gamma * temperature**2 - dist(student, teacher, 0.0, gamma, temperature)
        return dist(student, teacher, beta, 0.0, temperature) + added

    patch.setattr("kd.losses.response.dist.dist", broken)


def summed(patch):
    from kd.losses.response.dkd import dkd

    patch.setattr("kd.losses.response.dkd.dkd", lambda student, *rest: len(student) * dkd(student, *rest))


def untempered(patch):
    from kd.losses.response.kd import kd

    patch.setattr("kd.losses.response.kd.kd", lambda s, t, temperature=4.0: kd(s, t, temperature) / temperature**2)


def hidden(kind, names):
    """Parts of a loss go where nobody sees them: neither optimiser, device, DDP nor checkpoint."""

    def plant(patch):
        bind = kind.bind

        def broken(self, *arguments):
            bind(self, *arguments)
            for name in names:
                part = self._parameters.pop(name, None) or self._modules.pop(name)
                object.__setattr__(self, name, part)

        patch.setattr(kind, "bind", broken)

    return plant


def lost_bank(patch):
    bind = CRD.bind

    def broken(self, *arguments):
        bind(self, *arguments)
        self._non_persistent_buffers_set.update({"student_bank", "teacher_bank"})

    patch.setattr(CRD, "bind", broken)


def lost_predictions(patch):
    bind = PSKD.bind

    def broken(self, *arguments):
        bind(self, *arguments)
        self._non_persistent_buffers_set.update(name for name, value in self.named_buffers(recurse=False))

    patch.setattr(PSKD, "bind", broken)


def mean_squares(patch):
    def broken(logits, temperature=1.0):
        return torch.stack([F.mse_loss(*pair(own, other)) for own, other in zip(logits, logits[::-1], strict=True)])

    patch.setattr(f"{DML.__module__}.dml", broken)


def smoothed_labels(patch):
    def broken(target, classes, correct=0.99, temperature=20.0):
        labels = F.one_hot(target, classes) if target.dim() == 1 else target
        return 0.9 * labels + 0.1 / classes

    patch.setattr("kd.regimes.self_distillation.tf_kd.tf_kd_teacher", broken)


def takes_soft_labels(patch):
    patch.setattr(CRD, "needs", Needs(embedding=True))


DEFECTS = {
    "DIST adds the relation of classes": ("losses/response/test_dist.py", added_relation, "value_is_the_references"),
    "DKD is summed over the batch": ("losses/response/test_dkd.py", summed, "value_is_the_references"),
    "KD forgets T²": ("losses/response/test_kd.py", untempered, "value_is_the_references"),
    "VID's variances do not train": (
        "losses/feature/test_vid.py",
        hidden(VID, ["log_scales"]),
        "all_that_trains_is_registered_and_none_is_idle",
    ),
    "FitNet's regressor does not train": (
        "losses/feature/test_fitnet.py",
        hidden(FitNet, ["regressor"]),
        "all_that_trains_is_registered_and_none_is_idle",
    ),
    "CTKD's temperature is not kept": (
        "losses/response/test_ctkd.py",
        hidden(CTKD, ["theta"]),
        "all_that_trains_is_registered_and_none_is_idle",
    ),
    "CRD's bank is lost on resume": ("losses/relation/test_crd.py", lost_bank, "state_dict_restores_the_value"),
    "PS-KD's predictions are lost on resume": (
        "regimes/self_distillation/test_ps_kd.py",
        lost_predictions,
        "state_dict_restores_everything",
    ),
    "DML is a mean square of logits": (
        "regimes/online/test_dml.py",
        mean_squares,
        "each_peer_descends_cross_entropy_and_its_mutual_part",
    ),
    "Tf-KD is label smoothing": (
        "regimes/self_distillation/test_tf_kd.py",
        smoothed_labels,
        "the_loss_weighs_labels_and_teacher",
    ),
    "CRD takes soft labels": (
        "losses/relation/test_crd.py",
        takes_soft_labels,
        "soft_labels_work_unless_the_demands_refuse_them",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(monkeypatch, defect):
    file, plant, caught = DEFECTS[defect]
    assert failures(HERE / file) == set(), "without the defect"
    plant(monkeypatch)
    assert caught in failures(HERE / file)
