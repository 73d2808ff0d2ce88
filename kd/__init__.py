"""Retort's distillation engine: what flows (`batch`), what is read (`taps`), what is minimised (`loss`, `losses`),
who learns from whom (`regimes`), and the one loop that trains (`fit`)."""
