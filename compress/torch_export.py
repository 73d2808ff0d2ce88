"""`TorchExport`: a classifier as one file of `torch.export`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from compress.exporter import FEW, Exporter, quiet
from compress.torch_model import TorchModel, sealed
from kd.data import Data
from kd.errors import InputError
from teachers.fold import folded

_TRACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")


@dataclass(frozen=True)
class TorchExport(Exporter[TorchModel]):
    """Write the model as a .pt2 file of `torch.export` and go on with that, on torch.

    It needs torch and none of this library: `torch.export.load("model.pt2").module()(images)`. What stays is what the
    graph reads: BatchNorms are folded where that changes nothing, weights that nothing reads are not written.
    """

    form, kind = "torch.export", TorchModel

    def content(self, model: nn.Module, images: Tensor, facts: dict[str, str], data: Data) -> bytes:
        return sealed(lean(program(folded(model, images[:FEW]), images), images), facts)


def program(model: nn.Module, images: Tensor, free: bool = True) -> ExportedProgram:
    """The graph of a module in evaluation mode, with a free batch size or for one image.

    Raises InputError where it has none.
    """
    shapes = ({0: Dim("batch", min=1, max=1 << 16)},) if free else None
    shown = images[:1].repeat(2 if free else 1, 1, 1, 1)  # of a free batch, one would be taken for a constant
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model, (shown,), dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises what it meets: its own errors, and those of the model
        why = f"torch.export cannot follow it: {' '.join(str(error).split())[:200]}"
        raise InputError("export", type(model).__name__, why) from error


def lean(found: ExportedProgram, images: Tensor, free: bool = True) -> ExportedProgram:
    """The same program without tensors that nothing reads, and without traces of the machine that it was made on."""
    module = found.module(check_guards=False)
    assert isinstance(module, GraphModule)
    module.graph.eliminate_dead_code()
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path in {name for name, _ in (*module.named_parameters(), *module.named_buffers())} - read:
        parent, _, name = path.rpartition(".")
        delattr(module.get_submodule(parent), name)
    module.recompile()
    made = program(module, images, free)
    for node in made.graph.nodes:
        for trace in _TRACES:
            node.meta.pop(trace, None)
    return made
