from pathlib import Path

from experiments.methods import markdown
from kd.methods import METHODS

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_code_says():
    assert (ROOT / "docs/methods.md").read_text() == markdown(), "python -m experiments.methods > docs/methods.md"


def test_every_method_has_its_paper():
    rows = [line.strip("| ").split(" | ") for line in markdown().splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == list(METHODS)
    assert all(2012 < int(row[4]) < 2027 for row in rows[1:])
    asked = {row[0]: (row[6], row[7]) for row in rows}
    assert asked["CRD"] == ("logits, embedding", "no")
    assert asked["MLKD"] == ("logits, whole batch, 2 views", "yes")
    assert asked["KDCL"] == ("2 views", "no")
    assert asked["CSKD"] == ("pairs batches", "no")
