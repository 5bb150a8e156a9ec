"""Data: file layouts behind one reader interface, NIfTI in and out, volumes at network size, splits by patient."""

from action.data.acdc import Acdc
from action.data.cases import FORMATS, Case, Dataset, Format, open_dataset
from action.data.lits import Lits

FORMATS.update(acdc=Acdc(), lits=Lits())

__all__ = ["FORMATS", "Case", "Dataset", "Format", "open_dataset"]
