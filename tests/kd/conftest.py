import pytest
import torch
from torch import nn

from kd.data import Augment, DataConfig, load


@pytest.fixture(scope="session")
def digits():
    """A few of the embedded digits: 400 for training, no augmentation."""
    return load(DataConfig(train_size=400, augment=Augment()))


@pytest.fixture
def small_net():
    """A function that makes a small convolutional net for digits, the same for the same seed."""

    def make(seed=0, width=8, norm=True, dropout=0.0):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width) if norm else nn.Identity(), nn.ReLU()]
        layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * width, 10))

    return make
