"""`Teacher`: one frozen model that answers as fast as it can, at its own resolution."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd import taps
from kd.batch import Facts, Needs, Outputs, Ports, View
from kd.checkpoint import digest
from kd.errors import InputError
from teachers.fold import folded


class Teacher:
    """A frozen copy of a model: evaluation mode, no gradient, channels last, BatchNorms folded.

    Answers `predict(x) -> logits` and, as a `kd.regimes` guide, `teacher(view, needs) -> Outputs`, on the device of
    the images. The model sees images in [0, 1] and normalises for itself.

    Args:
        model: any classifier; it is copied, so that the caller's is left as it was.
        image_size: resolution at which it works: other images are resized (bilinear, antialiased). None: as they come.
        channels: what it takes: 3 lets it see grey images too, the one channel repeated. None: as they come.
        fold: fold BatchNorms, where that changes the answers by less than 1e-4 of their scale.

    Attributes:
        model: the frozen copy, not folded: what ports, costs and parameter counts are read from.
    """

    def __init__(
        self, model: nn.Module, image_size: int | None = None, fold: bool = True, channels: int | None = None
    ) -> None:
        self.model = _frozen(model)
        self.image_size, self.channels = image_size, channels
        self._fold = fold
        self._swift: nn.Module | None = None

    def __call__(self, view: View, needs: Needs) -> Outputs:
        """Outputs about one view, without a graph; they may enter a student's graph as constants."""
        with torch.no_grad():
            x = self._adapt(view.x)
            return taps.read(self._network(x), x, needs)

    def predict(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] to (N, classes) logits."""
        with torch.no_grad():
            x = self._adapt(x)
            return self._network(x)(x)

    def ports(self, data: Facts) -> Ports:
        """The shapes on offer for images of this data set."""
        if self.channels is not None and data.channels not in (1, self.channels):
            raise InputError("data.channels", data.channels, f"the teacher takes {self.channels}")
        blank = self._adapt(torch.zeros(1, data.channels, *data.image_size, device=_device(self.model)))
        channels, size = blank.shape[1], (blank.shape[2], blank.shape[3])
        ports = taps.ports(self.model, channels, size)
        taps.ports(self._network(blank), channels, size)  # the folded net is read the same way, and found only once
        return ports

    def identity(self) -> str:
        """A digest of the weights, the structure and the resolution: what determines the answers."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return digest(tensors, f"{self.model} {getattr(self.model, 'blueprint', '')} {self.image_size} {self.channels}")

    def _adapt(self, x: Tensor) -> Tensor:
        return _adapted(x, self.image_size, self.channels).contiguous(memory_format=torch.channels_last)

    def _network(self, x: Tensor) -> nn.Module:
        """The net that answers, on the device of `x`: folded at the first look at a batch's shape."""
        if self._swift is None:
            # noise of a fixed seed, not x: whether folding is kept must not hang on which batch came first
            noise = torch.rand(2, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(_device(self.model))
            self._swift = folded(self.model, noise) if self._fold else self.model
        if _device(self._swift) != x.device:
            self._swift.to(x.device)
        return self._swift


class Adapted(nn.Module):
    """A classifier that sees images as a `Teacher` of the same arguments does: what is exported of such a teacher."""

    def __init__(self, model: nn.Module, image_size: int | None, channels: int | None) -> None:
        super().__init__()
        self.model, self.image_size, self.channels = model, image_size, channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images in [0, 1] to (N, classes) logits."""
        return self.model(_adapted(x, self.image_size, self.channels))


def _adapted(x: Tensor, image_size: int | None, channels: int | None) -> Tensor:
    if channels is not None and x.shape[1] == 1 < channels:
        x = x.expand(-1, channels, -1, -1)
    if image_size is not None and x.shape[-2:] != (image_size, image_size):
        size = (image_size, image_size)
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    return x


def _frozen(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    if any(each.dim() > 4 for each in (*copied.parameters(), *copied.buffers())):
        return copied  # torch has no such order of theirs
    return copied.to(memory_format=torch.channels_last)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters(), torch.zeros(())).device
