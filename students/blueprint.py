"""`Blueprint`: a model as data. With a file of weights it is the model, on any machine, without pickle."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields

import torch

from kd.errors import InputError
from students import edits as editing
from students import zoo
from students.classifier import Classifier
from students.edits import Edit
from students.scaling import Factors

VERSION = 1
Normalize = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Blueprint:
    """What determines a model, its weights aside. Raises InputError for values that make none.

    Attributes:
        name: of timm's registry, which holds the CIFAR zoo too, or of torchvision as `tv_<name>`.
        num_classes: number of logits.
        in_chans: channels of an image.
        image_size: pixels a side. Up to 64 the stem is eased, a function of the net and this alone: it needs no record.
        width, depth: factors on channels and on blocks; each one number, or one a stage (see `students.stages`).
        normalize: mean and std of pixels in [0, 1], a value a channel, or one for all.
        edits: what was done to the net since, in order.
        resize: whether images of another size are first resized to `image_size` (bilinear, antialiased).
    """

    name: str
    num_classes: int
    in_chans: int = 3
    image_size: int = 32
    width: Factors = 1.0
    depth: Factors = 1.0
    normalize: Normalize = ((0.0,), (1.0,))
    edits: tuple[Edit, ...] = ()
    resize: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputError("student.name", self.name, "must be the name of a model")
        for field, value, least in (
            ("student.num_classes", self.num_classes, 1),
            ("data.channels", self.in_chans, 1),
            ("data.image_size", self.image_size, 4),
        ):
            if type(value) is not int or value < least:
                raise InputError(field, value, f"must be a whole number from {least} up")
        for axis in ("width", "depth"):
            factors = getattr(self, axis)
            if isinstance(factors, list):
                object.__setattr__(self, axis, tuple(factors))
            several = factors if isinstance(factors, list | tuple) else (factors,)
            if not several or not all(_is_number(factor) and factor > 0 for factor in several):
                raise InputError(f"student.{axis}", factors, "must be a number above 0, or one a stage")
        if type(self.resize) is not bool:
            raise InputError("resize", self.resize, "must be true or false")
        mean, std = self.normalize
        if {len(mean), len(std)} - {1, self.in_chans}:
            raise InputError("normalize", self.normalize, f"needs 1 or {self.in_chans} values for mean and for std")
        if not all(map(_is_number, (*mean, *std))) or min(std) <= 0:
            raise InputError("normalize", self.normalize, "must be numbers, those of std above 0")

    def build(self, device: torch.device | str | None = None, tried: bool = True) -> Classifier:
        """A model of random weights; on device "meta" it takes no memory, and next to no time.

        Unless it is `tried` on an image nobody knows that its images are large enough.

        Raises InputError for an unknown name, a factor that the net cannot take, or images too small for the net.
        """
        with torch.device(device or "cpu"):
            net = zoo.net(
                self.name, self.num_classes, self.in_chans, self.image_size, self.width, self.depth, tried=tried
            )
            for each in self.edits:
                net = each.apply(net)
            return Classifier(net, self)

    def to_json(self) -> str:
        values = asdict(self) | {"edits": [editing.to_dict(each) for each in self.edits]}
        return json.dumps({"version": VERSION} | values, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Blueprint:
        """Raises InputError for text that is no blueprint of this version."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError("blueprint", text[:40], f"is torn or no JSON ({error})") from error
        if not isinstance(values, dict) or values.get("version") != VERSION:
            raise InputError("blueprint", text[:40], f"is no blueprint of version {VERSION}")
        values.setdefault("resize", False)  # the first ones lack it
        for name in sorted(values.keys() ^ {"version", *(field.name for field in fields(cls))}):
            raise InputError("blueprint", name, "is missing" if name not in values else "is no field of a blueprint")
        del values["version"]
        try:
            mean, std = values["normalize"]
            values["normalize"] = tuple(mean), tuple(std)
            values["edits"] = tuple(map(editing.from_dict, values["edits"]))
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("blueprint", text[:40], "needs mean and std in normalize, and a list of edits") from error
        return cls(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
