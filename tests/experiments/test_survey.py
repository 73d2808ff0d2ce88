import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints

import pytest

from experiments import cli, survey
from experiments.claims import CLAIMS, Claim, Figure, Setting
from experiments.survey import SurveyConfig, verdict
from kd.checkpoint import save_json

FOUND = {"failed": None, "commands": [], "environment": {}}


def run(*arguments):
    return cli.run("survey", SurveyConfig, survey.main, list(map(str, arguments)))


def row(*figures):
    return FOUND | {"figures": [vars(figure) for figure in figures]}


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([Figure("MB", 3.6, 3.63, less=True), Figure("times", 2.0, 1.5), Figure("%", 70.0)], "beaten"),
        ([Figure("MB", 3.63, 3.63, less=True), Figure("times", 2.0, 1.5)], "reached"),
        ([Figure("MB", 3.7, 3.63, less=True), Figure("times", 2.0, 1.5)], "not reached (3.70 MB for 3.63)"),
        ([Figure("MB", 3.6, 3.63, less=True), Figure("times", 1.4, 1.5)], "not reached (1.40 times for 1.50)"),
    ],
)
def test_a_row_is_as_good_as_the_worst_of_its_figures(figures, expected):
    assert verdict("squeezenet", row(*figures)).partition(", because")[0] == expected


def test_what_is_not_reached_has_a_reason():
    said = verdict("squeezenet", row(Figure("times", 48.0, 50)))
    assert said.endswith(f"because {CLAIMS['squeezenet'].why}")
    assert all(claim.why for claim in CLAIMS.values())


@pytest.mark.parametrize("name", CLAIMS)
def test_the_commands_are_such_that_their_parsers_take(name, tmp_path):
    for words in CLAIMS[name].commands(Setting("some/images", "some/weights", tmp_path)):
        module = importlib.import_module(words[2])
        kind = get_type_hints(module.main)["config"]
        parsed = cli.parser(words[2].partition(".")[2], kind).parse_args(cli._recipe_first(words[3:]))
        given = parsed.get("json") or parsed.out
        assert Path(given).parent == tmp_path


SMALL = {
    "mobilenetv2": ("--name", "cifar_resnet8", "--seconds", "1"),
    "alexnet-cp": ("--name", "cifar_vgg8", "--dense", "0.9", "--rounds", "2", "--seconds", "1"),
    "alexnet-coded": ("--name", "cifar_resnet8", "--densities", "[50,50,50,50,50,50,50,50,50,50]"),
    "resnet50-pruned": ("--name", "cifar_resnet20", "--seconds", "1", "--image_size", "32"),
}


@pytest.mark.parametrize("name", SMALL)
def test_figures_are_read_as_the_commands_leave_them(name, tmp_path, capsys):
    ((_, _, module, *words),) = CLAIMS[name].commands(Setting("", None, tmp_path))
    module = importlib.import_module(module)
    kind = get_type_hints(module.main)["config"]
    assert cli.run(module.__name__.partition(".")[2], kind, module.main, [*words, *SMALL[name]]) == 0
    figures = CLAIMS[name].read(tmp_path)
    assert figures
    assert all(0 < figure.value < 1e4 and figure.published for figure in figures)


def test_spatial_factors_are_told_beside_the_whole_net(tmp_path):
    whole = {"technique": "whole", "val": 80.0, "test": 78.0, "ms": {"torch": {"batch1": 3.0}}}
    small = {"technique": "spatial factors", "val": 79.5, "test": 76.5, "ms": {"torch": {"batch1": 2.0}}}
    save_json(tmp_path / "techniques/table.json", {"rows": [whole, small]})
    assert [figure.value for figure in CLAIMS["jaderberg"].read(tmp_path)] == [0.5, 1.5, 1.5]


def test_the_gain_of_the_tutorial_is_taken_seed_by_seed(tmp_path):
    said = {"teacher": [70.0], "scratch": [60.0, 62.0, 64.0], "tutorial": [61.0, 64.0, 64.0], "KD": [59.0, 61.0, 63.0]}
    told = {"rows": [{"name": name, "top1_test": values} for name, values in said.items()]}
    save_json(tmp_path / "methods/methods.json", told)
    *scores, gain, other = CLAIMS["tutorial"].read(tmp_path)
    assert [score.value for score in scores] == [70.0, 62.0, 63.0]
    assert (gain.value, gain.published) == (1.0, pytest.approx(70.56 - 70.33))
    assert str(gain) == "1.00 ± 1.00 points gained"
    assert (other.value, other.published) == (-1.0, None)


@pytest.fixture
def claims(monkeypatch):
    """Two rows whose commands are as quick as they are simple, and the words of each command that was run."""
    ran = []

    def read(folder):
        return [Figure("times", float((folder / "figure").read_text()), 2.0)]

    def claim(name):
        return Claim(name, lambda setting: [["python", "-m", name, str(setting.folder)]], read, "Here.", "of that")

    def started(words, **given):
        ran.append(words[3:])
        name, folder = words[-2:]
        if name == "bad":
            return SimpleNamespace(returncode=2)
        (Path(folder) / "figure").write_text("3")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(survey, "CLAIMS", {"good": claim("good"), "bad": claim("bad")})
    monkeypatch.setattr(subprocess, "run", started)
    made = {"git": "abc", "processor": "a processor", "cores": 2}
    versions = dict.fromkeys(("torch", "timm", "onnxruntime"), "1.0")
    monkeypatch.setattr(survey, "describe", lambda: made | {"packages": versions})
    return ran


def test_what_is_finished_is_not_run_again_and_what_failed_is(claims, tmp_path, capfd):
    page = tmp_path / "page.md"
    for _ in range(2):
        assert run("--out", tmp_path / "run", "--write", page) == 2
        assert capfd.readouterr().err.splitlines()[-1] == "error: rows: bad: not measured: bad ended with status 2"
    assert [words[-2] for words in claims] == ["good", "bad", "bad"]
    text = page.read_text()
    assert "| good | 3.00 times | beaten |" in text
    assert "| bad | – | not measured: bad ended with status 2 |" in text


def test_a_row_alone_leaves_the_others_on_the_page(claims, tmp_path, capfd):
    assert run("--out", tmp_path / "run", "--rows", "[good]") == 0
    assert "Still to be run: bad." in capfd.readouterr().out
    assert run("--out", tmp_path / "run", "--rows", "[bad]") == 2
    assert "| good | 3.00 times | beaten |" in capfd.readouterr().out


def test_an_unknown_row_is_refused_in_one_line(tmp_path, capfd):
    assert run("--out", tmp_path / "run", "--rows", "[magic]") == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_it_runs_as_a_command(tmp_path):
    words = [sys.executable, "-m", "experiments.survey", "--rows", "[squeezenet]", "--out", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "| SqueezeNet: 50× fewer parameters than AlexNet | 48.9 times fewer parameters |" in done.stdout


def test_a_page_that_cannot_be_written_is_refused_before_hours_of_work(claims, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert run("--out", tmp_path / "run", "--write", tmp_path / "file/page.md") == 2
    assert "cannot be written" in capfd.readouterr().err
    assert not claims
