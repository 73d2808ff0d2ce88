from __future__ import annotations

import dataclasses
import inspect
import typing

import pytest
import torch

import compress
from compress import Stage
from kd.errors import InputError


def test_calibration_images_are_unaugmented_training_images_drawn_by_the_seed(context, digits):
    images = context(calibration=5, seed=3).images()
    (pixels,) = digits.train.read([torch.arange(len(digits.train))])
    everything = pixels.float() / 255

    assert images.shape == (5, 1, 8, 8)
    assert all((everything == image).flatten(1).all(1).any() for image in images)
    assert torch.equal(images, context(calibration=5, seed=3).images())
    assert not torch.equal(images, context(calibration=5, seed=4).images())


def test_calibration_labels_are_those_of_the_images(context, digits):
    images, labels = context(calibration=5, seed=3).labelled()
    (pixels,) = digits.train.read([torch.arange(len(digits.train))])
    same = [(pixels.float() / 255 == image).flatten(1).all(1) for image in images]

    assert torch.equal(images, context(calibration=5, seed=3).images())
    assert all(label in digits.train.labels[where] for label, where in zip(labels, same, strict=True))
    assert labels.shape == (5,)


def test_calibration_takes_all_there_are_but_not_none(context, digits):
    assert len(context(calibration=10**6).images()) == len(digits.train)
    with pytest.raises(InputError, match=r"calibration: 0: .*at least one"):
        context(calibration=0).images()


def test_stages_are_frozen_and_recognised_by_recipes():
    """jsonargparse compares annotations literally."""
    protocol = inspect.signature(Stage.__call__)
    for name in ("Prune", "LowRank", "Recover", "Repeat", "Export", "Quantize"):
        stage = getattr(compress, name)
        assert inspect.signature(stage.__call__) == protocol, name
        assert dataclasses.is_dataclass(stage)
        assert stage.__dataclass_params__.frozen
        assert typing.get_type_hints(stage.__call__) == typing.get_type_hints(Stage.__call__), name
