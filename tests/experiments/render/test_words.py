from __future__ import annotations

import pytest

from experiments.render import words
from experiments.render.figures import count, duration, milliseconds, percent, size, times


def _pair(report, **changes):
    """A step and the same artefact again, changed by the step after it."""
    before = next(row for row in report["rows"] if row["kind"] == "recover")
    return [before, {**before, "kind": "prune", "macs": before["macs"] // 2, **changes}]


def _latency(first, many):
    return {"runtime": "onnxruntime", "batch1": {"p50": first, "p95": first}, "batch32": {"p50": many, "p95": many}}


def test_headline_sets_the_deployed_model_against_the_teacher(report):
    sentence = words.headline(report)
    for part in ("05-quantize", "62.0 kB", "96.94%", "98.61%", "31.0× fewer MACs", "55.8× smaller", "10.8× faster"):
        assert part in sentence


def test_headline_says_slower_and_larger(report):
    report["rows"][-1]["ratios"] |= {"latency_batch1": 0.5, "file_bytes": 0.25, "macs": 0.1}
    sentence = words.headline(report)
    assert "10.0× more MACs" in sentence
    assert "4.00× larger as a file" in sentence
    assert "2.00× slower at batch 1" in sentence
    assert "faster" not in sentence


def test_headline_of_little(report, unknown):
    assert "–" in words.headline(unknown)
    assert words.headline(report | {"rows": []}) == "Nothing was measured."
    alone = words.headline(report | {"rows": report["rows"][:1]})
    assert "against" not in alone
    assert "98.61%" in alone


@pytest.mark.parametrize(("lost", "said"), [(0.6, True), (0.4, False), (-3.0, False)])
def test_lower_accuracy_on_validation(report, lost, said):
    rows = _pair(report)
    rows[1]["top1_val"] -= lost
    assert words.problems(rows)[1] == (
        ["Top-1 on validation is 0.60 points lower than in the step before."] if said else []
    )


def test_accuracy_on_test_is_no_problem_of_a_stage(report):
    assert words.problems(_pair(report, top1_test=10.0))[1] == []


@pytest.mark.parametrize(
    ("first", "many", "said"),
    [
        (1.12, 1.0, ["12% slower at batch 1 than the step before, though its MACs fell by 50%."]),
        (1.0, 1.3, ["30% slower at batch 32 than the step before, though its MACs fell by 50%."]),
        (1.04, 0.5, []),
    ],
)
def test_slower(report, first, many, said):
    rows = _pair(report, latency_ms=_latency(first, many))
    rows[0]["latency_ms"] = _latency(1.0, 1.0)
    assert words.problems(rows)[1] == said


def test_larger_file(report):
    rows = _pair(report)
    rows[1]["file_bytes"] = int(rows[0]["file_bytes"] * 1.25)
    assert words.problems(rows)[1] == ["The file is 25% larger than in the step before."]


@pytest.mark.parametrize(("kind", "said"), [("prune", True), ("lowrank", True), ("quantize", False), ("export", False)])
def test_macs_that_did_not_fall(report, kind, said):
    rows = _pair(report, kind=kind)
    rows[1]["macs"] = rows[0]["macs"]
    assert words.problems(rows)[1] == (["Its MACs did not change."] if said else [])


def test_student_is_held_against_the_net_from_scratch_only(report):
    _, scratch, student = rows = report["rows"][:3]
    assert words.problems(rows) == [[], [], []]
    student["top1_test"] = scratch["top1_test"]
    expected = "Not better on test than the same net trained from scratch (96.94% against 96.94%)."
    assert words.problems(rows) == [[], [], [expected]]
    assert words.problems([rows[0], student, scratch]) == [[], [expected], []]  # in any order
    assert words.problems([rows[0], student]) == [[], []]


def test_first_stage_is_held_against_the_student_not_the_net_from_scratch(report):
    teacher, scratch, student, prune = report["rows"][:4]
    scratch["top1_val"] = 0.0
    assert (
        words.problems([teacher, student, scratch, prune])[3]
        == words.problems([teacher, scratch, student, prune])[3]
        != []
    )


def test_a_stage_straight_after_the_teacher_is_held_against_it(report):
    teacher, *_, prune = report["rows"][:4]
    assert "37.04 points lower" in words.problems([teacher, prune])[1][0]


def test_nothing_is_said_of_what_is_not_known(unknown):
    assert words.problems(unknown["rows"]) == [[]] * len(unknown["rows"])
    assert words.problems([]) == []


def test_data_and_environment(report):
    assert words.data(report) == (
        "digits: images of 8 × 8 pixels and 1 channel, 10 classes; "
        "1,167 for training, 270 for validation, 360 for testing."
    )
    facts = dict(words.environment(report))
    assert facts["git modified"] == "no"
    assert facts["onnxruntime"] == "–"
    assert facts["instructions"] == "avx2, avx512f, avx512_vnni"


@pytest.mark.parametrize(
    ("form", "number", "text"),
    [
        (percent, 98.123, "98.12"),
        (count, 853_018, "853 k"),
        (count, 999_700, "1.00 M"),
        (count, 0, "0"),
        (count, 12, "12"),
        (size, 62_000, "62.0 kB"),
        (milliseconds, 0.31234, "0.312"),
        (times, 4, "4.00×"),
        (times, 0.5, "0.500×"),
        (duration, 59.96, "1 min 0 s"),
        (duration, 3725, "1 h 2 min"),
        (size, None, "–"),
    ],
)
def test_figures(form, number, text):
    assert form(number) == text
