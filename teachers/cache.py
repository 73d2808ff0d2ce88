"""`Cached`: a teacher whose answers are computed once for each augmented view of a sample, and then read from disk.

A folder, named by all that determines the answers, holds for each draw of the augmentation `draw-<n>.f32`, a row a
sample (logits, then the embedding where asked for), and `draw-<n>.marks`, the checksum of each chunk of rows. A row
counts only under a matching checksum: whatever a kill, a full disk or a flipped bit left behind is computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd.batch import Facts, Needs, Outputs, Ports, View
from kd.checkpoint import atomic_write
from kd.console import progress, say
from kd.data import Data
from kd.errors import InputError
from teachers.ensemble import Ensemble
from teachers.teacher import Teacher

CHUNK = 256  # rows
LOGITS = Needs()


class Cached:
    """The same callable as the teacher, answering from the store.

    A draw is computed whole at its first touch, in chunks of fixed samples: so the stored answers depend on draw and
    index alone, not on which batch asked first, and a run that was killed goes on bit for bit. They may differ from a
    live teacher's in the last bit, as batches of other sizes do. Processes that share the folder fill it in turn.

    Args:
        teacher: who answers what is not stored yet, and unaugmented images (draw -1).
        folder: below which the store is made.
        data: whose training samples are stored; its `augment.views` bounds the number of draws.
        needs: what is stored; the teacher answers what goes beyond it, live. Raises InputError for maps, which are too
            large to store.
    """

    def __init__(self, teacher: Teacher | Ensemble, folder: Path, data: Data, needs: Needs = LOGITS) -> None:
        if needs.maps:
            raise InputError("teacher.cache", "true", "maps are not stored: use a live teacher for these losses")
        if data.augment.views is None:
            raise InputError("data.augment.views", "null", "a store of teacher outputs needs a number of views")
        self.teacher, self.data, self.needs = teacher, data, Needs(embedding=needs.embedding)
        self.folder = folder / self._open(folder)
        self._draws: dict[int, np.ndarray] = {}

    def _open(self, folder: Path) -> str:
        """Write down all that determines the rows, and name the store by it."""
        ports = self.teacher.ports(self.data.facts)
        self._classes, self._embedding = ports.classes, ports.embedding if self.needs.embedding else 0
        manifest = json.dumps(
            {
                "version": 1,
                "data": self.data.fingerprint(),
                "teacher": self.teacher.identity(),
                "samples": len(self.data.train),
                "classes": self._classes,
                "embedding": self._embedding,
                "chunk": CHUNK,
            },
            indent=1,
        )
        name = hashlib.sha256(manifest.encode()).hexdigest()[:16]
        atomic_write(folder / name / "manifest.json", manifest)
        return name

    def __call__(self, view: View, needs: Needs) -> Outputs:
        if view.draw < 0 or needs.maps or needs.classifier or (needs.embedding and not self._embedding):
            return self.teacher(view, needs)
        rows = torch.from_numpy(self._rows(view.draw, view.x.device)[view.index.cpu().numpy()]).to(view.x.device)
        return Outputs(rows[:, : self._classes], rows[:, self._classes :] if needs.embedding else None)

    def predict(self, x: Tensor) -> Tensor:
        return self.teacher.predict(x)

    def ports(self, data: Facts) -> Ports:
        return self.teacher.ports(data)

    def identity(self) -> str:
        return self.teacher.identity()

    def fill(self, views: int = 1, device: torch.device | str = "cpu") -> None:
        """Compute all that is missing, for regimes that take `views` views a batch."""
        assert self.data.augment.views is not None
        draws = range(self.data.augment.views * views)
        with progress("teacher", len(draws)) as advance:
            for draw in draws:
                self._rows(draw, torch.device(device))
                advance(1, "")

    def _rows(self, draw: int, device: torch.device) -> np.ndarray:
        """(samples, columns) float32 rows of one draw, mapped from disk, computed and checked at the first touch."""
        if draw not in self._draws:
            with _alone(self.folder):
                self._draws[draw] = self._complete(draw, device)
        return self._draws[draw]

    def _complete(self, draw: int, device: torch.device) -> np.ndarray:
        samples = len(self.data.train)
        starts = range(0, samples, CHUNK)
        rows = _map(self.folder / f"draw-{draw}.f32", np.float32, (samples, self._classes + self._embedding))
        marks = _map(self.folder / f"draw-{draw}.marks", np.uint64, (len(starts),))
        for chunk, start in enumerate(starts):
            part = rows[start : start + CHUNK]
            if marks[chunk] == _mark(part):
                continue
            if marks[chunk]:
                say(f"stored teacher outputs of draw {draw} are torn: computing samples {start} and on again")
            view = self.data.view(torch.arange(start, start + len(part)), draw)
            with torch.autocast(device.type, enabled=False):  # whoever touches a draw first, the answers are the same
                answer = self.teacher(view._replace(x=view.x.to(device)), self.needs)
            columns = [answer.logits] if answer.embedding is None else [answer.logits, answer.embedding]
            part[:] = torch.cat(columns, 1).float().cpu().numpy()
            rows.flush()
            marks[chunk] = _mark(part)
        marks.flush()
        return rows


def _mark(rows: np.ndarray) -> np.uint64:
    return np.uint64(1 << 32 | zlib.crc32(rows.tobytes()))  # never 0, which a new file is full of


def _map(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """The file as an array, made to fit: what is missing reads as zeros."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with path.open("ab") as file:
        file.truncate(size)
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, not a signal at the first write
    return np.memmap(path, dtype, "r+", shape=shape)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of one that was killed."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
