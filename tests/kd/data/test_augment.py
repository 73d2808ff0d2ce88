"""Each batched operation against one image at a time, and what their numbers look like."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kd.data import Augment
from kd.data.augment import STRONG, Draw, augmented, beta_quantile, crop, erase, flip, mixed, resized_crop
from kd.data.counter import Stream, uniform

EVERYTHING = Augment(crop=2, flip=True, scale=(0.3, 1.0), erase=0.5)


def images(count: int, channels: int = 3, height: int = 9, width: int = 7) -> Tensor:
    return torch.randint(0, 256, (count, channels, height, width), generator=torch.Generator().manual_seed(0)).byte()


def naive_crop_flip(x: Tensor, pad: int, seed: int, draw: int, index: int) -> Tensor:
    """One image, pixel by pixel."""
    top, left = (int(u * (2 * pad + 1)) for u in uniform(2, seed, Stream.CROP, draw, torch.tensor([index]))[0].tolist())
    mirrored = uniform(1, seed, Stream.FLIP, draw, torch.tensor([index])).item() < 0.5
    channels, height, width = x.shape
    out = torch.zeros(x.shape)
    for c in range(channels):
        for row in range(height):
            for column in range(width):
                y = row + top - pad
                z = (width - 1 - column if mirrored else column) + left - pad
                if 0 <= y < height and 0 <= z < width:
                    out[c, row, column] = x[c, y, z].item()
    return out / 255


def test_crop_and_flip_equal_one_image_at_a_time() -> None:
    x, index = images(12), torch.arange(100, 112)
    batched = augmented(Augment(crop=2, flip=True), Draw(3, 5, index), x)
    for i in range(12):
        assert torch.equal(batched[i], naive_crop_flip(x[i], 2, 3, 5, 100 + i))


@pytest.mark.parametrize("config", [EVERYTHING, Augment(scale=(0.1, 0.5)), Augment(erase=1.0), Augment(crop=3)])
def test_pixels_do_not_depend_on_the_company(config: Augment) -> None:
    x, index = images(37), torch.arange(37)
    whole = augmented(config, Draw(0, 2, index), x)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    assert torch.equal(augmented(config, Draw(0, 2, index[order]), x[order]), whole[order])
    for size in (1, 5):
        parts = [augmented(config, Draw(0, 2, i), p) for i, p in zip(index.split(size), x.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("other", [(1, 2, 0), (0, 3, 0), (0, 2, 8)])
@pytest.mark.parametrize("config", [Augment(crop=3), Augment(scale=(0.3, 0.9)), Augment(erase=1.0)])
def test_seed_draw_and_index_all_matter(config: Augment, other: tuple[int, int, int]) -> None:
    x = images(8)
    seed, draw, first = other
    changed = augmented(config, Draw(seed, draw, torch.arange(first, first + 8)), x)
    assert not torch.equal(augmented(config, Draw(0, 2, torch.arange(8)), x), changed)


def test_switching_one_operation_on_leaves_the_numbers_of_the_others() -> None:
    x, draw = images(64), Draw(0, 0, torch.arange(64))
    plain = augmented(Augment(crop=2, flip=True), draw, x)
    erased = augmented(Augment(crop=2, flip=True, erase=0.5), draw, x)
    same = (plain == erased).flatten(1).all(1)
    assert 16 < same.sum() < 48


def test_nothing_asked_nothing_done() -> None:
    x = images(4)
    assert torch.equal(augmented(Augment(), Draw(0, 0, torch.arange(4)), x), x.float() / 255)


def test_half_are_flipped() -> None:
    x = torch.arange(2).byte().view(1, 1, 1, 2).expand(4000, 1, 1, 2)
    share = flip(Draw(0, 0, torch.arange(4000)), x)[:, 0, 0, 0].float().mean()
    assert abs(share - 0.5) < 0.03


def test_crops_land_everywhere_equally_often() -> None:
    pad, count = 2, 10_000
    x = torch.zeros(count, 1, 5, 5, dtype=torch.uint8)
    x[:, 0, 2, 2] = 1
    place = crop(Draw(0, 0, torch.arange(count)), x, pad).flatten(1).argmax(1).bincount(minlength=25)
    assert place.min() > 0.8 * count / 25
    assert place.max() < 1.2 * count / 25


def test_a_resized_crop_of_everything_is_the_image() -> None:
    x = images(16, height=8, width=8).float() / 255
    areas_of_one = resized_crop(Draw(0, 0, torch.arange(16)), x, (1.0, 1.0))
    assert areas_of_one.shape == x.shape
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(500, 1, 8, 8)
    cropped = resized_crop(Draw(0, 0, torch.arange(500)), ramp, (1.0, 1.0))
    width = (cropped[:, 0, 0, 6] - cropped[:, 0, 0, 1]) / 5  # a step in the crop, in pixels of the image
    assert width.max() <= 1 + 1e-5
    assert width.min() > math.sqrt(3 / 4) - 1e-5


def test_resized_crops_have_the_areas_and_aspects_that_were_asked_for() -> None:
    size, count = 64, 2000
    ramp = torch.arange(float(size)).view(1, 1, 1, size).expand(count, 1, size, size)
    draw = Draw(0, 0, torch.arange(count))
    x = resized_crop(draw, torch.cat([ramp, ramp.transpose(2, 3)], 1), (0.2, 0.5))
    middle = slice(size // 4, size // 4 + 2)
    width = x[:, 0, 0, middle].diff(dim=1).squeeze(1)  # shares of the image's side
    height = x[:, 1, middle, 0].diff(dim=1).squeeze(1)
    area, aspect = width * height, width / height
    assert 0.199 < area.min() < 0.21
    assert 0.49 < area.max() < 0.501
    assert abs(area.mean() - 0.35) < 0.01
    assert 0.749 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.334
    assert abs((aspect > 1).float().mean() - 0.5) < 0.04
    assert x.min() >= 0
    assert x.max() <= size - 1


def test_erased_boxes_have_one_colour_and_a_sane_size_and_frequency() -> None:
    count, side = 2000, 32
    x = torch.full((count, 3, side, side), 2.0)
    out = erase(Draw(0, 0, torch.arange(count)), x, 0.25)
    changed = (out != 2).all(1)
    assert torch.equal(changed, (out != 2).any(1))
    hit = changed.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.25) < 0.03
    area = changed[hit].flatten(1).float().mean(1)
    assert area.min() > 0.008  # whole pixels round the 2 % down
    assert area.max() <= 0.33
    first = int(hit.nonzero()[0])
    assert len(out[first][:, changed[first]].unique(dim=1).T) == 1
    ys, xs = changed[first].nonzero(as_tuple=True)
    assert len(ys) == (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_beta_quantiles_have_the_moments_of_beta(alpha: float) -> None:
    share = beta_quantile(alpha, torch.arange(100_000) / 100_000).double()
    assert abs(share.mean() - 0.5) < 1e-3
    assert abs(share.var() - 1 / (4 * (2 * alpha + 1))) < 1e-3


def blends(config: Augment, count: int = 3000) -> tuple[Tensor, Tensor]:
    """Ones blended with zeros: the share of pixels and of labels that stays."""
    ones, zeros = torch.ones(count, 1, 16, 16), torch.zeros(count, 1, 16, 16)
    own = torch.tensor([[1.0, 0.0]]).expand(count, 2)
    x, y = mixed(config, Draw(0, 0, torch.arange(count)), ones, own, zeros, own.flip(1))
    torch.testing.assert_close(y.sum(1), torch.ones(count))
    return x, y[:, 0]


def test_mixup_blends_pixels_and_labels_alike() -> None:
    x, share = blends(Augment(mixup=0.5))
    torch.testing.assert_close(x, share[:, None, None, None].expand_as(x))
    assert abs(share.mean() - 0.5) < 0.02
    assert abs(share.var() - 1 / 8) < 0.01


def test_cutmix_pastes_a_box_and_labels_by_its_area() -> None:
    x, share = blends(Augment(cutmix=1.0))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(x.mean((1, 2, 3)), share)
    cut = x[:, 0] == 0
    rows, columns = cut.any(2).sum(1), cut.any(1).sum(1)
    assert torch.equal(cut.sum((1, 2)), rows * columns)
    inside = (share > 0.7) & (cut[:, 1:-1, 1:-1].sum((1, 2)) == cut.sum((1, 2)))  # not clipped at the border
    assert (rows - columns)[inside].abs().max() <= 1  # square up to rounding
    assert 0.5 < share.mean() < 0.7  # uniform lambda, and clipped boxes cut less


def test_with_both_each_sample_tosses_a_coin() -> None:
    x, _ = blends(Augment(mixup=1.0, cutmix=1.0))
    flat = x.flatten(1)
    boxed = ((flat == 0) | (flat == 1)).all(1)
    assert abs(boxed.float().mean() - 0.5) < 0.03


def test_mixing_does_not_depend_on_the_company() -> None:
    config, index = Augment(mixup=0.4, cutmix=0.7), torch.arange(33)
    x, other = images(33).float(), images(33).flip(0).float()
    y = torch.eye(33)
    whole = mixed(config, Draw(0, 1, index), x, y, other, y.flip(0))
    for part in index.split(4):
        some = mixed(config, Draw(0, 1, part), x[part], y[part], other[part], y.flip(0)[part])
        assert torch.equal(some[0], whole[0][part])
        assert torch.equal(some[1], whole[1][part])


def test_it_runs_where_the_pixels_are() -> None:
    index, x = torch.arange(4, device="meta"), torch.empty(4, 3, 8, 8, dtype=torch.uint8, device="meta")
    assert augmented(EVERYTHING, Draw(0, 0, index), x).device.type == "meta"
    x = x.float()
    y = torch.empty(4, 2, device="meta")
    assert mixed(Augment(mixup=1.0, cutmix=1.0), Draw(0, 0, index), x, y, x, y)[0].device.type == "meta"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_strong_draw_changes_colours_and_greys_out_a_box(channels: int) -> None:
    x, index = images(20, channels), torch.arange(20)
    weak, strong = (augmented(Augment(), Draw(0, draw, index), x) for draw in (0, STRONG))
    assert torch.equal(weak, x / 255)
    assert strong.min() >= 0
    assert strong.max() <= 1
    grey = (strong == 0.5).all(1)
    for image, numbers in zip(range(20), uniform(5, 0, Stream.STRONG, STRONG, index), strict=True):
        rows, columns = grey[image].any(1).nonzero(), grey[image].any(0).nonzero()
        assert rows.max() - rows.min() + 1 >= 4
        assert columns.max() - columns.min() + 1 >= 3
        brightness, contrast, saturation = (0.4 + 1.2 * numbers[:3]).tolist()
        row, column = next((r, c) for r in range(9) for c in range(7) if not grey[image, r, c])
        pixel = [(min(v * brightness, 1) - 0.5) * contrast + 0.5 for v in weak[image, :, row, column].tolist()]
        if channels == 3:
            luma = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
            pixel = [luma + (v - luma) * saturation for v in pixel]
        expected = [min(max(v, 0.0), 1.0) for v in pixel]
        assert strong[image, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)
    parts = [augmented(Augment(), Draw(0, STRONG, i), p) for i, p in zip(index.split(3), x.split(3), strict=True)]
    assert torch.equal(torch.cat(parts), strong)
