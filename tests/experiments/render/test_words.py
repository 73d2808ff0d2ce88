import pytest

from experiments.render import words


def _row(name, kind, **values):
    row = {"name": name, "kind": kind, "top1_val": 97.0, "top1_test": 96.0, "macs": 1000, "file_bytes": 5000}
    latency = {f"batch{batch}": {"p50": values.pop(f"batch{batch}", 1.0)} for batch in (1, 32)}
    return row | {"latency_ms": {"runtime": "onnxruntime", **latency}} | values


def _told(kind="lowrank", **values):
    """What is said of a stage that changed these values of the row before it."""
    return words.problems([_row("student", "student"), _row("01-stage", kind, **{"macs": 700} | values)])[1]


def test_a_stage_that_made_nothing_worse_is_not_mentioned():
    assert _told(top1_val=96.5, batch1=1.04, batch32=0.5, file_bytes=5040) == []


def test_accuracy_that_fell_is_told_a_split_each():
    lower = "points lower on validation than student: 95.80 % after 97.00 %."
    assert _told(top1_val=95.8) == [f"1.2 {lower}"]
    assert _told(top1_test=95.4) == ["0.6 points lower on test than student: 95.40 % after 96.00 %."]


def test_slower_is_told_with_the_work_that_was_saved():
    assert _told(batch1=1.12) == ["12% slower at batch 1 than student, though its MACs fell by 30%."]
    assert _told(batch32=1.06, kind="recover", macs=1000) == ["6% slower at batch 32 than student."]


def test_a_larger_file_is_told():
    assert _told(file_bytes=5100) == ["The file is 2% larger than student."]


@pytest.mark.parametrize("kind", ["prune", "lowrank"])
@pytest.mark.parametrize("macs", [1000, 1200])
def test_a_stage_for_fewer_macs_that_saved_none_is_told(kind, macs):
    assert _told(kind=kind, macs=macs) == ["No fewer MACs than student."]


@pytest.mark.parametrize("kind", ["recover", "export", "quantize"])
def test_other_stages_may_keep_the_macs(kind):
    assert _told(kind=kind, macs=1000) == []


def test_a_student_is_held_against_the_same_net_from_scratch_and_not_against_the_teacher():
    teacher = _row("teacher", "teacher", top1_val=99.0, top1_test=99.0)
    scratch = _row("scratch", "scratch", top1_val=96.0, top1_test=96.0)
    student = _row("student", "student", top1_val=95.0)
    assert words.problems([teacher, student]) == [[], []]
    told = words.problems([teacher, scratch, student])
    assert told == [[], [], ["1.0 points lower on validation than scratch: 95.00 % after 96.00 %."]]


def test_a_stage_of_a_model_that_is_no_row_is_held_against_nothing():
    assert words.problems([_row("teacher", "teacher"), _row("01-prune", "prune", top1_val=90.0)]) == [[], []]


def test_unknown_values_are_no_problem(sparse):
    assert words.problems(sparse["rows"]) == [[]] * len(sparse["rows"])


def test_the_made_up_report_says_what_its_rows_say(report):
    told = words.problems(report["rows"])
    assert [set(row["notes"]) - set(notes) for row, notes in zip(report["rows"], told, strict=True)] == [set()] * len(
        told
    )


def test_headline(report):
    assert words.headline(report) == (
        "The deployed model 06-quantize takes 74.3 kB and reaches 96.67 % top-1 on test against the teacher's 98.06 %: "
        "15.9× fewer MACs, 33.3× smaller file, 5.08× faster at batch 1, 10.1× faster at batch 32."
    )


def test_headline_admits_what_became_worse(report):
    report["rows"][-1]["ratios"] |= {"macs": 0.5, "file_bytes": 0.8, "latency_batch1": 0.25}
    assert "2.00× more MACs, 1.25× larger file, 4.00× slower at batch 1" in words.headline(report)


def test_headline_of_what_is_not_there(report, sparse):
    assert words.headline(sparse) == "06-quantize takes – and reaches – top-1 on test."
    assert words.headline(report | {"rows": []}) == "Nothing was measured."
    assert (
        words.headline(report | {"rows": report["rows"][:1]})
        == "teacher takes 2.48 MB and reaches 98.06 % top-1 on test."
    )


def test_environment_in_words(report):
    told = dict(words.about_environment(report))
    assert told["packages"] == "torch 2.14.1, timm 1.0.31, onnxruntime 1.32.0, tensorly –"
    assert told["git modified"] == "yes"
    assert told["accelerators"] == "none"


def test_data_in_words(report):
    assert words.about_data(report).startswith(
        "digits: grey images of 8 × 8 pixels in 10 classes; 1,149 to train on, 288 "
    )
