"""Where a run was made: versions, processor, revision. No name of a machine or a person, no path."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compress.processor import processor

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "accelerate",
    "datasets",
    "optuna",
    "tensorly",
    "torch-pruning",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
)
# What decides how fast int8 and bf16 are; ARM's dot products go by another name.
INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)


def describe() -> dict[str, Any]:
    """Versions, processor, threads, memory (GiB), git revision and the time (UTC), as JSON; None where unknown."""
    import torch

    name, flags = processor()
    revision = _revision()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{_system()}, {platform.machine()}",
        "processor": name,
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "accelerators": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
        "git": revision,
        "git_modified": None if revision is None else bool(_git("status", "--porcelain")),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _revision() -> str | None:
    """The commit of the checkout that this file is part of; an installed copy may lie in another one."""
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    return None if tracked is None else _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
