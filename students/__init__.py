"""Models as data: a zoo, scaled in width and depth, that saves and reloads exactly without pickle."""

from students.adopt import adopt
from students.blueprint import Blueprint
from students.classifier import Classifier
from students.create import create
from students.edits import Edit, Reclassify, Replace, Resize, edit
from students.inherit import inherit
from students.scaling import Factors
from students.storage import check_plain, load, load_weights, save
from students.zoo import stages

__all__ = [
    "Blueprint",
    "Classifier",
    "Edit",
    "Factors",
    "Reclassify",
    "Replace",
    "Resize",
    "adopt",
    "check_plain",
    "create",
    "edit",
    "inherit",
    "load",
    "load_weights",
    "save",
    "stages",
]
