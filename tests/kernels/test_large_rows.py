"""Rows whose squares float32 cannot hold: normalised, they agree with float64."""

from __future__ import annotations

import formulas
import pytest
import torch
from formulas import differentiate, errors, neighbours

from action_kernels import contrastive_distillation


@pytest.mark.parametrize("scale", [1e15, 1e18, 1e20, 1e30])
def test_normalised_rows_of_any_length(backend: str, device: str, scale: float) -> None:
    rows = [x * scale for x in neighbours(20, 150, 12)]
    student, teacher, bank = (x.to(device) for x in rows)
    wide = [x.double() for x in rows]
    ours = differentiate(
        lambda s: contrastive_distillation(s, teacher, bank, reduction="none"), (student,), torch.ones(20)
    )
    exact = differentiate(lambda s: formulas.distillation(s, wide[1], wide[2]), (wide[0],), torch.ones(20))
    assert max(errors(ours[0], exact[0])) < 1e-4
    if scale < 1e30:  # beyond, the gradient itself is hardly a float32
        assert max(errors(ours[1] * scale, exact[1] * scale)) < 1e-4
