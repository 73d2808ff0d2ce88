"""FT: translate the teacher's map, paraphrased before. Kim et al., Paraphrasing Complex Network: Network Compression
via Factor Transfer, 2018."""

from __future__ import annotations

import copy
import itertools

from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Batch, Facts, Needs, Outputs, Ports
from kd.errors import InputError
from kd.loss import Loss
from kd.losses.feature.maps import same_size
from kd.tensors import expect


def factor_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of (N, K, H, W) factors, those of each sample flattened and divided by their L2 norm.

    Of factors of unequal size the larger ones are average-pooled to the smaller before.
    """
    fits = student.dim() == teacher.dim() == 4 and student.shape[:2] == teacher.shape[:2]
    expect(fits, "(N, K, H, W) factors of the same N samples and K channels", student, teacher)
    ours, theirs = (F.normalize(x.flatten(1)) for x in same_size(student, teacher))
    return F.l1_loss(ours, theirs)


def translator(channels: int, factors: int) -> nn.Sequential:
    """From a map to its factors: three convolutions, also the first half of a paraphraser."""
    return _layers(nn.Conv2d, (channels, channels, factors, factors))


class Paraphraser(nn.Module):
    """An auto-encoder of (N, channels, H, W) maps through fewer channels, not through less space."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = translator(channels, factors)
        self.decoder = _layers(nn.ConvTranspose2d, (factors, factors, channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Paraphrase(Loss):
    """Mean squared error of a paraphraser of a teacher's stage map. Trains in a phase of its own, before `FT`.

    `ratio` is the share of the map's channels that its factors have. What the student says is not read.
    """

    def __init__(self, stage: int = -1, ratio: float = 0.5) -> None:
        super().__init__()
        if ratio <= 0:
            raise InputError("Paraphrase.ratio", ratio, "must be above 0")
        self.stage, self.ratio = stage, ratio
        self.needs = Needs(stages=(stage,))

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        self.channels = teacher.stages[self.stage][0]
        self.factors = max(1, round(self.ratio * self.channels))
        self.paraphraser = Paraphraser(self.channels, self.factors)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        stage = teacher.stages[self.stage].detach()
        return F.mse_loss(self.paraphraser(stage), stage)


class FT(Loss):
    """`factor_transfer` between a stage of the student, through a translator that trains along, and the factors that a
    trained paraphraser makes of the same stage of the teacher. In the paper beside cross-entropy with weight 500.

    `bind` copies the encoder of `paraphrase`, which must have been trained by then.
    """

    def __init__(self, paraphrase: Paraphrase) -> None:
        super().__init__()
        self.needs = paraphrase.needs
        self._paraphrase = (paraphrase,)  # no part of this module: its decoder is idle

    def bind(self, student: Ports, teacher: Ports, data: Facts) -> None:
        (paraphrase,) = self._paraphrase
        self.stage = paraphrase.stage
        if not hasattr(paraphrase, "paraphraser"):
            raise InputError("FT.paraphrase", "not trained", "must have had a phase of its own before")
        channels = teacher.stages[self.stage][0]
        if channels != paraphrase.channels:
            allowed = f"the teacher's map has {channels}"
            raise InputError("FT.paraphrase", f"paraphrases {paraphrase.channels} channels", allowed)
        self.encoder = copy.deepcopy(paraphrase.paraphraser.encoder).requires_grad_(False)
        self.translator = translator(student.stages[self.stage][0], paraphrase.factors)

    def forward(self, student: Outputs, teacher: Outputs, batch: Batch) -> Tensor:
        factors = self.encoder(teacher.stages[self.stage])
        return factor_transfer(self.translator(student.stages[self.stage]), factors)


def _layers(kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], widths: tuple[int, ...]) -> nn.Sequential:
    pairs = itertools.pairwise(widths)
    return nn.Sequential(*(x for a, b in pairs for x in (kind(a, b, 3, padding=1), nn.LeakyReLU(0.1))))
