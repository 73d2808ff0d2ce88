"""BatchNorm over the samples of all ranks, on any device: torch's own SyncBatchNorm raises on the CPU."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd.loss import gather, several


class GatheredBatchNorm(_BatchNorm):
    """In training it normalises by the mean and variance over the whole batch, with gradients to every rank's samples:
    two processes of N samples then are one of 2N. For tests: it sends whole activations around."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> GatheredBatchNorm:
        """With the parameters and statistics of another, which it shares."""
        options: dict[str, Any] = {name: getattr(norm, name) for name in ("eps", "momentum", "affine")}
        made = cls(norm.num_features, track_running_stats=norm.track_running_stats, **options)
        for name, value in (*norm.named_parameters(), *norm.named_buffers()):
            setattr(made, name, value)
        return made.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not several():
            return super().forward(input)
        return super().forward(gather(input)).chunk(dist.get_world_size())[dist.get_rank()]


def gathered(model: nn.Module) -> nn.Module:
    """`model`, each of its BatchNorms replaced by one over all ranks, in place."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, _BatchNorm):
            model.set_submodule(name, GatheredBatchNorm.of(norm))
    return model
