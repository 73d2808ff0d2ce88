from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _noise(seed: int, size: tuple[int, int] = (8, 8), colour: bool = True) -> bytes:
    """A PNG of (width, height)."""
    shape = (size[1], size[0], 3) if colour else (size[1], size[0])
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def noise() -> Callable[..., bytes]:
    """Makes a PNG from (seed, size, colour)."""
    return _noise


@pytest.fixture
def save_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes PART/CLASS/N.png for {part: {class: count}}, each image another noise."""

    def save(parts: dict[str, dict[str, int]], size: tuple[int, int] = (8, 8), colour: bool = True) -> Path:
        seed = 0
        for part, classes in parts.items():
            for name, count in classes.items():
                (tmp_path / part / name).mkdir(parents=True)
                for number in range(count):
                    (tmp_path / part / name / f"{number:03d}.png").write_bytes(_noise(seed, size, colour))
                    seed += 1
        return tmp_path

    return save
