"""What the sweep says has to follow from what the runtime answers."""

import json

import pytest

from experiments import cli, deploy_zoo
from experiments.deploy_zoo import LOW, WHOLE, SweepConfig, examine, page
from experiments.sweep import NAMES
from kd.checkpoint import load_json, save_json


def row_of(name, way=WHOLE, **found):
    full = {"failed": {}, "pixels": 96, "scale": 0.5}
    told = {
        WHOLE: {"error": {"export": 2e-7, "static": 0.25, "dynamic": 0.125}, "bytes": {"export": 400, "static": 120}},
        LOW: {"error": {"export": 3e-7}, "layers": 7, "kept": 0.7},
    }
    return {"name": name, "way": way} | full | told[way] | found


def put(out, *rows):
    for row in rows:
        path = out / row["way"] / f"{row['name']}.json"
        save_json(path, row)


def test_a_small_net_deploys_in_every_way():
    told = []
    row = examine("cifar_resnet8", WHOLE, lambda row: told.append(row["doing"]))
    assert row["failed"] == {}
    assert told == ["build", "export", "static", "dynamic"]
    assert 0 < row["error"]["export"] < 1e-5
    assert all(0.001 < row["error"][mode] < 1 for mode in ("static", "dynamic"))
    assert all(0.2 < row["bytes"][mode] / row["bytes"]["export"] < 0.7 for mode in ("static", "dynamic"))

    row = examine("cifar_resnet8", LOW)
    assert row["failed"] == {}
    assert row["layers"] > 3
    assert row["kept"] == pytest.approx(0.7, abs=0.03)
    assert 0 < row["error"]["export"] < 1e-5


def test_a_runtime_that_answers_otherwise_is_found_out(monkeypatch):
    """Though Export itself lets it pass."""
    write = deploy_zoo.Export.write

    def other(export, model, data, path):
        write(export, model, data, path)
        return lambda x: model(x).detach() * 1.001

    monkeypatch.setattr(deploy_zoo.Export, "write", other)
    row = examine("cifar_resnet8", WHOLE)
    assert list(row["failed"]) == ["export"]
    assert row["failed"]["export"].startswith("the runtime differs by 1.0e-03")
    assert "static" not in row["error"], "nothing stands on a wrong file"


def test_what_a_stage_raises_is_what_the_row_says(monkeypatch):
    def broken(*given, **named):
        raise KeyError("Erf")

    monkeypatch.setattr(deploy_zoo, "quantized", broken)
    monkeypatch.setattr(deploy_zoo.Export, "write", lambda *given: given[3].write_bytes(b"x"))
    monkeypatch.setattr(deploy_zoo, "_hold_alike", lambda *given: None)
    assert examine("cifar_resnet8", WHOLE)["failed"] == {"static": "KeyError: 'Erf'", "dynamic": "KeyError: 'Erf'"}


def test_the_page_counts_what_holds_and_names_what_does_not(tmp_path):
    put(
        tmp_path,
        row_of("resnet18"),
        row_of("resnet18", LOW),
        row_of("vgg11", failed={"export": "InputError: no `einsum`"}, error={}, bytes={}),
        row_of("vgg11", LOW, failed={"lowrank": "no fewer MACs"}, error={}),
        row_of("densenet121", failed={"static": "the file is no smaller"}),
    )
    text = page(str(tmp_path), ["resnet18", "vgg11", "densenet121", "lcnet_035"])

    assert (
        "**2 of 4 families export right**, 1 quantise (static), 2 quantise (dynamic), 1 have still to be examined; "
        "1 factorise, 2 have still to be examined." in text
    )
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert lines[0] == (
        "| resnet | resnet18 | 96 | 0.5 | yes | 2.0e-07 | yes | 2.5e-01 | 0.30 | yes | 1.2e-01 | – | yes | 7 | 0.70 "
        "| 3.0e-07 |"
    )
    assert "| 0.5 | no: export | – | no: export | – | – | no: export | – | – | no: lowrank |" in lines[1]
    assert "| yes | 2.0e-07 | no: static | 2.5e-01 | 0.30 | yes |" in lines[2]
    assert lines[3] == "| mobilenetv3 | lcnet_035 |" + " – |" * 14
    assert "- `python -m experiments.deploy_zoo --model vgg11`: export: InputError: no 'einsum'\n" in text
    assert "- `python -m experiments.deploy_zoo --model vgg11 --ways '[lowrank]'`: lowrank: no fewer MACs\n" in text


def test_the_sweep_goes_on_where_it_was_stopped_and_one_model_is_examined_anew(tmp_path, capfd, monkeypatch):
    done = []
    monkeypatch.setattr(
        deploy_zoo, "alone", lambda name, way, out, limit: done.append((name, way)) or row_of(name, way)
    )
    put(tmp_path, row_of("resnet18"), row_of("vgg11", LOW, doing="export"))
    arguments = ["--out", str(tmp_path), "--models", "[resnet18,vgg11]", "--write", str(tmp_path / "page.md")]
    assert cli.run("deploy_zoo", SweepConfig, deploy_zoo.main, arguments) == 0
    assert done == [("vgg11", WHOLE), ("resnet18", LOW), ("vgg11", LOW)]
    assert (tmp_path / "page.md").read_text() == page(str(tmp_path), ["resnet18", "vgg11"])

    monkeypatch.setattr(deploy_zoo, "examine", lambda name, way, tell: row_of(name, way, layers=3))
    arguments = ["--out", str(tmp_path), "--model", "resnet18", "--ways", f"[{LOW}]"]
    assert cli.run("deploy_zoo", SweepConfig, deploy_zoo.main, arguments) == 0
    assert json.loads(capfd.readouterr().out) == row_of("resnet18", LOW, layers=3)
    assert load_json(tmp_path / LOW / "resnet18.json") == row_of("resnet18", LOW, layers=3)


def test_a_row_has_a_process_of_its_own(tmp_path):
    row = deploy_zoo.alone("no_such_net", WHOLE, str(tmp_path), 60)
    assert row["failed"]["start"].startswith("the process ended with 2: error: student.name: no_such_net")


@pytest.mark.parametrize("arguments", [("--model", "resnet19"), ("--limit", "0"), ("--ways", "[magic]")])
def test_what_makes_no_sweep_is_told_in_one_line(tmp_path, capfd, arguments):
    assert cli.run("deploy_zoo", SweepConfig, deploy_zoo.main, ["--out", str(tmp_path / "x"), *arguments]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_family_exports(name):
    assert not {"build", "export"} & examine(name, WHOLE)["failed"].keys()
