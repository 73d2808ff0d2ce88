"""Students that SimKD gave the classifier of their teacher go through the stages as others do."""

from __future__ import annotations

import pytest
import torch

import students
from compress import Export, LowRank, Prune
from kd.losses import SimKD
from kd.taps import ports

NET = {"num_classes": 10, "in_chans": 1, "image_size": 8}


def shipped(name, data):
    torch.manual_seed(0)
    student, teacher = students.create(name, **NET), students.create("cifar_resnet14", width=0.5, **NET)
    loss = SimKD()
    loss.bind(ports(student, 1, (8, 8)), ports(teacher, 1, (8, 8)), data.facts)
    model = loss.deployed(student)
    model(torch.rand(64, 1, 8, 8))
    return model.eval()


@pytest.mark.parametrize("name", ["cifar_resnet8", "mobilenetv3_small_050", "tv_resnet18"])
def test_it_is_pruned_factorised_and_exported(name, digits, context, tmp_path):
    model = students.adopt(shipped(name, digits))
    images = next(digits.evaluation("val", 16)).x
    for stage in (Prune(0.7), LowRank(0.7)):
        small, report = stage(model, context())
        assert report.details["kept_macs"] == pytest.approx(stage.target, abs=0.03)
        assert len(small.blueprint.edits) > len(model.blueprint.edits)
        students.save(small, tmp_path)
        model = students.load(tmp_path)
        with torch.no_grad():
            assert torch.equal(model(images), small(images))
    exported, _ = Export()(model, context())
    with torch.no_grad():
        torch.testing.assert_close(exported(images), model(images), rtol=1e-4, atol=1e-4)
