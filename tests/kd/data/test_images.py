from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kd.data.files import Listed
from kd.data.images import Form, Images, decode, survey
from kd.data.table import Encoded
from kd.errors import InputError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(values, dtype=np.uint8))


def table(items: list[Encoded]) -> Listed:
    return Listed(items, [f"image {i}" for i in range(len(items))], torch.zeros(len(items), dtype=torch.int64))


def form(channels: int, height: int, width: int, fitted: bool = False) -> Form:
    return Form(channels, (height, width), fitted, "image 0")


def looked(items: list[Encoded], image_size: int | None = None) -> Form:
    return survey([(table(items), torch.arange(len(items)))], image_size)


def test_bytes_paths_and_arrays_decode_alike(tmp_path: Path) -> None:
    image = grey([[0, 10, 20], [30, 40, 250]])
    image.save(tmp_path / "a.png")
    expected = torch.tensor([[[0, 10, 20], [30, 40, 250]]], dtype=torch.uint8)
    for source in (encoded(image), str(tmp_path / "a.png"), np.asarray(image)):
        assert torch.equal(decode(source, form(1, 2, 3), "it"), expected)


def test_grey_among_colour_has_three_equal_channels() -> None:
    pixels = decode(encoded(grey([[1, 2], [3, 4]])), form(3, 2, 2), "it")
    assert torch.equal(pixels, torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(3, 2, 2))


def test_channels_come_first_and_transparency_goes() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(2, 2, 4)
    image = encoded(Image.fromarray(pixels))
    assert torch.equal(decode(image, form(3, 2, 2), "it"), torch.from_numpy(pixels[:, :, :3]).permute(2, 0, 1))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    image = encoded(Image.fromarray(np.array([[0, 256, 0x8000, 0xFFFF]], dtype=np.uint16)))
    assert decode(image, form(1, 1, 4), "it").flatten().tolist() == [0, 1, 128, 255]


def test_a_photograph_lies_as_it_was_held() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to show
    image = encoded(grey([[0, 0, 255, 255]] * 2), exif=exif)
    assert looked([image]).size == (4, 2)
    assert decode(image, form(1, 4, 2), "it")[0, :, 0].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_a_set_is_grey_if_all_its_images_are(mode: str) -> None:
    items: list[Encoded] = [encoded(Image.new(mode, (4, 4)))] * 300
    assert looked(items).channels == 1
    assert looked([*items, encoded(Image.new("RGB", (4, 4)))]).channels == 3


def test_only_the_rows_in_use_are_looked_at() -> None:
    items: list[Encoded] = [encoded(Image.new("L", (4, 4))), b"no image", encoded(Image.new("RGB", (4, 4)))]
    assert survey([(table(items), torch.tensor([0]))], None).channels == 1


@pytest.mark.parametrize("side", [4, 8, 16])
def test_fitting_brings_the_shorter_side_to_size_and_crops_the_centre(side: int) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (8, 24), dtype=np.uint8)
    whole = Image.fromarray(wide).resize((3 * side, side), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(whole)[:, side : 2 * side].astype(np.int64))
    fitted = decode(wide, form(1, side, side, fitted=True), "it")[0].long()
    assert (fitted - expected).abs().max() <= 1
    upright = decode(wide.T.copy(), form(1, side, side, fitted=True), "it")[0].long()
    assert (upright.T - expected).abs().max() <= 1


def test_fitting_averages_when_it_shrinks() -> None:
    stripes = np.zeros((32, 32), dtype=np.uint8)
    stripes[:, ::2] = 200
    assert (decode(stripes, form(1, 4, 4, fitted=True), "it").float() - 100).abs().max() < 12


def test_unequal_sizes_name_two_images() -> None:
    images = Images(table([np.zeros((4, 4), np.uint8), np.zeros((6, 5), np.uint8)]), torch.arange(2), form(1, 4, 4))
    error = images.__getitems__([0, 1])
    assert isinstance(error, InputError)
    assert error.field == "data.image_size"
    assert "image 0 is 4x4 and image 1 is 5x6" in str(error)


def broken_images() -> dict[str, Encoded]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    return {
        "text": b"no image",
        "empty": b"",
        "missing": "/no/such/file.png",
        "jpeg cut short": encoded(noise, "JPEG")[:700],
        "png cut short": encoded(noise)[:900],
        "float": encoded(Image.fromarray(np.zeros((32, 32), np.float32)), "TIFF"),
    }


@pytest.mark.parametrize("kind", broken_images())
def test_a_broken_image_is_named(kind: str) -> None:
    with pytest.raises(InputError, match=r"data.source: image 7: is broken or no image"):
        decode(broken_images()[kind], form(3, 32, 32), "image 7")


def test_a_broken_header_is_named_while_looking_for_colour() -> None:
    with pytest.raises(InputError, match="image 1: is broken"):
        looked([np.zeros((4, 4), np.uint8), b"no image"])
    with pytest.raises(InputError, match="image 0: is broken"):
        looked([b"no image", np.zeros((4, 4), np.uint8)])
