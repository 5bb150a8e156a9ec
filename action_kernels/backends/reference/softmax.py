"""Log-probabilities whose log-sum-exps are not rounded."""

from __future__ import annotations

from torch import Tensor


def log_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of every row and its log-sum-exp in float64."""
    shift = logits.amax(-1, keepdim=True)
    log_sum = (logits - shift).exp().sum(-1, keepdim=True).log()
    return logits - shift - log_sum, (shift.double() + log_sum).squeeze(-1)


def log_probability(logits: Tensor, lse: Tensor) -> Tensor:
    """logits - lse without rounding lse, an error that all of a row's probabilities would share."""
    return (logits.double() - lse.unsqueeze(-1)).to(logits.dtype)
