"""Losses on stage maps."""
