"""`Encode`: a model as one small file, in which clustered weights take as few bits as their frequencies allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import students
from compress.coded_model import CodedModel, write
from compress.coding import Coded
from compress.entropy import Coder, check_installed
from compress.stage import Artefact, Context, Report
from kd.errors import InputError


@dataclass(frozen=True)
class Encode:
    """Write the model as a coded file and go on with it: the last stage, for whoever stores or sends models.

    The file holds the blueprint and every bit of the weights. Of a layer with zeros it tells where the others are, of
    one whose weights take few values (`Cluster`) which of them they are; see docs/coding.md.

    Attributes:
        coder: "zstd", or "range" for streams that it makes smaller: about 1% less than zstandard, for readers that
            have the extra `coding` too.
    """

    coder: Coder = "zstd"

    def __post_init__(self) -> None:
        if self.coder not in get_args(Coder):
            raise InputError("encode.coder", self.coder, f"must be one of {', '.join(get_args(Coder))}")
        check_installed(self.coder)

    def __call__(self, model: Artefact, context: Context) -> tuple[Artefact, Report]:
        """Raises InputError for a model that is a file already, and for a coder that is not installed."""
        if not isinstance(model, students.Classifier):
            raise InputError("stages", "encode", "must come before export, and once: it codes a model, not a file")
        path = context.folder / CodedModel.file
        tensors = write(model, path, self.coder)
        details = told(tensors, path.stat().st_size)
        try:
            coded = CodedModel(path)
        except InputError:  # what the blueprint does not rebuild
            path.unlink()
            raise
        return coded, Report("encode", _notes(details), details)


def told(tensors: Sequence[Coded], file_bytes: int) -> dict[str, Any]:
    """What a file of these tensors came to, as JSON: bytes in all, and of each weight that is clustered or sparse."""
    whole = sum(each.plain for each in tensors)
    weights = [each for each in tensors if len(each.record["shape"]) > 1 and each.nonzero]
    layers = {each.record["name"]: _row(each) for each in weights if {"form", "bits"} & each.record.keys()}
    bound = file_bytes + sum(each.bound - each.size for each in tensors)
    return {
        "file_bytes": file_bytes,
        "plain_bytes": whole,
        "ratio": whole / file_bytes,
        "bound_ratio": whole / bound,
        "layers": layers,
    }


def _row(each: Coded) -> dict[str, Any]:
    positions, values = (
        sum(each.record[part][2] for part in parts if part in each.record)
        for parts in (("positions",), ("values", "table", "indices"))
    )
    return {
        "entries": each.entries,
        "density": each.nonzero / each.entries,
        "clusters": each.clusters,
        "positions_bytes": positions,
        "values_bytes": values,
        "bound_bytes": each.bound,
        "coders": sorted({each.record[part][0] for part in ("positions", "indices", "values") if part in each.record}),
    }


def _notes(details: dict[str, Any]) -> tuple[str, ...]:
    size, whole = details["file_bytes"], details["plain_bytes"]
    notes = [
        f"The file takes {size} bytes in the place of {whole}, {details['ratio']:.1f} times fewer. Entropy coding "
        f"shrinks the file, not memory or latency: decoded, the model takes {whole} bytes again, and as long as before."
    ]
    if not any(layer["clusters"] for layer in details["layers"].values()):
        notes.append(
            "No layer is clustered, so weights are stored in full: `Cluster` before it makes the file smaller."
        )
    return tuple(notes)
