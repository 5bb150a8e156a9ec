"""Measuring on a GPU which tiles and which backend are the fastest there; the tables go into the package."""
