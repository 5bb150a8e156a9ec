"""Draws by the relation of classes: counter-based random words against integer thresholds."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def _philox(counter: tuple[Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """First two words of Philox4x32-10 (Salmon et al., SC 2011) at counter (c0, c1, c2, 0), 32-bit words in int64."""
    c0, c1, c2 = counter
    c3 = torch.zeros_like(c0)
    key0, key1 = seed & _WORD, seed >> 32 & _WORD
    for _ in range(10):
        # The product wraps modulo 2**64, which keeps all the bits asked for.
        even, odd = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (odd >> 32 & _WORD) ^ c1 ^ key0,
            odd & _WORD,
            (even >> 32 & _WORD) ^ c3 ^ key1,
            even & _WORD,
        )
        key0, key1 = key0 + 0x9E3779B9 & _WORD, key1 + 0xBB67AE85 & _WORD
    return c0, c1


def relation_negatives(
    query_labels: Tensor,
    thresholds: Tensor,
    class_start: Tensor,
    rows: Tensor,
    k: int,
    seed: int,
) -> Tensor:
    groups, queries = query_labels.shape
    classes = thresholds.shape[-1]
    device = query_labels.device
    draw = torch.arange(k, dtype=torch.int64, device=device).view(1, 1, k)
    query = torch.arange(queries, dtype=torch.int64, device=device).view(1, queries, 1)
    group = torch.arange(groups, dtype=torch.int64, device=device).view(groups, 1, 1)
    word0, word1 = _philox(torch.broadcast_tensors(draw, query, group), seed)

    label = query_labels.clamp_min(0)
    cumulative = thresholds.gather(1, label.unsqueeze(-1).expand(-1, -1, classes))  # [G, N, C]
    total = cumulative[..., -1:]
    drawn_class = torch.searchsorted(cumulative, word0 * total >> 32, right=True).clamp_max(classes - 1)
    flat = drawn_class.flatten(1)
    start = class_start.gather(1, flat).view_as(drawn_class)
    size = class_start.gather(1, flat + 1).view_as(drawn_class) - start
    position = (start + (word1 * size >> 32)).clamp_max(rows.shape[-1] - 1)
    index = rows.gather(1, position.flatten(1)).view_as(position)
    return index.masked_fill((query_labels < 0).unsqueeze(-1) | (total == 0), -1)
