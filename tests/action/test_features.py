"""Features of pixels: the plane that shows them, and how far classes lie apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from action.features import at_pixels, principal_plane, quarter_slices, standardized, variance_between
from action.model.heads import Pixels


def test_the_plane_holds_most_of_the_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    sizes = torch.tensor([5.0, 3, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    rows = torch.randn(500, 6, generator=generator, dtype=torch.float64) * sizes @ turn + 7
    plane = principal_plane(rows)
    assert plane.places.mean(0).abs().max() < 1e-9
    assert plane.places.std(0).tolist() == pytest.approx([5, 3], rel=0.1)
    covariance = torch.linalg.eigvalsh(torch.cov(rows.T)).flip(0)
    assert plane.explained == pytest.approx((covariance[:2] / covariance.sum()).tolist())
    assert torch.equal(principal_plane(rows.clone()).places, plane.places)


def test_the_share_between_classes_is_that_of_their_means() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.arange(3000) % 2
    rows = torch.randn(3000, 1, generator=generator) + 2.0 * truth[:, None]  # between: 1, within: 1
    assert variance_between(rows, truth, 2) == pytest.approx(0.5, abs=0.03)
    assert variance_between(2.0 * truth[:, None].float(), truth, 2) == 1
    assert np.isnan(variance_between(rows, truth, 3))


def test_columns_of_one_value_are_zero() -> None:
    rows = standardized(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert rows[:, 1].tolist() == [0, 0] and rows[:, 0].std() == pytest.approx(1)


def test_maps_are_read_at_their_pixels() -> None:
    fine = torch.arange(16.0).reshape(1, 1, 4, 4)
    coarse = torch.tensor([[[[0.0, 3.0], [0.0, 3.0]]]])
    pixels = Pixels(torch.tensor([0, 0]), torch.tensor([1, 3]), torch.tensor([2, 1]))
    assert torch.allclose(at_pixels([coarse, fine], pixels, (4, 4)), torch.tensor([[2.0, 6], [1, 13]]))


def test_slices_lie_in_the_foreground(loaded_cases) -> None:
    shown = quarter_slices(loaded_cases[:2], (32, 32), torch.device("cpu"))
    assert shown is not None and shown.image.shape[1:] == (1, 32, 32) and len(shown.image) == len(shown.label) <= 6
    assert all(label.any() for label in shown.label)
    case = loaded_cases[0]
    empty = type(case)(**{**vars(case), "label": np.zeros_like(case.label)})
    assert quarter_slices([empty], (32, 32), torch.device("cpu")) is None
