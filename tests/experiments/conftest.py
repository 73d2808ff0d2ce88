import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path):
    """Run `python -m experiments.<name> ...` in a process of its own, in an empty folder."""

    def run(name, *arguments, check=False, launcher=(), env=None, **options):
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"} | (env or {})
        start = [sys.executable, *(launcher or ("-m",)), f"experiments.{name}", *map(str, arguments)]
        done = subprocess.run(start, cwd=tmp_path, env=environment, capture_output=True, text=True, **options)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run
