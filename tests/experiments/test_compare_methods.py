import json
import statistics

import pytest

from experiments import cli, compare_methods
from experiments.compare_methods import CompareConfig

SMALL = [
    *("--data.train_size", "128", "--teacher.architecture", "cifar_resnet8", "--teacher.fit.epochs", "1"),
    *("--teacher.fit.warmup_epochs", "0", "--student.name", "cifar_resnet8", "--student.width", "0.5"),
    *("--fit.epochs", "1", "--fit.warmup_epochs", "0"),
]


def run(capfd, *arguments):
    status = cli.run("compare_methods", CompareConfig, compare_methods.main, [*SMALL, *map(str, arguments)])
    return status, *capfd.readouterr()


def test_methods_are_compared_over_seeds_and_the_comparison_resumes(capfd, tmp_path):
    arguments = ("--out", tmp_path / "run", "--methods", "KD,DML", "--seeds", "0,1")
    status, shown, _ = run(capfd, *arguments)
    assert status == 0
    rows = json.loads((tmp_path / "run/methods.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "scratch", "KD", "DML"]
    assert [row["seeds"] for row in rows] == [1, 2, 2, 2]
    assert rows[0]["agreement"] == [100]
    assert rows[2]["seconds_ratio"] == 1
    assert rows[3]["seconds_ratio"] == rows[3]["seconds"] / rows[2]["seconds"]
    written = (tmp_path / "run/methods.md").read_text()
    for row in rows[1:]:
        spread = f"{statistics.mean(row['top1_test']):.2f} ± {statistics.stdev(row['top1_test']):.2f}"
        assert f"| {row['name']} |" in written
        assert spread in written
        assert row["name"] in shown
    assert (tmp_path / "run/methods.png").read_bytes().startswith(b"\x89PNG")
    _, again, news = run(capfd, *arguments)
    assert again == shown
    assert "starts" not in news


def test_a_loss_of_ones_own_stands_beside_the_methods(capfd, tmp_path):
    """Of the same terms as KD's it trains the same student."""
    terms = {
        "KD": {"loss": {"class_path": "kd.losses.KD", "init_args": {"temperature": 4.0}}, "weight": 0.9},
        "CrossEntropy": {"loss": {"class_path": "kd.losses.CrossEntropy"}, "weight": 0.1},
    }
    light = {"kd": terms["KD"] | {"weight": 0.0}}
    words = ("--methods", "KD", "--own", json.dumps({"mine": terms, "light": light}), "--seeds", "0")
    assert run(capfd, "--out", tmp_path / "run", *words)[0] == 0
    weights = [(tmp_path / f"run/{name}/seed-0/model.safetensors").read_bytes() for name in ("KD", "mine", "light")]
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize("name", ["KD", "scratch", "teacher", "a/b", ".."])
def test_an_own_method_needs_a_name_of_its_own(capfd, tmp_path, name):
    terms = {"kd": {"loss": {"class_path": "kd.losses.KD"}}}
    status, _, errors = run(capfd, "--out", tmp_path / "run", "--own", json.dumps({name: terms}))
    assert status == 2
    assert errors.strip().splitlines()[-1].startswith(f"error: own: {name}: ")


def test_an_own_method_needs_a_loss(capfd, tmp_path):
    status, _, errors = run(capfd, "--out", tmp_path / "run", "--own", '{"mine": {}}')
    assert status == 2
    assert "a method needs a loss" in errors


def test_methods_of_several_nets_and_phases(capfd, tmp_path):
    others = "[{name: cifar_resnet14, width: 0.5}]"
    arguments = ("--methods", "DML,TAKD,AB", "--seeds", "0", "--others", others, "--fit.epochs", "2")
    status, _, errors = run(capfd, "--out", tmp_path / "run", *arguments)
    assert status == 0, errors
    ranking = json.loads((tmp_path / "run/DML/seed-0/step.json").read_text())["details"]["ranking"]
    assert sorted(ranking) == ["peer0", "peer1"]
    assert list(ranking.values()) == sorted(ranking.values(), reverse=True)
    shipped = json.loads((tmp_path / "run/DML/seed-0/blueprint.json").read_text())["name"]
    assert shipped == {"peer0": "cifar_resnet8", "peer1": "cifar_resnet14"}[next(iter(ranking))]
    assert (tmp_path / "run/TAKD/seed-0/assistant-1/metrics.jsonl").exists()
    assert (tmp_path / "run/AB/seed-0/initial/metrics.jsonl").exists()


def test_a_method_that_cannot_work_is_told_before_any_trains(capfd, tmp_path):
    status, _, errors = run(capfd, "--out", tmp_path / "run", "--methods", "KD,FSP,TAKD", "--fit.epochs", "2")
    assert status == 2
    assert errors.strip().splitlines()[-1].startswith("error: FSP.stages: ")
    assert not (tmp_path / "run/KD").exists()


@pytest.mark.parametrize(("field", "value"), [("methods", "KD,Magic"), ("seeds", "0,one")])
def test_what_is_no_method_or_seed_is_refused(capfd, tmp_path, field, value):
    status, _, errors = run(capfd, "--out", tmp_path / "run", f"--{field}", value)
    assert status == 2
    assert errors.strip().splitlines()[-1].startswith(f"error: {field}: ")
    assert not (tmp_path / "run").exists()


def test_a_method_that_diverges_is_told_and_the_others_go_on(capfd, tmp_path):
    arguments = ("--out", tmp_path / "run", "--methods", "FitNet,KD", "--seeds", "0", "--fit.lr", "1e4")
    status, _, news = run(capfd, *arguments)
    assert status == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "run/methods.json").read_text())["rows"]}
    assert rows["FitNet"]["diverged"] == 1
    assert rows["FitNet"]["top1_test"] == []
    assert "FitNet (1 diverged) | – | – | – |" in (tmp_path / "run/methods.md").read_text()
    assert "NaN or infinite" in news


def test_two_processes_compare_as_one_and_show_one_table(command, tmp_path):
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "-m")
    arguments = ["--methods", "KD,FT,SimKD,DML", "--seeds", "0", *SMALL, "--fit.batch_size", "16"]
    done = command("compare_methods", "--out", "run", *arguments, launcher=launcher, check=True)
    rows = json.loads((tmp_path / "run/methods.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["teacher", "scratch", "KD", "FT", "SimKD", "DML"]
    assert done.stdout.count("top-1 test") == 1
    again = command("compare_methods", "--out", "run", *arguments, launcher=launcher, check=True)
    assert again.stdout == done.stdout
    assert "starts" not in again.stderr
