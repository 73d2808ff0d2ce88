"""What a user says about data, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass

from kd.errors import InputError


@dataclass(frozen=True)
class Augment:
    """Batched augmentation of the training split; what is off by default stays off.

    Attributes:
        crop: pixels of black padding before a random crop back to size (He et al. 2015).
        flip: mirror left and right, every second time.
        scale: range of the area of a random resized crop, as shares of the image (Szegedy et al. 2014).
        erase: probability that a random box is filled with one random colour (Zhong et al. 2020).
        mixup: alpha of mixup's Beta(alpha, alpha) (Zhang et al. 2018); 0 is off.
        cutmix: alpha of CutMix's Beta(alpha, alpha) (Yun et al. 2019); 0 is off. With both, each sample tosses a coin.
        views: epochs before the same draws come again, so that teacher outputs can be stored; None: they never do.
    """

    crop: int = 0
    flip: bool = False
    scale: tuple[float, float] | None = None
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    views: int | None = None

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are split.

    Attributes:
        source: "digits" (embedded), a folder with train.parquet and test.parquet, a folder with train/CLASS/IMAGE
            and test/ or val/ alike, or a Hugging Face hub name such as uoft-cs/cifar10.
        image_column, label_column: columns of a parquet or hub source; None: found by their types.
        image_size: resize the shorter side to it and crop the centre; None: images already have one size.
        val_fraction: share of the training part held out for validation, stratified.
        train_size: stratified subset of what then remains; None: all.
        seed: of the splits and of the augmentation.
        augment: None: what suits the source.
        in_memory: keep decoded images in memory; None: if they take at most 1 GiB.
        workers: processes that decode images.
    """

    source: str = "digits"
    image_column: str | None = None
    label_column: str | None = None
    image_size: int | None = None
    val_fraction: float = 0.15
    train_size: int | None = None
    seed: int = 0
    augment: Augment | None = None
    in_memory: bool | None = None
    workers: int = 2


def check(config: DataConfig) -> None:
    """Raise InputError for values that no data set allows."""
    _require("val_fraction", config.val_fraction, 0 < config.val_fraction < 1, "above 0 and below 1")
    _require("workers", config.workers, config.workers >= 0, "0 or more")
    for field in ("image_size", "train_size"):
        value = getattr(config, field)
        _require(field, value, value is None or value > 0, "1 or more")
    if config.augment is not None:
        _check_augment(config.augment)


def check_crop(augment: Augment, size: tuple[int, int]) -> None:
    """Raise InputError where a crop could miss an image of (height, width) altogether."""
    _require("augment.crop", augment.crop, augment.crop < min(size), f"below the image's shorter side, {min(size)}")


def _check_augment(augment: Augment) -> None:
    _require("augment.crop", augment.crop, augment.crop >= 0, "0 or more pixels")
    _require("augment.erase", augment.erase, 0 <= augment.erase <= 1, "from 0 to 1")
    _require("augment.views", augment.views, augment.views is None or augment.views > 0, "1 or more")
    for field in ("mixup", "cutmix"):
        _require(f"augment.{field}", getattr(augment, field), 0 <= getattr(augment, field) < float("inf"), "0 or more")
    if augment.scale is not None:
        low, high = augment.scale
        _require("augment.scale", augment.scale, 0 < low <= high <= 1, "two shares, 0 < low <= high <= 1")


def _require(field: str, value: object, allowed: bool, words: str) -> None:
    if not allowed:
        raise InputError(f"data.{field}", value, f"must be {words}")
