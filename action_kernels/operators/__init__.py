"""The operators, a file each: the public function and its checks, then how PyTorch sees it.

Shapes: N queries, M bank rows, D features, C classes. Every function takes ungrouped inputs ([N, D], [M, D], labels
[N]) or, with a leading dimension G, one bank per group ([G, N, D], [G, M, D], labels [G, N]). Floating inputs are
float16, bfloat16, float32 or float64 and may differ in dtype; results are float32, or float64 if any input is.
Gradients come in the dtype of their input. Autocast changes nothing: the operators run in the dtypes given and
accumulate in float32. Double backward and forward-mode differentiation raise; ``torch.func.grad``, ``vjp``, ``jacrev``
and ``vmap`` work (``vmap`` as more groups: a leading dimension G says the same). Values on a GPU are never inspected,
so nothing synchronises with it.

A student's temperature may be learnt: a tensor of one element, on the CPU or the rows' device (``nn.Parameter``,
``log_temp.exp()``), gets its exact gradient. The rows are then brought to unit length before the kernels run, in
float32 copies [N, D] and [M, D] (none of the bank with ``normalize=False``); a Python number costs no copy. The same
holds in a compiled function whose temperature is a number that changes from call to call, so that a schedule compiles
twice and not at every step (before PyTorch 2.7 it does so only as a tensor). A tensor's value that is not positive
gives NaN where it cannot be read at once.
"""

from .action_contrast import ActionContrastResult, action_contrast
from .anatomical_contrast import anatomical_contrast
from .contrastive_distillation import contrastive_distillation
from .hard_negatives import hard_negatives
from .info_nce import info_nce
from .log_sum_exp import log_sum_exp
from .relation_negatives import relation_negatives

__all__ = [
    "ActionContrastResult",
    "action_contrast",
    "anatomical_contrast",
    "contrastive_distillation",
    "hard_negatives",
    "info_nce",
    "log_sum_exp",
    "relation_negatives",
]
