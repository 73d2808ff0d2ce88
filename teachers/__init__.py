"""Teachers: frozen models, alone, together, or as stored outputs."""

from teachers.cache import Cached
from teachers.ensemble import Ensemble
from teachers.load import load
from teachers.teacher import Adapted, Teacher

AnyTeacher = Teacher | Ensemble | Cached

__all__ = ["Adapted", "AnyTeacher", "Cached", "Ensemble", "Teacher", "load"]
