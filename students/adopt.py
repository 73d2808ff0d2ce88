"""`adopt`: what a method ships, as a classifier whose blueprint rebuilds it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kd.errors import InputError
from kd.evaluate import inference
from kd.losses.feature.sim_kd import Reclassified
from students.classifier import Classifier
from students.edits import Reclassify, Replace, edit, shallow


def adopt(model: nn.Module) -> Classifier:
    """A classifier of the same answers: itself, or a student that SimKD gave the classifier of its teacher.

    The latter loses what no answer depends on any more, such as the classifier of its own; `model` stays as it is.
    Raises InputError for any other module: it knows no blueprint.
    """
    if isinstance(model, Classifier):
        return model
    if not isinstance(model, Reclassified) or not isinstance(model.net, Classifier):
        raise InputError("model", type(model).__name__, "only a students.Classifier knows its blueprint")
    made, first = shallow(model.net), model.projector[0]
    assert isinstance(first, nn.Conv2d)
    widths = [first.in_channels, first.out_channels, model.classifier.in_features]
    place = model.last and model.last._replace(module=model.last.module.removeprefix("net."))
    parts = {"projector": model.projector, "classifier": model.classifier}
    weights = {f"{part}.{name}": value for part in parts for name, value in parts[part].state_dict().items()}
    edit(made, [Reclassify(place, list(model.size), widths, model.classifier.out_features)], weights)
    return _without_idle(made)


def _without_idle(model: Classifier) -> Classifier:
    """The classifier without those modules that its answers neither depend on nor need to come about."""
    plan = model.blueprint
    shape = 1, plan.in_chans, plan.image_size, plan.image_size
    x = torch.linspace(0, 1, plan.in_chans * plan.image_size**2).view(shape).to(next(model.parameters()))
    for path in reversed(_idle(model.net, model.normalize(x))):  # from the end: each has to fit what still follows
        made = shallow(model)
        edit(made, [Replace(path, [])])
        if _agree(made, model, x):
            model = made
    return model


def _idle(net: nn.Module, x: Tensor) -> list[str]:
    """Paths of the modules, the outermost ones, that have parameters and give none of them a gradient."""
    net = copy.deepcopy(net).eval().requires_grad_(True)
    with torch.enable_grad():
        net(x).sum().backward()
    found: list[str] = []
    for path, module in net.named_modules():
        own = list(module.parameters())
        if own and all(p.grad is None for p in own) and not any(path.startswith(f"{outer}.") for outer in found):
            found.append(path)
    return found


def _agree(made: Classifier, model: Classifier, x: Tensor) -> bool:
    try:
        _idle(made.net, made.normalize(x))  # fails where the layer after a gap would write over the map
        with inference(made), inference(model):
            return torch.equal(made(x), model(x))
    except Exception:  # whatever a net raises whose unused branch no longer fits
        return False
