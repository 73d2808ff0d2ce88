"""`Regime`: who learns from whom. The single module that accelerate wraps."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from kd.batch import Batch, Demands, Facts, Needs, Outputs, Ports, Step, View


class Guide(Protocol):
    """Frozen knowledge: a live teacher, an ensemble or stored outputs, all called alike, under no_grad."""

    def __call__(self, view: View, needs: Needs) -> Outputs: ...

    def ports(self, data: Facts) -> Ports: ...


class Regime(nn.Module):
    """Students, objective and projections: whatever trains is below it, so that optimiser, device, DDP and checkpoint
    all see it. Guides are below nothing: see `Frozen`."""

    demands: Demands = Demands()

    def bind(self, data: Facts) -> None:
        """Build all that depends on shapes or data, once, before the optimiser is made."""

    def guide(self, batch: Batch) -> tuple[Outputs, ...]:
        """Frozen knowledge about the batch; called under no_grad, outside DDP."""
        return ()

    def forward(self, batch: Batch, guides: tuple[Outputs, ...]) -> Step:
        raise NotImplementedError(f"{type(self).__name__} trains nothing: override forward")

    def after_step(self, batch: Batch, step: Step) -> None:
        """Write banks and move momentum peers, after each batch but one whose optimiser step AMP skipped."""

    def candidates(self) -> dict[str, nn.Module]:
        """The models that could be shipped, by name, to be scored on validation; none in a phase before others."""
        raise NotImplementedError(f"{type(self).__name__} ships nothing: override candidates")

    def deploy(self, name: str | None = None) -> nn.Module:
        """The model that is shipped: the candidate called `name`, by default the first."""
        candidates = self.candidates()
        return candidates[name] if name is not None else next(iter(candidates.values()))


class Frozen:
    """Holds a guide outside nn.Module's registry and outside deep copies (an EMA must not copy the teacher)."""

    def __init__(self, guide: Guide) -> None:
        self.guide = guide

    def __deepcopy__(self, memo: dict[int, object]) -> Frozen:
        return self
