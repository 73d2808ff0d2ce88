"""Single images: opening, colour, size. All that touches one image at a time is here, and runs in workers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from kd.data.table import Encoded, Table
from kd.errors import InputError

_GREY = ("1", "L", "LA", "I;16", "I;16B")  # PIL's modes


@dataclass(frozen=True)
class Form:
    """What every decoded image of a data set looks like.

    Attributes:
        channels: 1 or 3.
        size: (height, width).
        fitted: whether images of other sizes are brought to it (shorter side, then centre) or refused.
        example: the title of an image that has this size.
    """

    channels: int
    size: tuple[int, int]
    fitted: bool
    example: str


@dataclass(frozen=True)
class Images(torch.utils.data.Dataset):
    """Rows of a table, decoded when asked for, many at a time, as torch's DataLoader does.

    An image that cannot be used comes as the InputError that names it: a raised one would leave a worker as mere text.
    """

    table: Table
    rows: Tensor
    form: Form

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, positions: list[int]) -> Tensor | InputError:
        """(N, C, H, W) uint8."""
        rows = self.rows[positions].tolist()
        try:
            pairs = zip(rows, self.table.fetch(rows), strict=True)
            return torch.stack([decode(encoded, self.form, self.table.title(row)) for row, encoded in pairs])
        except InputError as error:
            return error


def survey(parts: Sequence[tuple[Table, Tensor]], image_size: int | None) -> Form:
    """The form of the images at these (table, rows): of the first one's size, or square; colour if any image is."""
    table, rows = parts[0]
    first = int(rows[0])
    title = table.title(first)
    height, width, _ = _pixels(table.fetch([first])[0], 3, title).shape
    channels = 3 if any(_any_colour(table, rows) for table, rows in parts) else 1
    return Form(channels, (image_size or height, image_size or width), image_size is not None, title)


def decode(encoded: Encoded, form: Form, title: str) -> Tensor:
    """One image as (C, H, W) uint8. Raises InputError that names it where it is broken or of another size."""
    pixels = _pixels(encoded, form.channels, title)
    height, width, _ = pixels.shape
    if (height, width) != form.size:
        if not form.fitted:
            first = f"{form.example} is {form.size[1]}x{form.size[0]}"
            raise InputError("data.image_size", None, f"must be set: {first} and {title} is {width}x{height} pixels")
        image = Image.fromarray(pixels.squeeze(2) if form.channels == 1 else pixels)
        pixels = np.array(ImageOps.fit(image, form.size[::-1], Image.Resampling.BILINEAR)).reshape(*form.size, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _any_colour(table: Table, rows: Tensor) -> bool:
    """Judged by the headers, up to the first that is."""
    for chunk in rows.split(256):
        listed = chunk.tolist()
        for row, encoded in zip(listed, table.fetch(listed), strict=True):
            try:
                if _open(encoded).mode not in _GREY:
                    return True
            except Exception as error:
                raise _broken(table.title(row)) from error
    return False


def _pixels(encoded: Encoded, channels: int, title: str) -> np.ndarray:
    """(H, W, channels) uint8, upright."""
    try:
        image = _open(encoded)
        if image.mode.startswith("I;16"):  # PIL would clip 16 bits at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError("pixels of 32 bits have no known range")
        ImageOps.exif_transpose(image, in_place=True)
        mode = "L" if channels == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        return np.array(image).reshape(image.height, image.width, channels)
    except Exception as error:  # a decoder raises whatever a broken file leads it to
        raise _broken(title) from error


def _open(encoded: Encoded) -> Image.Image:
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded)
    return Image.open(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded)


def _broken(title: str) -> InputError:
    return InputError("data.source", title, "is broken or no image")
