"""Data: file formats behind one interface, NIfTI in and out, volumes at network size, splits by patient, batches."""

from action.data.cases import Case, Format
from action.data.dataset import Dataset, open_dataset
from action.data.formats import FORMATS

__all__ = ["FORMATS", "Case", "Dataset", "Format", "open_dataset"]
