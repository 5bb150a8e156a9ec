"""Measurements of speed and memory behind the figures of the README; run from a checkout."""
