"""The pipeline as a user runs it, on tiny nets: its report, running again, kills, and other data."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from experiments import cli, pipeline
from experiments.steps import chain

ROOT = Path(__file__).parents[2]
STAGES = """[
  {class_path: compress.Prune, init_args: {target: 0.7}},
  {class_path: compress.Recover, init_args: {epochs: 2}},
  {class_path: compress.LowRank, init_args: {target: 0.9}},
  {class_path: compress.Recover, init_args: {epochs: 1}},
  {class_path: compress.Export},
  {class_path: compress.Quantize, init_args: {mode: static}}]"""
TINY = [
    *("--teacher.architecture", "cifar_resnet14", "--teacher.width", "0.5"),
    *("--teacher.fit.epochs", "2", "--teacher.fit.warmup_epochs", "0"),
    *("--space.name", "cifar_resnet14", "--search.trials", "2", "--search.fit.epochs", "2"),
    *("--space.width", "[0.2, 0.5]", "--space.depth", "[0.5, 1.0]"),
    *("--fit.epochs", "2", "--fit.warmup_epochs", "0", "--stages", STAGES, "--report.latency_seconds", "0.2"),
]
SMALL = ["--data.train_size", "256", *TINY]
STEPS = [
    *("teacher", "search", "scratch", "student"),
    *("stages/01-prune", "stages/02-recover", "stages/03-lowrank"),
    *("stages/04-recover", "stages/05-export", "stages/06-quantize", "report"),
]
ROW = {
    *("name", "kind", "top1_val", "top1_test", "agreement", "params", "nonzero", "macs", "file_bytes"),
    *("latency_ms", "seconds", "ratios"),
}


def start(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "experiments.pipeline", "--out", "run", *arguments]
    folder.mkdir(exist_ok=True)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)


def finish(folder, *arguments):
    process = start(folder, *arguments)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("whole")
    folder.joinpath("terminal").write_text("".join(finish(folder, *SMALL)))
    return folder


def report_of(folder):
    return json.loads((folder / "run" / "report.json").read_text())


def test_the_report_has_a_row_for_every_model_and_all_its_figures(whole):
    report = report_of(whole)
    rows = report["rows"]
    assert [row["name"] for row in rows] == [
        name.removeprefix("stages/") for name in STEPS if name not in ("search", "report")
    ]
    for row in rows:
        assert row.keys() >= ROW
        assert all(
            row["latency_ms"][batch]["p50"] <= row["latency_ms"][batch]["p95"] for batch in ("batch1", "batch32")
        )
        assert row["latency_ms"]["runtime"] == "onnxruntime"
        assert 0 <= row["top1_test"] <= 100
    first, last = rows[0], rows[-1]
    assert first["agreement"] == 100
    assert last["ratios"]["macs"] == first["macs"] / last["macs"] > 1
    assert rows[1]["params"] == rows[2]["params"]  # from scratch and distilled: one net
    assert rows[3]["macs"] == pytest.approx(0.7 * rows[2]["macs"], rel=0.1)
    assert last["file_bytes"] == (whole / "run/stages/06-quantize/model.onnx").stat().st_size < rows[-2]["file_bytes"]
    assert report["front"]
    assert all(trial["state"] for trial in report["trials"])
    assert report["seed"] == 0
    assert report["command"].startswith("python -m experiments.pipeline --out run --data.train_size 256")
    assert report["environment"]["packages"]["torch"]
    assert set(report["curves"]) == {"teacher", "scratch", "student", "stages/02-recover", "stages/04-recover"}
    assert any("2 students were trained" in note for note in report["notes"])


def test_the_report_is_one_page_and_a_table_in_the_terminal(whole):
    page = (whole / "run/report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count("data:image/png;base64,") == 2
    terminal = (whole / "terminal").read_text()
    for row in report_of(whole)["rows"]:
        assert row["name"] in terminal
        assert row["name"] in page
        assert row["name"] in (whole / "run/report.md").read_text()


def test_the_last_artefact_has_a_model_card(whole):
    card = (whole / "run/stages/06-quantize/README.md").read_text()
    assert all(f"| {row['name']} |" in card for row in report_of(whole)["rows"])
    assert "teacher → student → 01-prune" in card


def test_run_again_it_skips_what_is_done(whole):
    before = (whole / "run/report.json").stat().st_mtime_ns
    clock = time.perf_counter()
    _, errors = finish(whole, *SMALL)
    assert time.perf_counter() - clock < 60
    assert all(f"{step}: done before" in errors for step in STEPS)
    assert (whole / "run/report.json").stat().st_mtime_ns == before


def test_a_removed_step_runs_again_with_those_after_it(whole, tmp_path):
    shutil.copytree(whole / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/stages/03-lowrank")
    _, errors = finish(tmp_path, *SMALL)
    again = STEPS.index("stages/03-lowrank")
    assert all(f"{step}: done before" in errors for step in STEPS[:again])
    assert all(f"{step}: starts" in errors for step in STEPS[again:])
    for row, other in zip(report_of(whole)["rows"], report_of(tmp_path)["rows"], strict=True):
        assert {row[name] for name in ("top1_test", "macs")} == {other[name] for name in ("top1_test", "macs")}


def test_another_seed_in_the_same_folder_is_refused(whole):
    process = start(whole, *SMALL, "--seed", "1")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.strip().splitlines()[-1].startswith("error: seed: 1: ")
    assert "Traceback" not in errors


def end_alike(folder, other):
    """Whether two runs ended in the same weights, to the bit, and the same scores."""
    for step in (step for step in STEPS if (folder / "run" / step / "model.safetensors").exists()):
        weights = [(each / "run" / step / "model.safetensors").read_bytes() for each in (folder, other)]
        assert weights[0] == weights[1], step
    scores = [[row["top1_test"] for row in report_of(each)["rows"]] for each in (folder, other)]
    assert scores[0] == scores[1]


def test_killed_in_the_search_and_inside_a_stage_it_ends_bit_for_bit_alike(whole, tmp_path):
    for sign in ("search/trials/*/checkpoints/step-*", "stages/02-recover/checkpoints/step-*"):
        process = start(tmp_path, *SMALL)
        while not list((tmp_path / "run").glob(sign)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    finish(tmp_path, *SMALL)
    end_alike(whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_twenty_random_instants_it_ends_bit_for_bit_alike(whole, tmp_path, seed):
    instants, kills = random.Random(seed), 0
    while kills < 20:
        process = start(tmp_path, *SMALL)
        try:
            process.communicate(timeout=instants.uniform(2, 12))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0
        end_alike(whole, tmp_path)
        shutil.rmtree(tmp_path / "run")
    finish(tmp_path, *SMALL)
    end_alike(whole, tmp_path)


def images(count, size, mode, classes):
    """Noise around a brightness that tells the class."""
    draws = np.random.default_rng(0)
    channels = (3,) if mode == "RGB" else ()
    for number in range(count):
        label = number % classes
        noise = draws.integers(0, 80, (size, size, *channels)) + 175 * label // (classes - 1)
        yield label, Image.fromarray(noise.astype("uint8"), mode)


def as_folder(root, *form):
    for part, count in (("train", 80), ("test", 20)):
        for number, (label, image) in enumerate(images(count, *form)):
            (root / part / f"class{label}").mkdir(parents=True, exist_ok=True)
            image.save(root / part / f"class{label}" / f"{number}.png")


def as_table(count, *form):
    rows = list(images(count, *form))
    columns = {"picture": [image for _, image in rows], "kind": [label for label, _ in rows]}
    names = [f"class{label}" for label in range(form[-1])]
    features = datasets.Features(picture=datasets.Image(), kind=datasets.ClassLabel(names=names))
    return datasets.Dataset.from_dict(columns, features)


@pytest.mark.parametrize("source", ["parquet", "folder", "hub"])
def test_other_data(source, tmp_path, monkeypatch, capfd):
    """Grey and colour, two classes and three, sizes other than the default, wherever they come from."""
    named, form = (
        str(tmp_path / "data"),
        {"parquet": (12, "L", 3), "folder": (10, "RGB", 2), "hub": (8, "RGB", 3)}[source],
    )
    (tmp_path / "data").mkdir()
    if source == "folder":
        as_folder(tmp_path / "data", *form)
    else:
        tables = {part: as_table(count, *form) for part, count in (("train", 90), ("test", 30))}
        if source == "hub":
            named = "somebody/pictures"
            monkeypatch.setattr(
                datasets, "load_dataset", lambda name, **_: datasets.DatasetDict(tables) if name == named else None
            )
        else:
            for part, table in tables.items():
                table.to_parquet(tmp_path / "data" / f"{part}.parquet")
    out = tmp_path / "run"
    arguments = ["--out", out, "--data.source", named, *TINY, "--search.trials", "1"]
    assert cli.run("pipeline", pipeline.PipelineConfig, pipeline.main, list(map(str, arguments))) == 0, (
        capfd.readouterr()
    )
    report = json.loads((out / "report.json").read_text())
    size, mode, classes = form
    assert report["data"]["classes"] == classes
    assert report["data"]["channels"] == len(mode)
    assert report["data"]["image_size"] == [size, size]
    assert [step["name"] for step in chain(out)] == STEPS
