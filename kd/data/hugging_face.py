"""Parquet files and hub data sets: columns are found by their types, and stay encoded until an image is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kd.data.config import DataConfig
from kd.data.table import Encoded, Source
from kd.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_TEST_SPLITS = ("test", "validation", "valid", "val")
_READ_AT_ONCE = 1 << 30  # bytes; a larger parquet file goes through the library's cache on disk, and is mapped


@dataclass(frozen=True)
class Column:
    """The undecoded images of one part, as the library's {"bytes", "path"} dicts, and their labels."""

    part: str
    images: Dataset
    labels: Tensor

    def fetch(self, rows: list[int]) -> Sequence[Encoded]:
        (images,) = self.images[rows].values()
        return [image and (image["bytes"] or image["path"]) for image in images]

    def title(self, row: int) -> str:
        return f"{self.part} row {row}"


def hub(config: DataConfig) -> Source:
    """A data set of the Hugging Face hub, or of the library's cache. Raises InputError where there is none."""
    import datasets

    try:
        parts = datasets.load_dataset(config.source)
    except Exception as error:  # the library, its network and its parsers raise all kinds
        allowed = f"is no folder, and the hub does not give it ({error})"
        raise InputError("data.source", config.source, allowed) from error
    test = next((name for name in _TEST_SPLITS if name in parts), None)
    if "train" not in parts or test is None:
        allowed = f"needs the splits train and test (or validation), has {', '.join(parts)}"
        raise InputError("data.source", config.source, allowed)
    return _source(parts["train"], parts[test], config, config.source)


def parquet(folder: Path, config: DataConfig) -> Source:
    """A folder with train.parquet and test.parquet, with the library's types in the schema or without."""
    files = folder / "train.parquet", folder / "test.parquet"
    for file in files:
        if not file.is_file():
            raise InputError("data.source", str(file), "is missing: train.parquet and test.parquet are both needed")
    identity = " ".join(str(file.stat().st_size) for file in files)
    return _source(_read(files[0]), _read(files[1]), config, identity)


def _read(file: Path) -> Dataset:
    import datasets
    import pyarrow.parquet
    from datasets.table import InMemoryTable

    try:
        if file.stat().st_size > _READ_AT_ONCE:
            return datasets.Dataset.from_parquet(str(file))
        return datasets.Dataset(InMemoryTable(pyarrow.parquet.read_table(file)))
    except Exception as error:  # pyarrow and the library each have their own
        raise InputError("data.source", str(file), f"is no parquet file that can be read ({error})") from error


def _source(train: Dataset, test: Dataset, config: DataConfig, identity: str) -> Source:
    image = _find(train, "image_column", config.image_column, _is_image)
    label = _find(train, "label_column", config.label_column, _is_class, _is_integer, _is_string)
    for field, column in (("image_column", image), ("label_column", label)):
        if column not in test.features:
            raise InputError(f"data.{field}", column, f"is no column of the test part: {', '.join(test.features)}")
    values = _values(train, label)
    names, codes = _classes(train, label, values)
    return Source(
        Column("train", _undecoded(train, image), _encode("train", values, codes)),
        Column("test", _undecoded(test, image), _encode("test", _values(test, label), codes)),
        names,
        identity,
    )


def _find(dataset: Dataset, field: str, wanted: str | None, *kinds: Callable[[Any], bool]) -> str:
    """The wanted column, or the only one of the first kind that there is."""
    groups = [[name for name, feature in dataset.features.items() if fits(feature)] for fits in kinds]
    fitting = list(chain.from_iterable(groups))
    first = next(filter(None, groups), [])
    if wanted is None and len(first) == 1:
        return first[0]
    if wanted is not None and wanted in fitting:
        return wanted
    allowed = f"must be one of: {', '.join(fitting) or 'none fits'}; the columns are {', '.join(dataset.features)}"
    raise InputError(f"data.{field}", wanted, allowed)


def _is_image(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):  # what the library writes, without its types
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Image) or feature.dtype in ("binary", "large_binary")


def _is_class(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.ClassLabel)


def _is_integer(feature: Any) -> bool:
    return not _is_class(feature) and "int" in str(getattr(feature, "dtype", ""))


def _is_string(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _undecoded(dataset: Dataset, image: str) -> Dataset:
    import datasets

    return dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))


def _values(dataset: Dataset, label: str) -> list[Any]:
    return dataset.select_columns([label]).with_format("arrow")[:].column(0).to_pylist()


def _classes(train: Dataset, label: str, values: list[Any]) -> tuple[tuple[str, ...], dict[Any, int]]:
    """The classes' names, and the class of each value that a label may have."""
    feature = train.features[label]
    known = {value for value in values if value is not None}
    if _is_string(feature):
        return tuple(sorted(known)), {name: i for i, name in enumerate(sorted(known))}
    if _is_class(feature):
        names = tuple(feature.names)
    else:
        largest = max(known, default=-1)
        if largest >= len(values):
            raise InputError("data.label_column", label, f"holds no class numbers: {largest} in {len(values)} rows")
        names = tuple(map(str, range(largest + 1)))
    return names, {i: i for i in range(len(names))}


def _encode(part: str, values: list[Any], codes: dict[Any, int]) -> Tensor:
    for row, value in enumerate(values):
        if value not in codes:
            allowed = f"has label {value!r}, must be one of {len(codes)} classes, {' '.join(map(str, codes)):.60}"
            raise InputError("data.source", f"{part} row {row}", allowed)
    return torch.tensor([codes[value] for value in values], dtype=torch.int64)
