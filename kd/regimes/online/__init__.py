"""Nets that train together and teach each other."""
