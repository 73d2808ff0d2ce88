from pathlib import Path

from experiments.methods import markdown
from kd.methods import METHODS

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_code_says():
    assert (ROOT / "docs/methods.md").read_text() == markdown(), "python -m experiments.methods > docs/methods.md"


def rows():
    """The cells of each method's row by the names of their columns."""
    lines = [line.strip("| ").split(" | ") for line in markdown().splitlines() if line.startswith("| ")]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_every_method_has_its_paper_and_formula():
    assert list(rows()) == list(METHODS)
    for name, row in rows().items():
        assert name == "scratch" or 2012 < int(row["year"]) < 2027
        assert len(row["formula"]) > 20
    assert rows()["TAKD"]["paper"].startswith("Mirzadeh et al., Improved")
    assert "`kd`: Batch mean of T²·KL(softmax(teacher / T) ‖ softmax(student / T))" in rows()["KD"]["formula"]


def test_what_methods_ask_for():
    asked = {name: (row["phases"], row["reads"], row["soft labels"]) for name, row in rows().items()}
    assert asked["CRD"] == ("student", "logits, embedding", "no")
    assert asked["MLKD"] == ("student", "logits, whole batch, 2 views", "yes")
    assert asked["KDCL"] == ("student", "2 views", "no")
    assert asked["CSKD"] == ("student", "pairs batches", "no")
    assert asked["AB"] == ("initial, student", "logits, stages, maps before their activation", "yes")


def test_what_methods_cost():
    costs = {name: float(row["cost to KD's"].removesuffix("×")) for name, row in rows().items()}
    assert costs["KD"] == costs["DKD"] == 1
    assert costs["scratch"] < costs["KD"] < costs["TAKD"]
    assert costs["MLKD"] == 2, "two views"
    assert costs["FT"] > 1 + costs["FitNet"] / 10, "its paraphraser too"
