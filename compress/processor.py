"""What a latency was measured on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> tuple[str, set[str]]:
    """The processor's name and what it can do, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    pairs = (line.partition(":") for line in path.read_text().splitlines()) if path.exists() else ()
    entries = {name.strip(): value.strip() for name, _, value in pairs}
    name = entries.get("model name") or platform.processor() or platform.machine()
    return name, set(entries.get("flags", entries.get("Features", "")).split())
