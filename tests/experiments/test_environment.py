import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from experiments import environment


def test_it_is_json_and_says_what_matters():
    found = json.loads(json.dumps(environment.describe()))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["torch"].split(".")[0].isdigit()
    assert found["packages"]["onnxruntime"]
    assert found["cores"] == os.cpu_count()
    assert found["threads"] >= 1
    assert found["processor"]
    assert found["time"].endswith("+00:00")


def test_no_name_of_machine_or_person_and_no_path():
    text = json.dumps(environment.describe())
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    assert all(not value.startswith("/") for value in json.loads(text).values() if isinstance(value, str))
    user = getpass.getuser()
    assert f'"{user}"' not in text


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert environment.describe()["packages"] == {"no-such-package": None}


def test_the_revision_is_that_of_the_checkout_that_holds_the_package(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.invalid")
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    copy = tmp_path / "package" / "environment.py"
    copy.parent.mkdir()
    shutil.copy(environment.__file__, copy)
    monkeypatch.setattr(environment, "__file__", str(copy))
    assert environment.describe()["git"] is None
    assert environment.describe()["git_modified"] is None

    git("init", "-q")
    (tmp_path / "other").write_text("")
    git("add", "other")
    git("commit", "-q", "-m", "not the package")
    assert environment.describe()["git"] is None  # it lies in a checkout, but is no part of it

    git("add", "package")
    git("commit", "-q", "-m", "the package")
    found = environment.describe()
    assert found["git"] == git("rev-parse", "HEAD").stdout.strip()
    assert found["git_modified"] is False
    copy.write_text("# changed")
    assert environment.describe()["git_modified"] is True
