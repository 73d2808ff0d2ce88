"""What README and CONTRIBUTING show works as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import students

ROOT = Path(__file__).parents[1]


def blocks(document, language="python"):
    """The code blocks of a document, without the indentation of the list that they stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def file(document, name):
    """The block that begins with the name of its file."""
    return next(code for code in blocks(document) if code.startswith(f"# {name}\n"))


def python(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_loss_of_the_users_own_keeps_its_contract(tmp_path):
    (tmp_path / "my_losses.py").write_text(file("README.md", "my_losses.py"))
    contract = file("CONTRIBUTING.md", "test_my_losses.py")
    (tmp_path / "test_my_losses.py").write_text(contract)
    done = python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 8
    (tmp_path / "test_my_losses.py").write_text(contract.replace("1 - dot", "2 - dot"))
    assert python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider").returncode == 1


def test_a_regime_of_the_users_own_keeps_its_contract_and_trains(tmp_path):
    for name in ("my_regimes.py", "test_my_regimes.py", "train_mine.py"):
        (tmp_path / name).write_text(file("CONTRIBUTING.md", name))
    done = python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 8
    first = python(tmp_path, "train_mine.py")
    assert first.returncode == 0, first.stderr
    assert students.load(tmp_path / "runs/mine/student").blueprint.width == 0.25
    assert "epoch 1/2" in first.stderr
    assert "epoch 1/2" not in python(tmp_path, "train_mine.py").stderr, "it had been done"
    broken = file("CONTRIBUTING.md", "my_regimes.py").replace("Step(labels + mean", "Step(labels.detach()")
    (tmp_path / "my_regimes.py").write_text(broken)
    assert python(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider").returncode == 1


def test_the_example_of_the_library_runs(tmp_path):
    teacher = students.create("cifar_resnet8", num_classes=10, in_chans=1, image_size=8)
    students.save(teacher, tmp_path / "runs/digits/teacher")
    (code,) = (code for code in blocks("README.md") if code.startswith("import"))
    done = python(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    top1, cost = done.stdout.strip().split(maxsplit=1)
    assert 0 < float(top1) <= 100
    assert cost.startswith("Cost(params=")


def test_a_space_of_the_users_own_is_searched(tmp_path):
    (tmp_path / "my_space.py").write_text(file("docs/search.md", "my_space.py"))
    (command,) = (code for code in blocks("docs/search.md", "sh") if "my_space" in code)
    short = "--data.train_size 128 --teacher.fit.epochs 1 --teacher.fit.warmup_epochs 0 --search.fit.epochs 1"
    done = python(tmp_path, *command.split()[1:], *short.split(), "--search.trials", "2")
    assert done.returncode == 0, done.stderr
    trials = json.loads((tmp_path / "runs/mine/search/trials.json").read_text())["trials"]
    assert {"width", "depth", "loss", "weight", "kept"} <= trials[0]["suggested"].keys()
    assert list(tmp_path.glob("runs/mine/search/trials/*/model.onnx"))
