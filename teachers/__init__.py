"""Teachers: frozen models, alone, together, or as stored outputs."""

from teachers.cache import Cached
from teachers.ensemble import Ensemble
from teachers.load import load
from teachers.teacher import Teacher

__all__ = ["Cached", "Ensemble", "Teacher", "load"]
