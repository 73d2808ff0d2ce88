import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from kd.batch import Step
from kd.checkpoint import Checkpoints, load_tree, save_tree
from kd.data import Augment, DataConfig, load
from kd.errors import DivergedError, InputError
from kd.fit import Fit, fit, make_accelerator
from kd.regimes import DML, Supervised

QUICK = Fit(epochs=3, batch_size=50, lr=0.1, trackers=())


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Killed(BaseException):
    """Ends a run like a kill would: nothing catches it."""


class Mortal(Supervised):
    """Supervised training that is killed at a step."""

    dies_at = math.inf

    def after_step(self, batch, step):
        if batch.clock.step == self.dies_at:
            raise Killed


def test_training_learns_and_leaves_the_best_epoch(digits, small_net, tmp_path):
    model = small_net()
    history = fit(Supervised(model), digits, replace(QUICK, epochs=5), tmp_path)
    assert history.best_top1 > 70
    assert history.best_top1 == max(epoch["top1_val"] for epoch in history.epochs)
    from kd.evaluate import evaluate

    assert evaluate(model, digits.evaluation("val")).top1 == history.best_top1
    lines = metrics(tmp_path)
    assert lines == history.epochs
    assert [line["epoch"] for line in lines] == list(range(5))
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema": 0.9},
        {"accumulate": 2, "clip": 1.0},
        {"precision": "bf16", "channels_last": True},
        {"optimizer": "adamw", "lr": 0.003, "scheduler": "multistep", "milestones": (1, 2), "warmup_epochs": 1},
        {"checkpoint_steps": 3},
        {"epochs": 9, "lr": 1e-9, "patience": 2},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("dies_at", [1, 8, 13, 20])
def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(digits, small_net, tmp_path, options, dies_at):
    config = replace(QUICK, **options)
    whole, broken = small_net(dropout=0.3), small_net(dropout=0.3)
    expected = fit(Supervised(whole), digits, config)
    regime = Mortal(broken)
    regime.dies_at = dies_at // config.accumulate
    with pytest.raises(Killed):
        fit(regime, digits, config, tmp_path)
    again = small_net(seed=7, dropout=0.3)  # other weights: everything must come from the checkpoint
    if not list(tmp_path.glob("checkpoints/*")):
        again = small_net(dropout=0.3)
    history = fit(Supervised(again), digits, config, tmp_path)
    assert same(whole, again)
    drop = lambda epochs: [{k: v for k, v in e.items() if k != "seconds"} for e in epochs]  # noqa: E731
    assert drop(history.epochs) == drop(expected.epochs)
    assert metrics(tmp_path) == history.epochs


@pytest.mark.parametrize("renamed", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", range(6))  # of metrics.jsonl and of a checkpoint, each epoch
def test_killed_at_the_rename_of_any_file_it_ends_bit_for_bit_alike(
    digits, small_net, tmp_path, monkeypatch, write, renamed
):
    whole, replaced, rename = small_net(), [], os.replace
    fit(Supervised(whole), digits, QUICK)

    def replace_or_die(source, target):
        if len(replaced) < write or renamed:
            rename(source, target)
        replaced.append(target)
        if len(replaced) > write:
            monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # the killed clean nothing up
            raise Killed

    monkeypatch.setattr(os, "replace", replace_or_die)
    with pytest.raises(Killed):
        fit(Supervised(small_net()), digits, QUICK, tmp_path)
    monkeypatch.undo()
    again = small_net(seed=7 if list(tmp_path.glob("checkpoints/step-*")) else 0)
    history = fit(Supervised(again), digits, QUICK, tmp_path)
    assert same(whole, again)
    assert metrics(tmp_path) == history.epochs
    assert [line["epoch"] for line in history.epochs] == [0, 1, 2]
    if write < 5:  # else nothing was left to write
        assert not list(tmp_path.glob("checkpoints/.*")), "half a file is left behind"


def test_killed_while_workers_stream_it_goes_on_from_memory_alike(small_net, tmp_path):
    config = DataConfig(train_size=400, augment=Augment(crop=1, mixup=0.4), workers=2)
    memory, stream = (load(replace(config, in_memory=kept)) for kept in (True, False))
    whole, again = small_net(), small_net(seed=7)
    fit(Supervised(whole), memory, QUICK)
    regime = Mortal(small_net())
    regime.dies_at = 13
    with pytest.raises(Killed):
        fit(regime, stream, replace(QUICK, checkpoint_steps=3), tmp_path)
    fit(Supervised(again), memory, replace(QUICK, checkpoint_steps=3), tmp_path)
    assert same(whole, again)


def test_a_torn_checkpoint_gives_way_to_the_one_before(digits, small_net, tmp_path):
    whole = small_net()
    fit(Supervised(whole), digits, QUICK, tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-3])
    again = small_net(seed=3)
    fit(Supervised(again), digits, QUICK, tmp_path)
    assert same(whole, again)


