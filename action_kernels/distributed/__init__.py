"""Banks and losses that span the processes of ``torch.distributed``.

A bank that every process holds whole stays equal on all of them when each pushes the gathered rows:
``bank.push(*gather_rows(rows, labels))``. A bank that is divided among them gives results for each part, which
``merge_statistics`` and ``merge_selection`` put together as if it had been one.
"""

from .gather import gather_rows
from .merge import MergedStatistics, merge_selection, merge_statistics

__all__ = ["MergedStatistics", "gather_rows", "merge_selection", "merge_statistics"]
