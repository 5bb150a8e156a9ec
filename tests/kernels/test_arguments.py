"""Wrong arguments: one ValueError that names the argument and both values. Empty ones: a zero with a graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from action_kernels import (
    action_contrast,
    anatomical_contrast,
    contrastive_distillation,
    hard_negatives,
    relation_negatives,
)

N, M, D, K = 4, 6, 3, 2


def arguments(function: Callable) -> dict[str, Any]:
    """Valid arguments by name."""
    student, teacher, bank = torch.randn(N, D), torch.randn(N, D), torch.randn(M, D)
    labels = {"query_labels": torch.arange(N) % 2, "bank_labels": torch.arange(M) % 2}
    return {
        contrastive_distillation: {"student": student, "teacher": teacher, "bank": bank},
        action_contrast: {"student": student, "teacher": teacher, "bank": bank, "k": K, **labels},
        hard_negatives: {"query": student, "bank": bank, "k": K, **labels},
        anatomical_contrast: {
            "query": student,
            "positive": teacher,
            "bank": bank,
            "index": torch.zeros(N, K, dtype=torch.int64),
        },
        relation_negatives: {**labels, "class_relation": torch.ones(2, 2), "k": K, "seed": 0},
    }[function]


DISTILLATION = [
    ({"teacher": torch.randn(N + 1, D)}, r"teacher must have the shape of student, got \(5, 3\) and \(4, 3\)"),
    ({"teacher": torch.randn(N, D, requires_grad=True)}, r"teacher must not require grad"),
    ({"teacher": torch.randn(N, D, device="meta")}, "got teacher on meta and student on cpu"),
    ({"student_temp": 0.0}, "student_temp must be positive and finite, got 0.0"),
    ({"student_temp": math.nan}, "student_temp must be positive and finite, got nan"),
    ({"teacher_temp": -0.1}, "teacher_temp must be positive and finite, got -0.1"),
    ({"teacher_temp": math.inf}, "teacher_temp must be positive and finite, got inf"),
    ({"student_temp": 1e-50}, r"student_temp must lie in 1.18e-38 <= .*<= 8.51e\+37, what float32 .*got 1e-50"),
    ({"teacher_temp": 1e39}, r"teacher_temp must lie in 1.18e-38 <= .* got 1e\+39"),
    ({"teacher_temp": 1e-39}, r"teacher_temp must lie in .* got 1e-39"),
    ({"normalize": "yes"}, "normalize must be True or False, got 'yes'"),
    ({"bank": [[1.0]]}, "bank must be a torch.Tensor, got list: convert it with torch.as_tensor"),
    ({"teacher": None}, "teacher must be a torch.Tensor, got NoneType"),
    ({"reduction": ["mean"]}, r"reduction must be one of none, mean, sum, got \['mean'\]"),
    ({"reduction": "batchmean"}, "reduction must be one of none, mean, sum, got 'batchmean'"),
    (
        {"bank": torch.randn(M, D + 1)},
        r"student and bank must agree in features and groups, got .*\(4, 3\) and \(6, 4\)",
    ),
    ({"bank": torch.randn(2, M, D)}, r"bank and student must both have the group dimension .*\(2, 6, 3\) and \(4, 3\)"),
    ({"student": torch.randn(D)}, r"student must be \[rows, D\] or \[G, rows, D\] with D >= 1, got shape \(3,\)"),
    ({"student": torch.randn(N, 0)}, r"student must be .* with D >= 1, got shape \(4, 0\)"),
    ({"student": torch.ones(N, D, dtype=torch.int64)}, "student must be float16, .*, got torch.int64"),
    ({"bank": torch.randn(M, D, dtype=torch.complex64)}, "bank must be float16, .*, got torch.complex64"),
]
SELECTION = [
    ({"k": 0}, "k must be at least 1, got 0"),
    ({"k": None}, "k must be an integer, got None"),
    ({"k": 2.0}, "k must be an integer, got 2.0"),
    ({"k": True}, "k must be an integer, got True"),
    ({"bank_labels": [0] * M}, "bank_labels must be a torch.Tensor, got list"),
    ({"normalize": None}, "normalize must be True or False, got None"),
    ({"query_labels": torch.zeros(N + 1).long()}, r"query_labels must hold one label per row .*\(5,\) and \(4, 3\)"),
    (
        {"bank_labels": torch.zeros(M, 1).long()},
        r"bank_labels must hold one label per row of bank.*\(6, 1\) and \(6, 3\)",
    ),
    ({"bank_labels": None}, "go together, got query_labels but bank_labels=None"),
    ({"query_labels": None}, "go together, got bank_labels but query_labels=None"),
    ({"query_labels": torch.zeros(N)}, "query_labels must hold integers, got torch.float32"),
    ({"bank_labels": torch.zeros(M, dtype=torch.bool)}, "bank_labels must hold integers, got torch.bool"),
    ({"bank_labels": torch.zeros(M, dtype=torch.int64, device="meta")}, "bank_labels on meta and .* on cpu"),
]
CASES = [
    *((contrastive_distillation, *case) for case in DISTILLATION),
    *((action_contrast, *case) for case in DISTILLATION + SELECTION),
    *((hard_negatives, *case) for case in SELECTION),
    (hard_negatives, {"bank": torch.randn(M, 5)}, r"query and bank must agree .*\(4, 3\) and \(6, 5\)"),
    (hard_negatives, {"query": torch.randn(N, D, device="meta")}, "bank on cpu and query on meta"),
    (anatomical_contrast, {"positive": torch.randn(D)}, r"positive must be \[rows, D\].*got shape \(3,\)"),
    (anatomical_contrast, {"positive": torch.randn(1, D)}, r"positive must have the shape of query.*\(1, 3\) and"),
    (anatomical_contrast, {"bank": torch.randn(M, 5)}, r"query and bank must agree .*\(4, 3\) and \(6, 5\)"),
    (anatomical_contrast, {"index": torch.zeros(N + 1, K).long()}, r"index must be \[N, k\].*\(4, 3\), got \(5, 2\)"),
    (anatomical_contrast, {"index": torch.zeros(N).long()}, r"index must be \[N, k\] .*got \(4,\)"),
    (anatomical_contrast, {"index": torch.zeros(N, K)}, "index must hold integers, got torch.float32"),
    (anatomical_contrast, {"index": [[0]]}, "index must be a torch.Tensor, got list"),
    (anatomical_contrast, {"normalize": 0.5}, "normalize must be True or False, got 0.5"),
    (anatomical_contrast, {"temp": 0}, "temp must be positive and finite, got 0"),
    (anatomical_contrast, {"temp": 1e-50}, r"temp must lie in .* got 1e-50"),
    (anatomical_contrast, {"temp": 1e38}, r"temp must lie in .* got 1e\+38"),
    (anatomical_contrast, {"reduction": None}, "reduction must be one of none, mean, sum, got None"),
    (relation_negatives, {"k": -1}, "k must be at least 1, got -1"),
    (relation_negatives, {"seed": 0.5}, "seed must be an integer, got 0.5"),
    (relation_negatives, {"class_relation": [[0]]}, "class_relation must be a torch.Tensor, got list"),
    (relation_negatives, {"query_labels": "abc"}, "query_labels must be a torch.Tensor, got str"),
    (relation_negatives, {"seed": -1}, r"seed must lie in 0 <= seed < 2\*\*63, got -1"),
    (relation_negatives, {"seed": 2**63}, r"seed must lie in .*got 9223372036854775808"),
    (relation_negatives, {"class_relation": torch.ones(2, 3)}, r"class_relation must be \[C, C\].*\(2, 3\) and \(4,\)"),
    (relation_negatives, {"class_relation": torch.ones(2, 2, 2)}, r"class_relation must be .*\(2, 2, 2\) and \(4,\)"),
    (relation_negatives, {"class_relation": torch.ones(2, 2, dtype=torch.bool)}, "class_relation must hold real"),
    (relation_negatives, {"query_labels": torch.zeros(N)}, "query_labels must hold integers, got torch.float32"),
    (relation_negatives, {"bank_labels": torch.zeros(2, M).long()}, r"must be \[N\] and \[M\].*\(4,\) and \(2, 6\)"),
    (relation_negatives, {"bank_labels": torch.zeros(M, device="meta").long()}, "bank_labels on meta and query_labels"),
]


@pytest.mark.parametrize(
    ("function", "changed", "match"),
    CASES,
    ids=[f"{f.__name__}-{'-'.join(c)}-{i}" for i, (f, c, _) in enumerate(CASES)],
)
def test_wrong_arguments_are_named(function: Callable, changed: dict, match: str) -> None:
    function(**arguments(function))
    with pytest.raises(ValueError, match=match):
        function(**{**arguments(function), **changed})


@pytest.mark.parametrize("function", [contrastive_distillation, action_contrast, hard_negatives, anatomical_contrast])
def test_groups_must_agree(function: Callable) -> None:
    grouped = {name: x.expand(2, *x.shape) if isinstance(x, Tensor) else x for name, x in arguments(function).items()}
    function(**grouped)
    with pytest.raises(ValueError, match=r"groups.*\(2, 4, 3\) and \(3, 6, 3\)"):
        function(**{**grouped, "bank": torch.randn(3, M, D)})


# ----------------------------------------------------------------------------------------------------------- empty


@pytest.mark.parametrize("groups", [None, 0, 2])
@pytest.mark.parametrize(("n", "m"), [(0, 6), (4, 0), (0, 0)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_empty_gives_a_zero_with_a_graph(
    backend: str, device: str, reduction: str, n: int, m: int, groups: int | None
) -> None:
    leading = () if groups is None else (groups,)
    student = torch.full((*leading, n, D), torch.nan, device=device, requires_grad=True)
    bank = torch.full((*leading, m, D), torch.nan, device=device, dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.randn(*leading, n, D, device=device)
    shape = (*leading, n) if reduction == "none" else ()
    distillation = contrastive_distillation(student, teacher, bank, reduction=reduction)
    joint = action_contrast(student, teacher, bank, K, reduction=reduction)
    similarity, index = hard_negatives(student, bank, K)
    indices = torch.full((*leading, n, K), -1, device=device)
    info_nce = anatomical_contrast(student, teacher, bank, indices, reduction=reduction)
    for loss in (distillation, joint.distillation, info_nce):
        assert loss.shape == shape and loss.dtype == torch.float32 and (loss == 0).all()
        student.grad = bank.grad = None
        loss.sum().backward()
        assert (student.grad == 0).all() and (bank.grad == 0).all()
        assert student.grad.shape == student.shape and bank.grad.dtype == torch.bfloat16
    for found, where in ((similarity, index), (joint.similarity, joint.index)):
        assert found.shape == where.shape == (*leading, n, K)
        assert (found == -torch.inf).all() and (where == -1).all() and found.requires_grad
    labels = [torch.zeros(*leading, size, dtype=torch.int64, device=device) for size in (n, m)]
    drawn = relation_negatives(*labels, torch.ones(2, 2, device=device), K, seed=0)
    assert drawn.shape == (*leading, n, K) and (drawn == -1).all()


def test_no_negatives_named(backend: str, device: str) -> None:
    query = torch.randn(N, D, device=device, requires_grad=True)
    index = torch.zeros(N, 0, dtype=torch.int64, device=device)
    loss = anatomical_contrast(query, torch.randn(N, D, device=device), torch.randn(M, D, device=device), index)
    loss.backward()
    assert loss == 0 and (query.grad == 0).all()
