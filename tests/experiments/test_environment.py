from __future__ import annotations

import getpass
import importlib.metadata
import json
import platform
import shutil
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from experiments import environment


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The module as a tracked file of another repository."""
    file = tmp_path / "environment.py"
    shutil.copy(environment.__file__, file)
    monkeypatch.setattr(environment, "__file__", str(file))

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", "environment.py")
    git("commit", "-q", "-m", "first")
    return tmp_path, git


def test_says_what_a_result_depends_on():
    found = environment.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    for package in (
        "torch",
        "torchvision",
        "timm",
        "accelerate",
        "datasets",
        "optuna",
        "tensorly",
        "onnx",
        "onnxruntime",
    ):
        assert found[package] == importlib.metadata.version(package)
    assert found["processor"]
    assert found["cores"] >= 1
    assert found["threads"] >= 1
    assert found["memory_gib"] > 0.1
    assert datetime.now(UTC) - datetime.fromisoformat(found["time"]) < timedelta(minutes=1)


def test_names_no_machine_no_person_and_no_path():
    found = environment.describe()
    text = json.dumps(found)
    for path in (Path.cwd(), Path(environment.__file__).parent, Path(sys.prefix)):
        assert str(path) not in text
    words = text.replace('"', " ").replace(",", " ").split()
    assert socket.gethostname() not in words
    assert getpass.getuser() not in words


def test_a_missing_package_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert environment.describe()["no-such-package"] is None


def test_revision_of_a_checkout_and_whether_it_was_changed(checkout):
    folder, git = checkout
    found = environment.describe()
    assert found["git"] == git("rev-parse", "HEAD")
    assert found["git_modified"] is False
    (folder / "new.py").touch()
    assert environment.describe()["git_modified"] is True


def test_no_revision_where_the_package_only_lies_in_a_checkout(checkout, monkeypatch):
    folder, _ = checkout
    installed = folder / "site-packages" / "environment.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(environment, "__file__", str(installed))
    found = environment.describe()
    assert found["git"] is None
    assert found["git_modified"] is None
