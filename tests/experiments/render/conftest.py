from __future__ import annotations

import copy

import pytest

from experiments.render import words


def _row(name, kind, val, test, agreement, params, macs, size, first, many, seconds, notes=()):
    return {
        "name": name,
        "kind": kind,
        "top1_val": val,
        "top1_test": test,
        "agreement": agreement,
        "params": params,
        "nonzero": params,
        "macs": macs,
        "file_bytes": size,
        "latency_ms": {
            "runtime": "onnxruntime",
            "batch1": {"p50": first, "p95": first * 1.2},
            "batch32": {"p50": many, "p95": many * 1.1},
        },
        "seconds": seconds,
        "notes": list(notes),
    }


def _report():
    rows = [
        _row("teacher", "teacher", 98.52, 98.61, 100.0, 853_018, 127_300_000, 3_461_000, 2.31, 61.2, 422.0),
        _row("scratch", "scratch", 96.67, 96.94, 97.22, 68_786, 10_120_000, 296_000, 0.412, 7.31, 61.0),
        _row("student", "student", 97.41, 97.78, 98.33, 68_786, 10_120_000, 296_000, 0.409, 7.28, 93.0),
        _row(
            "01-prune",
            "prune",
            61.48,
            60.28,
            60.56,
            34_112,
            5_014_000,
            158_000,
            0.301,
            4.02,
            4.2,
        ),
        _row("02-recover", "recover", 97.04, 97.22, 97.78, 34_112, 5_014_000, 158_000, 0.302, 4.05, 55.0),
        _row(
            "03-lowrank",
            "lowrank",
            96.85,
            96.94,
            97.50,
            29_870,
            4_102_000,
            149_000,
            0.338,
            4.61,
            6.0,
            ["4 of 19 layers were factored; the others would have grown."],
        ),
        _row("04-export", "export", 96.85, 96.94, 97.50, 29_870, 4_102_000, 149_000, 0.338, 4.6, 1.1),
        _row("05-quantize", "quantize", 96.67, 96.94, 97.22, 29_870, 4_102_000, 62_000, 0.214, 2.71, 3.4),
    ]
    for row in rows:
        row["ratios"] = {name: rows[0][name] / row[name] for name in ("params", "macs", "file_bytes")}
        for batch in ("batch1", "batch32"):
            row["ratios"][f"latency_{batch}"] = rows[0]["latency_ms"][batch]["p50"] / row["latency_ms"][batch]["p50"]
    for row, notes in zip(rows, words.problems(rows), strict=True):
        row["notes"] += notes
    trials = [
        {
            "number": 0,
            "width": 0.5,
            "depth": 1.0,
            "params": 68_786,
            "macs": 10_120_000,
            "top1": 93.7,
            "state": "trained",
        },
        {
            "number": 1,
            "width": 1.0,
            "depth": 1.0,
            "params": 272_000,
            "macs": 40_500_000,
            "top1": 94.6,
            "state": "trained",
        },
        {
            "number": 2,
            "width": 0.25,
            "depth": 0.67,
            "params": 12_100,
            "macs": 1_900_000,
            "top1": 88.3,
            "state": "trained",
        },
        {
            "number": 3,
            "width": 0.75,
            "depth": 0.34,
            "params": 44_100,
            "macs": 12_900_000,
            "top1": 91.1,
            "state": "trained",
        },
        {
            "number": 4,
            "width": 1.0,
            "depth": 1.0,
            "params": 272_000,
            "macs": 40_500_000,
            "top1": None,
            "state": "diverged",
        },
        {
            "number": 5,
            "width": 0.25,
            "depth": 1.0,
            "params": 17_600,
            "macs": 2_700_000,
            "top1": 90.0,
            "state": "trained",
        },
    ]
    return {
        "title": "digits: teacher to 05-quantize",
        "command": "python -m experiments.pipeline --config experiments/recipes/digits.yaml --out runs/digits",
        "seed": 0,
        "environment": {
            "python": "3.11.7",
            "torch": "2.14.1",
            "onnxruntime": None,
            "processor": "Intel(R) Xeon(R) Processor",
            "instructions": ["avx2", "avx512f", "avx512_vnni"],
            "cores": 2,
            "memory_gib": 23.5,
            "git": "f058b9112ab3c5d8e2f1a7b6c4d0e9f8a7b6c5d4",
            "git_modified": False,
            "time": "2026-01-01T10:00:00+00:00",
        },
        "data": {
            "source": "digits",
            "train": 1167,
            "val": 270,
            "test": 360,
            "classes": 10,
            "channels": 1,
            "image_size": [8, 8],
            "notes": [],
        },
        "rows": rows,
        "front": [trials[number] for number in (2, 5, 0, 1)],
        "trials": trials,
        "curves": {
            name: [
                {"epoch": epoch, "loss": 2.0 * fall**epoch, "top1_val": 98.5 - lag * fall**epoch} for epoch in range(20)
            ]
            for name, fall, lag in (("teacher", 0.7, 60), ("scratch", 0.8, 80), ("student", 0.75, 70))
        },
        "notes": ["Latencies are of one processor; another one may order the artefacts differently."],
        "config": {"seed": 0, "data": {"source": "digits", "val_fraction": 0.15}, "fit": {"epochs": 20, "lr": 0.05}},
    }


@pytest.fixture
def report():
    """What a pipeline on small digits would write; made up."""
    return copy.deepcopy(_report())


@pytest.fixture
def unknown(report):
    """The same report, with every number of its rows unknown."""
    report = copy.deepcopy(report)
    for row in report["rows"]:
        row |= {key: None for key in row if key not in ("name", "kind", "notes")}
    return report
