"""The modules are the functions with their settings."""

from __future__ import annotations

import torch
from formulas import neighbours

from action_kernels import (
    ActionContrast,
    AnatomicalContrast,
    ContrastiveDistillation,
    action_contrast,
    anatomical_contrast,
    contrastive_distillation,
)


def test_modules_are_their_functions(backend: str, device: str) -> None:
    student, teacher, bank = (x.to(device) for x in neighbours(6, 20, 8))
    labels = {"query_labels": torch.arange(6, device=device) % 3, "bank_labels": torch.arange(20, device=device) % 3}
    index = torch.randint(-1, 20, (6, 4), device=device)
    settings = {"student_temp": 0.3, "teacher_temp": 0.2, "reduction": "none", "normalize": False}
    assert torch.equal(
        ContrastiveDistillation(**settings)(student, teacher, bank),
        contrastive_distillation(student, teacher, bank, **settings),
    )
    ours = ActionContrast(3, **settings)(student, teacher, bank, **labels)
    function = action_contrast(student, teacher, bank, 3, **settings, **labels)
    assert all(torch.equal(a, b) for a, b in zip(ours, function, strict=True))
    settings = {"temp": 0.3, "reduction": "sum", "normalize": False}
    loss = AnatomicalContrast(**settings)
    assert torch.equal(
        loss(student, teacher, bank, index), anatomical_contrast(student, teacher, bank, index, **settings)
    )
    loss.temp = 0.7  # a schedule
    settings["temp"] = 0.7
    assert torch.equal(
        loss(student, teacher, bank, index), anatomical_contrast(student, teacher, bank, index, **settings)
    )


def test_defaults_are_the_functions_own() -> None:
    student, teacher, bank = neighbours(6, 20, 8)
    index = torch.randint(20, (6, 4))
    assert torch.equal(
        ContrastiveDistillation()(student, teacher, bank), contrastive_distillation(student, teacher, bank)
    )
    assert torch.equal(
        ActionContrast(2)(student, teacher, bank).distillation, action_contrast(student, teacher, bank, 2).distillation
    )
    assert torch.equal(
        AnatomicalContrast()(student, teacher, bank, index), anatomical_contrast(student, teacher, bank, index)
    )


def test_settings_are_shown() -> None:
    shown = "student_temp=0.1, teacher_temp=0.01, reduction='mean', normalize=True"
    assert repr(ContrastiveDistillation()) == f"ContrastiveDistillation({shown})"
    assert repr(ActionContrast(5)) == f"ActionContrast(k=5, {shown})"
    assert repr(AnatomicalContrast(0.2)) == "AnatomicalContrast(temp=0.2, reduction='mean', normalize=True)"
