"""Images: sources, stratified splits, batched augmentation that is a pure function of (seed, draw, index)."""

from kd.data.config import Augment, DataConfig
from kd.data.data import Data
from kd.data.loading import load
from kd.data.split import Split

__all__ = ["Augment", "Data", "DataConfig", "Split", "load"]
