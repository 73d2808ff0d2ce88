import copy

import pytest


def _row(name, kind, accuracy, cost, latency, seconds, notes=()):
    (val, test, agreement), (params, nonzero, macs, size) = accuracy, cost
    (p50, p95), (wide50, wide95) = latency
    return {
        "name": name,
        "kind": kind,
        "top1_val": val,
        "top1_test": test,
        "agreement": agreement,
        "params": params,
        "nonzero": nonzero,
        "macs": macs,
        "file_bytes": size,
        "latency_ms": {
            "runtime": "onnxruntime",
            "threads": 1,
            "batch1": {"p50": p50, "p95": p95},
            "batch32": {"p50": wide50, "p95": wide95},
        },
        "seconds": seconds,
        "notes": list(notes),
    }


ROWS = [
    _row(
        "teacher",
        "teacher",
        (98.61, 98.06, 100.0),
        (613426, 613426, 5813504, 2476310),
        ((0.61, 0.68), (9.31, 9.9)),
        96.4,
    ),
    _row(
        "scratch", "scratch", (96.18, 95.28, 96.11), (69210, 69210, 667136, 295102), ((0.182, 0.21), (1.81, 2.0)), 33.2
    ),
    _row(
        "student", "student", (97.57, 97.22, 97.78), (69210, 69210, 667136, 295102), ((0.181, 0.2), (1.82, 1.99)), 41.0
    ),
    _row(
        "01-prune",
        "prune",
        (93.4, 92.78, 93.33),
        (44812, 44812, 460288, 197212),
        ((0.166, 0.18), (1.39, 1.5)),
        2.3,
        ["4.2 points lower on validation than student: 93.40 % after 97.57 %."],
    ),
    _row(
        "02-recover",
        "recover",
        (97.22, 96.94, 97.5),
        (44812, 44812, 460288, 197212),
        ((0.166, 0.19), (1.38, 1.5)),
        12.9,
    ),
    _row(
        "03-lowrank",
        "lowrank",
        (96.53, 96.11, 96.67),
        (35201, 35201, 365312, 171020),
        ((0.19, 0.2), (1.41, 1.55)),
        1.1,
        ["14% slower at batch 1 than 02-recover, though its MACs fell by 21%."],
    ),
    _row(
        "04-recover", "recover", (97.22, 96.67, 97.22), (35201, 35201, 365312, 171020), ((0.19, 0.2), (1.41, 1.6)), 12.4
    ),
    _row("05-export", "export", (97.22, 96.67, 97.22), (35201, 35201, 365312, 171020), ((0.19, 0.2), (1.41, 1.5)), 0.8),
    _row(
        "06-quantize",
        "quantize",
        (96.88, 96.67, 96.94),
        (35201, 34987, 365312, 74310),
        ((0.12, 0.14), (0.92, 1.02)),
        6.2,
    ),
]


def _ratios(row):
    base = ROWS[0]
    ratios = {name: base[name] / row[name] for name in ("params", "macs", "file_bytes")}
    for batch in ("batch1", "batch32"):
        ratios[f"latency_{batch}"] = base["latency_ms"][batch]["p50"] / row["latency_ms"][batch]["p50"]
    return ratios


def _trial(number, width, depth, top1, macs, state="trained", params=None):
    point = {
        "number": number,
        "top1_val": top1,
        "macs": macs,
        "params": params or macs // 9,
        "width": width,
        "depth": depth,
    }
    return point | {"state": state}


TRIALS = [
    _trial(0, 0.66, 0.89, 95.83, 2_104_000),
    _trial(1, 0.25, 0.34, 84.03, 141_312),
    _trial(2, 0.42, 0.55, 93.06, 667_136, params=69_210),
    _trial(3, 0.92, 0.95, 95.49, 4_390_000),
    _trial(4, 0.31, 0.62, 89.93, 391_000),
    _trial(5, 0.38, 0.34, 88.54, 301_000),
    _trial(6, 0.5, 0.34, 91.32, 512_000),
    _trial(7, 0.61, 0.4, 92.36, 905_000),
    _trial(8, 0.78, 0.5, 94.1, 1_790_000),
    _trial(9, 1.0, 1.0, None, 5_200_000, state="infeasible"),
    _trial(10, 0.45, 0.8, 92.71, 1_010_000),
    _trial(11, 0.55, 0.9, 95.14, 1_500_000),
    _trial(12, 0.28, 0.45, 86.81, 220_000),
]


def _curve(epochs, start, end, loss):
    far = [(epoch + 1) / epochs for epoch in range(epochs)]
    return [
        {"epoch": epoch, "lr": 0.1, "loss": loss * (1.05 - x) ** 1.5, "top1_val": end - (end - start) * (1 - x) ** 3}
        for epoch, x in enumerate(far)
    ]


REPORT = {
    "title": "digits: teacher to 06-quantize",
    "command": "python -m experiments.pipeline --out runs/digits --seed 0",
    "seed": 0,
    "environment": {
        "time": "2026-11-24T09:44:29+00:00",
        "python": "3.11.2",
        "packages": {"torch": "2.14.1", "timm": "1.0.31", "onnxruntime": "1.32.0", "tensorly": None},
        "system": "Debian GNU/Linux 12 (bookworm), x86_64",
        "processor": "Intel(R) Xeon(R) Processor",
        "instructions": ["avx2", "avx512_vnni", "amx_int8"],
        "accelerators": [],
        "cores": 2,
        "threads": 1,
        "memory_gib": 15.6,
        "git": "f058b91c0ffee0000000000000000000000000000",
        "git_modified": True,
    },
    "data": {
        "source": "digits",
        "train": 1149,
        "val": 288,
        "test": 360,
        "classes": 10,
        "channels": 1,
        "image_size": [8, 8],
        "notes": ["A small data set: one test image is 0.28 points."],
    },
    "rows": [row | {"ratios": _ratios(row)} for row in ROWS],
    "trials": TRIALS,
    "front": [TRIALS[number] for number in (1, 12, 5, 4, 6, 2, 11, 0)],
    "curves": {
        "teacher": _curve(24, 61.0, 98.6, 2.2),
        "scratch": _curve(30, 40.0, 96.2, 2.3),
        "student": _curve(30, 52.0, 97.6, 11.0),
        "stages/02-recover": _curve(8, 94.0, 97.2, 3.0),
        "stages/04-recover": _curve(8, 95.0, 97.2, 2.4),
    },
    "notes": [],
    "config": {
        "seed": 0,
        "data": {"source": "digits", "augment": {"crop": 1, "views": 8}},
        "stages": ["compress.Prune"],
    },
}


@pytest.fixture
def report():
    """A made-up report of a whole pipeline, as report.json holds it."""
    return copy.deepcopy(REPORT)


@pytest.fixture
def sparse():
    """The same where everything that may be unknown is."""
    report = copy.deepcopy(REPORT)
    for row in report["rows"]:
        for name in row.keys() - {"name", "kind", "notes", "ratios"}:
            row[name] = None
        row["ratios"] = dict.fromkeys(row["ratios"])
    report["environment"] = dict.fromkeys(report["environment"])
    return report | {"front": [], "trials": [], "curves": {}, "seed": None, "config": {}}