def test_a_finished_run_is_not_trained_again(digits, small_net, tmp_path):
    first = fit(Supervised(small_net()), digits, QUICK, tmp_path)
    again = small_net(seed=5)
    assert fit(Supervised(again), digits, QUICK, tmp_path).epochs == first.epochs


def test_a_folder_of_another_configuration_or_model_is_refused(digits, small_net, tmp_path):
    fit(Supervised(small_net()), digits, QUICK, tmp_path)
    with pytest.raises(InputError, match=r"fit.lr: 0.2: .* started with 0.1"):
        fit(Supervised(small_net()), digits, replace(QUICK, lr=0.2), tmp_path)
    with pytest.raises(InputError, match="another model"):
        fit(Supervised(small_net(width=4)), digits, QUICK, tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(digits, small_net, tmp_path):
    class Explodes(Supervised):
        def forward(self, batch, guides):
            step = super().forward(batch, guides)
            return step._replace(loss=step.loss * (math.nan if batch.clock.step == 18 else 1))

    with pytest.raises(DivergedError, match="epoch 3"):
        fit(Explodes(small_net()), digits, QUICK, tmp_path)
    state = Checkpoints(tmp_path / "checkpoints").latest()
    assert state["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in state["regime"].values())


@pytest.mark.parametrize(("step", "checkpoint_steps"), [(15, None), (17, 2)], ids=["epoch", "within"])
def test_weights_that_are_not_finite_are_in_no_checkpoint(digits, small_net, tmp_path, step, checkpoint_steps):
    class Bursts(Supervised):
        def forward(self, batch, guides):
            loss, parts, logits = super().forward(batch, guides)
            if batch.clock.step == step:  # a finite loss of an infinite gradient
                weight = self.student[0].weight
                loss = loss + (weight - weight.detach()).sum().sqrt()
            return Step(loss, parts, logits)

    with pytest.raises(DivergedError, match="weight became NaN or infinite in epoch"):
        fit(Bursts(small_net()), digits, replace(QUICK, checkpoint_steps=checkpoint_steps), tmp_path)
    for file in (tmp_path / "checkpoints").iterdir():
        assert all(torch.isfinite(value).all() for value in load_tree(file)["regime"].values())


def test_answers_that_are_not_finite_stop_the_run(digits, small_net):
    class Lost(nn.Module):
        def forward(self, x):
            return x * math.nan

    class Loses(Supervised):
        def candidates(self):
            return {"lost": nn.Sequential(self.student, Lost())}

    with pytest.raises(DivergedError, match="answers on validation became NaN"):
        fit(Loses(small_net()), digits, QUICK)


def test_each_epoch_trains_in_training_mode(digits, small_net):
    class Watched(Supervised):
        def after_step(self, batch, step):
            modes.append(all(module.training for module in self.modules()))

    modes = []
    fit(Watched(small_net()), digits, Fit(epochs=2, trackers=()))
    assert all(modes)
    assert len(modes) == 2 * (len(digits.train) // 64)


def test_patience_stops_early(digits, small_net):
    history = fit(Supervised(small_net()), digits, replace(QUICK, epochs=30, lr=1e-9, patience=2))
    assert len(history.epochs) == history.best_epoch + 3 < 30


def test_the_last_epoch_is_kept_on_request(digits, small_net):
    config = replace(QUICK, epochs=4, scheduler="none", lr=0.3)
    history = fit(Supervised(small_net()), digits, replace(config, select="last"))
    assert history.best_epoch == 3
    assert history.best_top1 == history.epochs[-1]["top1_val"]


def test_the_rate_warms_up_and_then_follows_the_cosine(digits, small_net):
    epochs = fit(Supervised(small_net()), digits, replace(QUICK, epochs=6, warmup_epochs=2)).epochs
    rates = [epoch["lr"] for epoch in epochs]
    assert rates[0] == pytest.approx(0.1 / 100 + (0.1 - 0.1 / 100) / 2)
    assert rates[1:] == pytest.approx([0.05 * (1 + math.cos(math.pi * (e - 1) / 4)) for e in range(1, 6)], abs=1e-6)


@pytest.mark.parametrize(
    ("scheduler", "share"),
    [
        ("poly", lambda t: (1 - t / 4) ** 0.9),
        ("tanh", lambda t: (1 - math.tanh(-7 * (1 - t / 4) + 3 * t / 4)) / 2),
        ("multistep", lambda t: 0.1 ** ((t >= 1) + (t >= 3))),
        ("none", lambda t: 1.0),
    ],
)
def test_schedules_by_name(digits, small_net, scheduler, share):
    """The rate at the end of each epoch, after one of warm-up."""
    config = replace(QUICK, epochs=5, warmup_epochs=1, scheduler=scheduler, milestones=(2, 4))
    rates = [epoch["lr"] for epoch in fit(Supervised(small_net()), digits, config).epochs]
    assert rates == pytest.approx([0.1 * share(t) for t in range(5)], abs=3e-4)
    first = fit(Supervised(small_net()), digits, replace(config, warmup_epochs=2)).epochs[0]["lr"]
    assert first == pytest.approx(0.1 / 100 + (0.1 - 0.1 / 100) / 2)


@pytest.mark.parametrize("name", ["lamb", "lion", "nadamw", "rmsprop", "adafactorbv", "muon"])
def test_optimisers_by_name_learn_and_resume(digits, small_net, tmp_path, name):
    config = replace(QUICK, epochs=2, optimizer=name, lr=0.005)
    whole, again = small_net(), small_net(seed=7)
    history = fit(Supervised(whole), digits, config, tmp_path)
    assert history.epochs[1]["loss"] < history.epochs[0]["loss"]
    max((tmp_path / "checkpoints").iterdir()).unlink()
    fit(Supervised(again), digits, config, tmp_path)
    assert same(whole, again)


class Notes(Supervised):
    """Notes the step of each batch after which banks are written; at `burst` the scaled gradient overflows."""

    burst = -1

    def __init__(self, student):
        super().__init__(student)
        self.noted = []

    def forward(self, batch, guides):
        step = super().forward(batch, guides)
        return step._replace(loss=step.loss * 1e30) if batch.clock.step == self.burst else step

    def after_step(self, batch, step):
        self.noted.append(batch.clock.step)


def test_an_epoch_leaves_out_what_accumulation_leaves_over(digits, small_net):
    regime = Notes(small_net())
    history = fit(regime, digits, replace(QUICK, accumulate=3, epochs=2))  # of 8 batches an epoch
    assert regime.noted == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert history.epochs[1]["lr"] == 0


def test_banks_are_not_written_where_half_precision_overflows(digits, small_net, monkeypatch):
    monkeypatch.setattr("kd.settings.on_cpu", lambda: False)
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="fp16", gradient_accumulation_steps=2)
    accelerator.native_amp, accelerator.scaler = True, torch.amp.GradScaler("cpu")  # accelerate has it on GPUs only
    regime = Notes(small_net())
    regime.burst = 1
    before = accelerator.scaler.get_scale()
    config = replace(QUICK, epochs=1, precision="fp16", accumulate=2)
    fit(regime, digits, config, accelerator=accelerator)
    assert accelerator.scaler.get_scale() == before / 2, "it did not overflow, or more than once"
    assert regime.noted == [0, 0, 1, 2, 2, 3, 3]
    assert all(p.isfinite().all() for p in regime.parameters())


@pytest.mark.parametrize(("field", "value"), [("accumulate", 2), ("precision", "bf16")])
def test_an_accelerator_made_for_another_configuration_is_refused(digits, small_net, field, value):
    with pytest.raises(InputError, match=f"^fit.{field}: {value}: the accelerator was made for"):
        fit(Supervised(small_net()), digits, replace(QUICK, **{field: value}), accelerator=make_accelerator(QUICK))


def test_a_run_of_another_number_of_processes_is_refused(digits, small_net, tmp_path):
    fit(Supervised(small_net()), digits, QUICK, tmp_path)
    for file in (tmp_path / "checkpoints").iterdir():
        save_tree(file, load_tree(file) | {"world": 2})
    with pytest.raises(InputError, match=r"num_processes: 1: .* started on 2"):
        fit(Supervised(small_net()), digits, QUICK, tmp_path)


def test_accumulation_equals_the_larger_batch(digits, small_net):
    """Without batch norm, four batches of 25 are one of 100: the same gradient, the same steps."""
    nets = []
    for batch_size, accumulate in ((100, 1), (25, 4)):
        nets.append(small_net(norm=False).double())
        data = _double(digits)
        fit(Supervised(nets[-1]), data, replace(QUICK, batch_size=batch_size, accumulate=accumulate, epochs=1))
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def _double(data):
    """The same data in float64."""

    class Double:
        facts, steps = data.facts, data.steps

        def batches(self, *args, **options):
            for views in data.batches(*args, **options):
                yield tuple(view._replace(x=view.x.double()) for view in views)

        def evaluation(self, *args, **options):
            return (view._replace(x=view.x.double()) for view in data.evaluation(*args, **options))

    return Double()


def test_clipping_bounds_the_step(digits, small_net):
    model = small_net()
    before = [p.detach().clone() for p in model.parameters()]
    plain = {"optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.0, "scheduler": "none", "trackers": ()}
    config = Fit(epochs=1, batch_size=400, lr=1.0, clip=1e-3, **plain)
    fit(Supervised(model), digits, config)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, model.parameters(), strict=True)]).norm()
    assert moved.item() <= 1.01e-3


