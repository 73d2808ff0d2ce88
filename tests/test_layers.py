"""How the packages stand to each other, as setup.cfg says it, and what importing them costs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_imports_only_go_down():
    done = python("from importlinter.cli import lint_imports; raise SystemExit(lint_imports())")
    assert done.returncode == 0, done.stdout


def test_what_is_slow_to_import_is_imported_where_it_is_used():
    """A command line has to answer before a zoo of models is loaded."""
    slow = ["timm", "torchvision", "onnx", "onnxruntime", "matplotlib", "sklearn", "datasets"]
    slow += ["torch_pruning", "tensorly"]
    code = "import sys, kd, students, teachers, compress, search, experiments.pipeline"
    done = python(f"{code}; print(*(name for name in {slow} if name in sys.modules))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
