"""Negatives drawn by the relation of classes from a divided bank."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .. import operators
from ..operators import arguments
from .agreement import Given, agree
from .bank import ShardedMemoryBank
from .exchange import gather
from .shard import group_of


@torch.no_grad()
def relation_negatives(
    query_labels: Tensor,
    bank: ShardedMemoryBank | Tensor,
    class_relation: Tensor,
    k: int,
    *,
    seed: int,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """:func:`action_kernels.relation_negatives` of this process's queries from a bank that all processes share.

    A collective call. The draws are those of one process with the queries of all, in the order of their ranks, and the
    whole bank. For them the labels of the whole bank come to every process: 8 bytes a row.

    Args:
        query_labels: [N] integers of this process; any N, 0 too.
        bank: the shared bank, with labels; or the labels of this process's part, [m] integers.
        class_relation: [C, C] weights, the same on all processes.
        k: draws per query, >= 1.
        seed: 0 <= seed < 2**63, the same on all processes.
        group: the processes; none: those of the bank, or all.

    Returns:
        [N, k] int64 slots of the whole bank, -1 where no class can be drawn.

    Raises:
        ValueError: arguments do not fit, here or on another process; every process raises then.
    """

    def labels_of_shard() -> Tensor:
        labels = bank.labels if isinstance(bank, ShardedMemoryBank) else bank
        if labels is None:
            raise ValueError("bank must have labels, got a ShardedMemoryBank with labeled=False")
        return labels

    def given() -> Given:
        labels = labels_of_shard()
        arguments.check_integer("query_labels", query_labels)
        arguments.check_integer("bank", labels)
        if query_labels.dim() != 1 or labels.dim() != 1:
            raise ValueError(
                f"query_labels and the labels of bank must be [N] and [m], got shapes {tuple(query_labels.shape)} and "
                f"{tuple(labels.shape)}: call once for each group"
            )
        operators.relation_negatives(query_labels[:0], labels[:0], class_relation, k, seed=seed)  # its checks
        values = (class_relation.shape[-1], k, seed)
        return Given([len(query_labels), len(labels)], dict(zip(_NAMES, values, strict=True)))

    members = group_of(bank, group)
    table = agree("relation_negatives", "labels", _NAMES, given, members, query_labels, bank)
    labels = labels_of_shard().long()
    lengths = [length for _, length in table]
    everyone = gather([labels], lengths, members)[0].split(lengths)
    world, own = len(table), dist.get_rank(members)
    whole = torch.full((max(lengths) * world,), -1, dtype=torch.int64, device=labels.device)
    for rank, theirs in enumerate(everyone):
        whole[rank::world][: len(theirs)] = theirs
    before = sum(count for count, _ in table[:own])
    strangers = torch.full((before,), -1, dtype=torch.int64, device=labels.device)  # a draw goes by the query's number
    queries = torch.cat([strangers, query_labels.long()])
    return operators.relation_negatives(queries, whole, class_relation, k, seed=seed)[before:]


_NAMES = ("classes", "k", "seed")