def test_the_average_of_the_weights_is_what_is_validated_and_kept(digits, small_net):
    plain, averaged = small_net(), small_net()
    fit(Supervised(plain), digits, replace(QUICK, select="last"))
    fit(Supervised(averaged), digits, replace(QUICK, select="last", ema=0.99))
    assert not same(plain, averaged)


def test_peers_are_ranked_and_the_best_is_kept(digits, small_net):
    torch.manual_seed(0)
    weak = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 10))
    regime = DML([weak, small_net()])
    history = fit(regime, digits, QUICK)
    assert history.best_name == "peer1"
    assert regime.deploy(history.best_name) is regime.peers["peer1"]
    assert history.epochs[-1]["top1_val"] == history.epochs[-1]["top1_val_peer1"] > history.epochs[-1]["top1_val_peer0"]


def test_mixed_labels_train_and_are_refused_where_labels_must_be_hard(small_net):
    from kd.regimes import PSKD

    data = load(DataConfig(train_size=200, augment=Augment(mixup=0.4, cutmix=1.0)))
    assert fit(Supervised(small_net()), data, replace(QUICK, epochs=1)).best_top1 > 0
    with pytest.raises(InputError, match="hard labels"):
        fit(PSKD(small_net()), data, QUICK)


def test_trackers_write_events(digits, small_net, tmp_path):
    fit(Supervised(small_net()), digits, replace(QUICK, epochs=1, trackers=("tensorboard",)), tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_compilation_gives_the_same_losses(digits, small_net):
    eager = fit(Supervised(small_net()), digits, replace(QUICK, epochs=1))
    compiled = fit(Supervised(small_net()), digits, replace(QUICK, epochs=1, compile=True))
    assert compiled.epochs[0]["loss"] == pytest.approx(eager.epochs[0]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", -1),
        ("lr", 0.0),
        ("ema", 1.0),
        ("warmup_epochs", 10),
        ("clip", -1.0),
        ("optimizer", "sdg"),
        ("trackers", ("nope",)),
        ("accumulate", 99),
        ("optimizer", "adahessian"),
        ("optimizer", "fusedsgd"),
        ("scheduler", "plateau"),
        ("select", "worst"),
        ("precision", "fp8"),
        ("precision", "fp16"),
    ],
)
def test_values_that_cannot_be_are_refused_by_field(digits, small_net, tmp_path, field, value):
    with pytest.raises(InputError, match=f"^fit.{field}: "):
        fit(Supervised(small_net()), digits, Fit(**{field: value}), tmp_path)


def test_patience_with_the_last_epoch_kept_is_refused():
    with pytest.raises(InputError, match=r"^fit.patience: 3: needs fit.select"):
        Fit(patience=3, select="last")
