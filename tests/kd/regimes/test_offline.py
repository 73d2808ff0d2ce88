from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from kd.errors import InputError
from kd.loss import Objective, Term
from kd.losses import KD, OFD, RKD, CrossEntropy, FitNet
from kd.regimes import Offline
from kd.testing import RegimeContract, TinyTeacher, tiny_facts, tiny_net


def objective():
    return Objective(
        {"ce": Term(CrossEntropy()), "kd": Term(KD(), 0.5), "rkd": Term(RKD(), 0.1), "hint": Term(FitNet())}
    )


class TestOffline(RegimeContract):
    def make(self):
        return Offline(tiny_net(), self.teacher, objective())

    def test_the_loss_is_the_weighted_sum_of_its_parts(self):
        regime = self.bound()
        loss, parts, _ = self.step(regime, self.batch(regime))
        expected = parts["ce"] + 0.5 * parts["kd"] + 0.1 * parts["rkd"] + parts["hint"]
        torch.testing.assert_close(loss.detach(), expected)

    def test_the_teacher_is_asked_about_each_view(self):
        regime = self.bound()
        batch = self.batch(regime)
        batch = batch._replace(views=(batch.views[0], batch.views[0]._replace(x=1 - batch.x)))
        with torch.no_grad():
            for view, outputs in zip(batch.views, regime.guide(batch), strict=True):
                torch.testing.assert_close(outputs.logits, self.teacher.model(view.x))

    def test_a_teacher_of_other_classes_is_refused(self):
        regime = Offline(tiny_net(), TinyTeacher(classes=5), objective())
        with pytest.raises(InputError, match=r"teacher\.source: 5 classes: the student has 3"):
            regime.bind(tiny_facts())

    def test_a_loss_for_hard_labels_only_is_refused_under_mixup(self):
        class Hard(KD):
            needs = replace(KD.needs, hard_labels=True)

        regime = Offline(tiny_net(), self.teacher, Objective({"hard": Term(Hard())}))
        with pytest.raises(InputError, match="hard labels"):
            regime.bind(tiny_facts(soft_labels=True))

    @pytest.mark.parametrize("side", ["student", "teacher"])
    def test_maps_that_cannot_be_had_before_their_activation_are_refused(self, side):
        class Rectified(nn.BatchNorm2d):
            def forward(self, x):
                return super().forward(x).relu()

        nets = {"student": tiny_net(), "teacher": self.teacher.model}
        nets[side][4], nets[side][5] = Rectified(nets[side][4].num_features), nn.Identity()
        regime = Offline(nets["student"], self.teacher, Objective({"ofd": Term(OFD())}))
        with pytest.raises(InputError, match="by a function"):
            regime.bind(tiny_facts())
