"""`create`: a model by name."""

from __future__ import annotations

from collections.abc import Sequence

from kd.errors import InputError
from students import zoo
from students.blueprint import Blueprint
from students.classifier import Classifier


def create(
    name: str,
    *,
    num_classes: int,
    in_chans: int = 3,
    image_size: int | None = None,
    width: float = 1.0,
    depth: float = 1.0,
    pretrained: bool = False,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Classifier:
    """A classifier of images in [0, 1].

    Args:
        name: of timm, of the CIFAR zoo (cifar_resnet20, ...) or of torchvision (tv_mobilenet_v3_small, ...).
        image_size: pixels a side; None: what the net was made for.
        width, depth: factors on channels and on blocks.
        pretrained: with the published weights; at width and depth 1 only.
        normalize: mean and std of pixels, a value a channel; None: those of the published weights, or none at all.

    Raises InputError for an unknown name, a factor that the net cannot take, images too small, weights not to be had.
    """
    known = zoo.published(name)
    if pretrained and (width, depth) != (1, 1):
        raise InputError("student.pretrained", True, "published weights fit width 1 and depth 1 only")
    if normalize is None:
        normalize = (known.mean, known.std) if pretrained and in_chans == len(known.mean) else ((0.0,), (1.0,))
    plan = Blueprint(
        name,
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=known.image_size if image_size is None else image_size,
        width=width,
        depth=depth,
        normalize=(tuple(normalize[0]), tuple(normalize[1])),
    )
    if not pretrained:
        return plan.build()
    return Classifier(zoo.net(name, num_classes, in_chans, plan.image_size, pretrained=True), plan)
