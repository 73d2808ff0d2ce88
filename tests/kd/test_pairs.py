"""Every method on every pair of nets: it trains, or is refused before the first step for a reason that is told."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache, partial

import pytest
import timm
import torch
from torch.nn.functional import one_hot

import students
from kd.data import Augment, DataConfig, load
from kd.errors import InputError
from kd.methods import METHODS, Setting
from kd.regimes import Initial, Offline
from kd.tensors import each
from kd.testing import tiny_batch, tiny_facts
from teachers import Teacher

FACTS = replace(tiny_facts(10, size=40), image_size=(32, 32))
SAMPLES = 8

create = partial(students.create, num_classes=10, image_size=32)
vit = partial(create, "vit_tiny_patch16_224")
deit = partial(create, "deit_tiny_distilled_patch16_224", width=0.34, depth=0.25, image_size=48)
gap_vit = partial(create, "vit_base_patch16_gap_224", width=0.1, depth=0.3)
mobilenet = partial(create, "cifar_mobilenetv2_x0_5", width=0.5)
small = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 16,
    "depths": (1, 1, 1),
    "num_heads": (1, 2, 4),
}
swin = partial(timm.create_model, "swin_tiny_patch4_window7_224", num_classes=10, **small)

# student, teacher and the resolution at which the teacher works
PAIRS = {
    "resnet10t to mobilenet": (mobilenet, partial(create, "resnet10t", width=0.25), None),
    "vit to resnet8": (partial(create, "cifar_resnet8"), partial(vit, width=0.5, depth=0.34), None),
    "wrn to vit": (partial(vit, width=0.34, depth=0.34), partial(create, "cifar_wrn_16_1"), None),
    "swin to mobilenet": (mobilenet, swin, None),
    "vit to swin": (swin, gap_vit, None),
    "deit at 48 to vit": (partial(vit, width=0.34, depth=0.5), deit, 48),
    "resnet8 at 64 to convnext": (
        partial(create, "convnext_atto", width=0.5, depth=0.4),
        partial(create, "cifar_resnet8", image_size=64),
        64,
    ),
}

UNREAD = "classifies by no average of a map"
REFUSED = {
    "OFD": dict.fromkeys(
        ["vit to resnet8", "swin to mobilenet", "vit to swin", "deit at 48 to vit"],
        "from no BatchNorm to take margins from",
    ),
    "CATKD": {
        "vit to resnet8": f"teacher: {UNREAD}",  # but a class token
        "wrn to vit": f"student: {UNREAD}",
        "deit at 48 to vit": f"student: {UNREAD}",
        "resnet8 at 64 to convnext": f"student: {UNREAD}",  # but its norm
    },
    "SimKD": dict.fromkeys(["vit to resnet8", "deit at 48 to vit"], f"teacher: {UNREAD}"),
    "FSP": dict.fromkeys(PAIRS.keys() - {"deit at 48 to vit"}, r"student has \d+ channels there and the teacher \d+"),
    # a peer sees the images as they are
    "DML": {"deit at 48 to vit": r"data\.image_size: 3x32x32"},
    "KDCL": {"deit at 48 to vit": r"data\.image_size: 3x32x32"},
    "KDCL-min": {"deit at 48 to vit": r"data\.image_size: 3x32x32"},
}
HARD_LABELS_ONLY = {"CRD", "KDCL", "KDCL-min", "PSKD", "CSKD", "DLB"}


@cache
def nets(pair):
    torch.manual_seed(0)
    make_student, make_teacher, size = PAIRS[pair]
    return make_student(), Teacher(make_teacher(), image_size=size)


def phases_of(name, pair):
    """The method's phases, not bound. Peers that may be of any architecture are one of each of the pair."""
    student, teacher = nets(pair)
    others = (copies(teacher.model),) if name in ("DML", "KDCL", "KDCL-min") else (copies(student),)
    torch.manual_seed(0)
    return METHODS[name].phases(Setting(copies(student), teacher, Teacher, others), 2)


def copies(net):
    return lambda: copy.deepcopy(net).requires_grad_(True)


def guided(regime, batch):
    with torch.no_grad():
        return regime.guide(batch)


def check_what_is_read(regime, batch, guides):
    """The distillation term moves the student's own layers, and with the teacher's answers."""
    (term, *_) = regime.objective.weights
    part = regime(batch, guides).parts[term]
    reached = torch.autograd.grad(part, list(regime.student.parameters()), allow_unused=True)
    assert sum(gradient.abs().sum() for gradient in reached if gradient is not None) > 0
    noisy = tuple(each(lambda x: x + torch.randn_like(x), guide) for guide in guides)
    assert not torch.allclose(regime(batch, noisy).parts[term], part, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_trains_or_is_refused(name, pair):
    phases = phases_of(name, pair)
    if reason := REFUSED.get(name, {}).get(pair):
        with pytest.raises(InputError, match=reason):
            next(phases).regime.bind(FACTS)
        return
    for phase in phases:
        check_training(phase.regime)


def check_training(regime):
    regime.bind(FACTS)
    regime.train()
    batch = tiny_batch(FACTS, SAMPLES, regime.demands.views, epoch=1)
    guides = guided(regime, batch)
    optimizer = torch.optim.SGD(regime.parameters(), lr=0.001)
    for _ in range(2):
        step = regime(batch, guides)
        assert step.loss.isfinite()
        optimizer.zero_grad()
        step.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in regime.parameters() if p.requires_grad)
        optimizer.step()
        regime.after_step(batch, step)
    if isinstance(regime, Offline) and any(True for _ in regime.student.parameters()):
        check_what_is_read(regime, batch, guides)


@pytest.fixture(scope="module")
def mixed():
    return load(DataConfig(train_size=40, augment=Augment(mixup=0.5)))


@pytest.mark.parametrize("name", METHODS)
def test_soft_labels_are_understood_or_refused(mixed, name):
    for phase in phases_of(name, "deit at 48 to vit" if name == "FSP" else "resnet10t to mobilenet"):
        regime = phase.regime
        if name in HARD_LABELS_ONLY:
            with pytest.raises(InputError, match=r"data\.augment: mixup or cutmix: .*hard labels only"):
                mixed.batches(0, batch_size=SAMPLES, demands=regime.demands)
            return
        assert next(mixed.batches(0, batch_size=SAMPLES, demands=regime.demands))[0].y.shape == (SAMPLES, 10)
        regime.bind(replace(FACTS, soft_labels=True))
        regime.train()
        check_soft_labels(regime, read=name != "SimKD" and not isinstance(regime, Initial))


def check_soft_labels(regime, read):
    hard = tiny_batch(FACTS, SAMPLES, regime.demands.views, epoch=1)
    guides = guided(regime, hard)

    def loss(smoothing):
        soft = (1 - smoothing) * one_hot(hard.y, 10) + smoothing / 10
        views = tuple(view._replace(y=soft) for view in hard.views)
        return regime(hard._replace(views=views), guides).loss

    torch.testing.assert_close(loss(0.0), regime(hard, guides).loss)
    assert torch.isclose(loss(0.1), loss(0.0)) != read
    loss(0.1).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in regime.parameters() if p.requires_grad)
