"""`Data`: the batches that training and evaluation read, whatever the source and wherever the pixels are."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.batch import Demands, Facts, View
from kd.data.augment import STRONG, Draw, augmented, mixed
from kd.data.config import Augment, DataConfig
from kd.data.counter import Stream, permutation
from kd.data.split import Split, spread
from kd.errors import InputError

_PROBE = 256  # images that go into the fingerprint


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, split and ready to be read.

    Attributes:
        augment: what `config.augment` came to.
        notes: what a reader of results must know about the splits.
        identity: of the source's content.
    """

    config: DataConfig
    augment: Augment
    facts: Facts
    train: Split
    val: Split
    test: Split
    notes: tuple[str, ...]
    identity: str

    def steps(self, batch_size: int, demands: Demands = Demands()) -> int:  # noqa: B008 - frozen
        """Batches in an epoch: whole ones only, but at least one."""
        size = min(batch_size, len(self.train))
        if demands.order == "shuffled":
            return len(self.train) // size
        halves = len(self.train) // (size // 2) if size > 1 else 0
        return halves if demands.order == "pairs" else halves - 1

    def batches(
        self,
        epoch: int,
        *,
        batch_size: int,
        demands: Demands = Demands(),  # noqa: B008 - frozen
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> Iterator[tuple[View, ...]]:
        """This rank's slices of the epoch's global batches, from batch `start` on.

        The order is drawn from (seed, epoch), the pixels of sample i under a draw from (config.seed, draw, i).
        Raises InputError, at once, where the ranks cannot share batches or the demands exclude mixed labels.
        """
        if batch_size < 1 or batch_size % world:
            raise InputError("batch_size", batch_size, f"must be a positive multiple of the {world} processes")
        if demands.hard_labels and self.augment.mixes:
            raise InputError(
                "data.augment", "mixup or cutmix", "must be off: this regime is defined for hard labels only"
            )
        share = min(batch_size, len(self.train)) // world
        if demands.order != "shuffled" and (share % 2 or self.steps(batch_size, demands) < 1):
            raise InputError("fit.batch_size", share, "must be even, and fit twice into the data, for this regime")
        if not share:
            raise InputError("data.train_size", len(self.train), f"must be at least the {world} processes")
        blocks = self._blocks(epoch, share * world, demands, seed)[start:]
        round_ = epoch if self.augment.views is None else epoch % self.augment.views
        draws = list(range(round_ * demands.views, (round_ + 1) * demands.views))
        if demands.strong:
            draws[-1] += STRONG
        return self._views([torch.cat([part.chunk(world)[rank] for part in block]) for block in blocks], draws)

    def _blocks(self, epoch: int, size: int, demands: Demands, seed: int) -> list[tuple[Tensor, ...]]:
        """The epoch's global batches, each as the parts of which every rank gets its share."""
        order = permutation(len(self.train), seed, Stream.ORDER, epoch)
        if demands.order == "shuffled":
            return [(part,) for part in _whole(order, size)]
        halves = _whole(order, size // 2)
        if demands.order == "overlap":
            return list(itertools.pairwise(halves))
        partners = self._partners(permutation(len(self.train), seed, Stream.PAIR, epoch))
        return [(half, partners[half]) for half in halves]

    def _partners(self, order: Tensor) -> Tensor:
        """(size,) for each training sample the next one of its class in a random order; itself where it is alone."""
        partners = torch.empty_like(order)
        for label in self.train.labels.unique():
            members = order[self.train.labels[order] == label]
            partners[members] = members.roll(1)
        return partners

    def view(self, indices: Tensor, draw: int) -> View:
        """The view that `batches` gives of these (N,) positions in the training split under a draw."""
        ((view,),) = self._views([indices], [draw])
        return view

    def evaluation(
        self, name: Literal["train", "val", "test"], batch_size: int = 256, rank: int = 0, world: int = 1
    ) -> Iterator[View]:
        """This rank's contiguous part of a split, in order, not augmented; index is the position in that split."""
        split: Split = getattr(self, name)
        batches = torch.arange(len(split)).tensor_split(world)[rank].split(batch_size)
        batches = [batch for batch in batches if len(batch)]  # a rank may have none
        for index, pixels in zip(batches, split.read(batches), strict=True):
            yield View(pixels.float() / 255, split.labels[index], index, -1)

    def fingerprint(self) -> str:
        """Hex digest of all that determines indices, labels and pixels, the same in memory and streamed.

        Of the content it sees the source's identity, all labels and 256 training images.
        """
        config = asdict(replace(self.config, source="", augment=self.augment, in_memory=None, workers=0))
        sha = hashlib.sha256(json.dumps([self.identity, config, self.facts.names], sort_keys=True).encode())
        (pixels,) = self.train.read([spread(len(self.train), _PROBE)])
        for tensor in (pixels, self.train.labels, self.val.labels, self.test.labels):
            sha.update(str(tuple(tensor.shape)).encode())
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()

    def _views(self, batches: Sequence[Tensor], draws: Sequence[int]) -> Iterator[tuple[View, ...]]:
        size, seed = len(self.train), self.config.seed
        partners = [permutation(size, seed, Stream.PARTNER, draw) for draw in draws] if self.augment.mixes else []
        requests = (torch.cat([index, *(partner[index] for partner in partners)]) for index in batches)
        for index, pixels in zip(batches, self.train.read(requests), strict=True):
            own, *others = pixels.split(len(index))
            if not partners:
                yield tuple(self._alone(index, own, draw) for draw in draws)
                continue
            yield tuple(
                self._with_partners(self._alone(index, own, draw), self._alone(partner[index], other, draw))
                for draw, partner, other in zip(draws, partners, others, strict=True)
            )

    def _alone(self, index: Tensor, pixels: Tensor, draw: int) -> View:
        x = augmented(self.augment, Draw(self.config.seed, draw, index), pixels)
        return View(x, self.train.labels[index], index, draw)

    def _with_partners(self, view: View, other: View) -> View:
        y, other_y = (F.one_hot(part.y, self.facts.classes).float() for part in (view, other))
        draw = Draw(self.config.seed, view.draw, view.index)
        x, y = mixed(self.augment, draw, view.x, y, other.x, other_y)
        return view._replace(x=x, y=y)


def _whole(order: Tensor, size: int) -> list[Tensor]:
    """Parts of this size; what is left over is left out."""
    return list(order[: len(order) // size * size].split(size))
