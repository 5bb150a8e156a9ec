"""The phantom: a data set of invented hearts. ``scene`` draws a patient, ``write`` lays out the files."""

from action.data.phantom.write import write_phantom

__all__ = ["write_phantom"]
