"""Measurements behind the figures of the README; run from a checkout."""
