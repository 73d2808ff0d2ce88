"""Sources without a library of data sets: the embedded digits and image folders."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kd.data.table import Encoded, Source
from kd.errors import InputError

_TEST_FOLDERS = ("test", "val")


@dataclass(frozen=True)
class Listed:
    """A table of items and their titles."""

    items: Sequence[Encoded]
    titles: Sequence[str]
    labels: Tensor

    def fetch(self, rows: list[int]) -> list[Encoded]:
        return [self.items[row] for row in rows]

    def title(self, row: int) -> str:
        return self.titles[row]


def digits() -> Source:
    """1797 grey 8x8 digits (Alpaydin and Kaynak 1998), as scikit-learn embeds them; no test part."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = (loaded.images * (255 / 16)).round().astype("uint8")
    titles = [f"digit {row}" for row in range(len(pixels))]
    table = Listed(list(pixels), titles, torch.from_numpy(loaded.target).long())
    return Source(table, None, tuple(map(str, loaded.target_names)), "digits")


def image_folder(folder: Path) -> Source:
    """train/CLASS/IMAGE and, where there is one, test/ or val/ alike. Raises InputError for another layout."""
    if not (folder / "train").is_dir():
        raise InputError("data.source", str(folder), "must hold train.parquet and test.parquet, or train/CLASS/IMAGE")
    names = _subfolders(folder / "train")
    if not names:
        raise InputError("data.source", str(folder / "train"), "holds no folder of a class")
    train = _files(folder / "train", names)
    test_folder = next((folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()), None)
    test = None if test_folder is None else _files(test_folder, names)
    files = [Path(path) for path in (*train.titles, *(test.titles if test is not None else ()))]
    sizes = "\n".join(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files)
    return Source(train, test, names, hashlib.sha256(sizes.encode()).hexdigest())


def _subfolders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _files(folder: Path, names: tuple[str, ...]) -> Listed:
    from PIL import Image

    endings = set(Image.registered_extensions())
    paths: list[str] = []
    labels: list[int] = []
    for name in _subfolders(folder):
        if name not in names:
            raise InputError("data.source", str(folder / name), f"is no class of the train part: {', '.join(names)}")
        found = sorted(str(path) for path in (folder / name).rglob("*") if path.suffix.lower() in endings)
        if not found:
            raise InputError("data.source", str(folder / name), "holds no images")
        paths += found
        labels += [names.index(name)] * len(found)
    return Listed(paths, paths, torch.tensor(labels, dtype=torch.int64))
