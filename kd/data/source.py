"""Finds the source that a configuration names."""

from __future__ import annotations

import re
from pathlib import Path

from kd.data import files, hugging_face
from kd.data.config import DataConfig
from kd.data.table import Source
from kd.errors import InputError

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def open_source(config: DataConfig) -> Source:
    """Labels are read, images are not. Raises InputError where there is no such source or it cannot be used."""
    source = _find(config)
    for part, table in (("train", source.train), ("test", source.test)):
        if table is not None and not len(table.labels):
            raise InputError("data.source", config.source, f"its {part} part holds no images")
    if len(source.train.labels.unique()) < 2:
        raise InputError("data.source", config.source, "needs images of at least 2 classes in its train part")
    return source


def _find(config: DataConfig) -> Source:
    if config.source == "digits":
        return files.digits()
    folder = Path(config.source).expanduser()
    if folder.is_dir():
        if (folder / "train.parquet").is_file() or (folder / "test.parquet").is_file():
            return hugging_face.parquet(folder, config)
        return files.image_folder(folder)
    if _HUB_NAME.fullmatch(config.source) and not folder.exists():
        return hugging_face.hub(config)
    allowed = "is neither digits nor a folder nor a Hugging Face hub name (owner/name)"
    raise InputError("data.source", config.source, allowed)
