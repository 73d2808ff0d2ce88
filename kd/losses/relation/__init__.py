"""Losses on how samples relate to each other."""
