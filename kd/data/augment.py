"""Batched augmentation: the pixels of a sample are a pure function of (seed, draw, index).

Only operations that IEEE arithmetic rounds exactly (no exp, no log) touch pixels and boxes: vectorised kernels may
round the others differently at the end of a batch than in its middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data.config import Augment
from kd.data.counter import Stream, uniform

_QUANTILES = 4096
STRONG = 1 << 20  # draws from here on are strong


@dataclass(frozen=True)
class Draw:
    """Which numbers a batch gets: index is (N,) and may lie on any device, where all that follows is computed."""

    seed: int
    draw: int
    index: Tensor

    def uniform(self, stream: Stream, count: int) -> Tensor:
        """(N, count) numbers in [0, 1)."""
        return uniform(count, self.seed, stream, self.draw, self.index)


def augmented(config: Augment, draw: Draw, x: Tensor) -> Tensor:
    """Augment each image by itself, strongly from draw STRONG on: (N, C, H, W) uint8 in, float in [0, 1] out."""
    if config.crop:
        x = crop(draw, x, config.crop)
    if config.flip:
        x = flip(draw, x)
    x = x.float() / 255
    if config.scale is not None:
        x = resized_crop(draw, x, config.scale)
    if config.erase:
        x = erase(draw, x, config.erase)
    return strengthen(draw, x) if draw.draw >= STRONG else x


def strengthen(draw: Draw, x: Tensor) -> Tensor:
    """Change brightness, contrast and saturation by factors from 0.4 to 1.6, and grey out a box of half the sides.

    What RandAugment (Cubuk et al. 2020) and Cutout (DeVries and Taylor 2017) do, as far as whole batches can have it.
    """
    height, width = x.shape[2:]
    numbers = draw.uniform(Stream.STRONG, 5)
    brightness, contrast, saturation = (0.4 + 1.2 * numbers[:, :3]).T[..., None, None, None]
    x = ((x * brightness).clamp(0, 1) - 0.5) * contrast + 0.5
    if x.shape[1] == 3:
        grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]
        x = grey + (x - grey) * saturation
    h, w = height // 2, width // 2
    top, left = (numbers[:, 3] * (height - h + 1)).floor(), (numbers[:, 4] * (width - w + 1)).floor()
    return x.clamp(0, 1).masked_fill(_box(top, top + h, left, left + w, height, width), 0.5)


def crop(draw: Draw, x: Tensor, pad: int) -> Tensor:
    """Pad with black and crop back at a random place (He et al. 2015, section 4.2)."""
    height, width = x.shape[2:]
    offset = (draw.uniform(Stream.CROP, 2) * (2 * pad + 1)).long()
    rows = offset[:, :1] + torch.arange(height, device=x.device)
    columns = offset[:, 1:] + torch.arange(width, device=x.device)
    places = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    places = places.flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return F.pad(x, (pad,) * 4).flatten(2).gather(2, places).view(x.shape)


def flip(draw: Draw, x: Tensor) -> Tensor:
    """Mirror left and right with probability 1/2."""
    return torch.where(draw.uniform(Stream.FLIP, 1)[:, :, None, None] < 0.5, x.flip(3), x)


def resized_crop(draw: Draw, x: Tensor, scale: tuple[float, float]) -> Tensor:
    """Enlarge a random part, bilinear, to the whole (Szegedy et al. 2014; aspect ratio from 3/4 to 4/3)."""
    height, width = x.shape[2:]
    area, aspect, coin, top, left = draw.uniform(Stream.RESIZED_CROP, 5).T
    h, w = _sides(scale[0] + (scale[1] - scale[0]) * area, 1 + aspect / 3, coin, height, width)
    ys = _places(top * (height - h), h, height)
    xs = _places(left * (width - w), w, width)
    shape = (len(x), height, width)
    grid = torch.stack([xs[:, None, :].expand(shape), ys[:, :, None].expand(shape)], 3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def erase(draw: Draw, x: Tensor, probability: float) -> Tensor:
    """Fill a random box of 2 to 33 % of the area with one random colour (Zhong et al. 2020)."""
    channels, height, width = x.shape[1:]
    numbers = draw.uniform(Stream.ERASE, 6 + channels)
    happens, area, aspect, coin, top, left = numbers[:, :6].T
    h, w = _sides(0.02 + 0.31 * area, 1 + 2.3 * aspect, coin, height, width)
    h, w = h.floor(), w.floor()
    y, x0 = (top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()
    box = _box(y, y + h, x0, x0 + w, height, width) & (happens < probability)[:, None, None, None]
    return torch.where(box, numbers[:, 6:, None, None], x)


def mixed(config: Augment, draw: Draw, x: Tensor, y: Tensor, other_x: Tensor, other_y: Tensor) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) of images and (N, classes) probabilities with partners."""
    coin, u, cy, cx = draw.uniform(Stream.MIX, 4).T
    whole = torch.ones_like(x[:, :1])
    ways = []
    if config.mixup:
        share = beta_quantile(config.mixup, u)
        ways.append((whole * share[:, None, None, None], share))
    if config.cutmix:
        ways.append(_cut(beta_quantile(config.cutmix, u), cy, cx, whole))
    (keep, share), (other_keep, other_share) = ways[0], ways[-1]
    keep = torch.where(coin[:, None, None, None] < 0.5, keep, other_keep)
    share = torch.where(coin < 0.5, share, other_share)[:, None]
    return keep * x + (1 - keep) * other_x, share * y + (1 - share) * other_y


def beta_quantile(alpha: float, u: Tensor) -> Tensor:
    """The u-quantile of Beta(alpha, alpha), from a table of 4096 steps."""
    return _beta_table(alpha).to(u.device)[(u * _QUANTILES).long()]


@lru_cache
def _beta_table(alpha: float) -> Tensor:
    from scipy.special import betaincinv

    middles = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    return torch.from_numpy(betaincinv(alpha, alpha, middles.numpy())).float()


def _cut(share: Tensor, cy: Tensor, cx: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """What a box of area 1 - share around (cy, cx), clipped to the image, leaves: a mask and its share of the area."""
    height, width = whole.shape[2:]
    side = (1 - share).sqrt()
    top, bottom = _interval(cy, side, height)
    left, right = _interval(cx, side, width)
    kept = whole.masked_fill(_box(top, bottom, left, right, height, width), 0)
    return kept, 1 - (bottom - top) * (right - left) / (height * width)


def _interval(centre: Tensor, side: Tensor, size: int) -> tuple[Tensor, Tensor]:
    low, high = (centre - side / 2) * size, (centre + side / 2) * size
    return low.round().clamp(min=0), high.round().clamp(max=size)


def _sides(area: Tensor, aspect: Tensor, coin: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(N,) heights and widths in pixels of boxes with a share of the area; aspect or 1 / aspect, by the coin."""
    aspect = torch.where(coin < 0.5, aspect, 1 / aspect)
    pixels = area * (height * width)
    return (pixels / aspect).sqrt().clamp(max=height), (pixels * aspect).sqrt().clamp(max=width)


def _places(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(N, size) centres of `size` equal cells in [start, start + length), in grid_sample's [-1, 1]."""
    cells = (torch.arange(size, device=start.device) + 0.5) / size
    return (start[:, None] + cells * length[:, None]) * 2 / size - 1


def _box(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """(N, 1, H, W) mask of the pixels inside."""
    ys, xs = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
    inside_y = (ys >= top[:, None]) & (ys < bottom[:, None])
    inside_x = (xs >= left[:, None]) & (xs < right[:, None])
    return inside_y[:, None, :, None] & inside_x[:, None, None, :]
