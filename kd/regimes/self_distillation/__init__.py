"""Nets that are their own teacher."""
