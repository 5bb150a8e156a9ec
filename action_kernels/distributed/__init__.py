"""Banks and losses that span the processes of ``torch.distributed``.

A bank that every process holds whole stays equal on all of them when each pushes the gathered rows:
``bank.push(*gather_rows(rows, labels))``. Where it is too large for that, a :class:`ShardedMemoryBank` divides it, and
the operators of this package, namesakes of those of ``action_kernels``, compute over all parts what those do over the
whole: queries visit the parts, so many at a time, and what they find is merged. All of it is collective: every process
makes the call, and where one is given what does not fit, all raise.
"""

from .action_contrast import action_contrast
from .anatomical_contrast import anatomical_contrast
from .bank import ShardedMemoryBank
from .contrastive_distillation import contrastive_distillation
from .gather import gather_rows
from .hard_negatives import hard_negatives
from .info_nce import info_nce
from .log_sum_exp import log_sum_exp
from .merge import MergedStatistics, merge_selection, merge_statistics
from .relation_negatives import relation_negatives

__all__ = [
    "MergedStatistics",
    "ShardedMemoryBank",
    "action_contrast",
    "anatomical_contrast",
    "contrastive_distillation",
    "gather_rows",
    "hard_negatives",
    "info_nce",
    "log_sum_exp",
    "merge_selection",
    "merge_statistics",
    "relation_negatives",
]
