"""Parts of a divided bank, merged, give what the whole bank gives."""

from __future__ import annotations

import pytest
import torch

from action_kernels.backends.reference.action_contrast import action_contrast
from action_kernels.distributed import merge_selection, merge_statistics

N, D, TEMPS = 7, 5, (0.1, 0.01)


def result(student, teacher, bank):
    return action_contrast(student, teacher, bank, 0, *TEMPS, None, None, True, False, True)


@pytest.mark.parametrize("sizes", [[11], [3, 8, 1], [1] * 6, [4, 0, 5, 0]])
@pytest.mark.parametrize("near", [0.0, 1e-9])
def test_statistics_of_the_parts_are_those_of_the_whole(sizes, near):
    generator = torch.Generator().manual_seed(sum(sizes))
    student, teacher = torch.randn(2, 2, N, D, generator=generator, dtype=torch.float64)
    if near:  # almost no divergence: every term cancels
        teacher = student * TEMPS[1] / TEMPS[0]  # rows of other lengths, but all are scaled to unit length
    bank = torch.randn(2, sum(sizes), D, generator=generator, dtype=torch.float64)
    whole = result(student, teacher, bank)
    nothing = torch.full((2, N), -torch.inf, dtype=torch.float64)
    parts = []
    for part in bank.split(sizes, dim=1):
        if part.shape[1]:
            found = result(student, teacher, part)
            parts.append((found.kl, *found.statistics[:2]))
        else:
            parts.append((torch.zeros_like(nothing), nothing, nothing))
    merged = merge_statistics(*(torch.stack(column) for column in zip(*parts, strict=True)))
    for ours, theirs in zip(merged, (whole.kl, *whole.statistics[:2]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_queries_without_any_row_have_no_divergence_and_nan_stays():
    nothing = torch.full((2, 3), -torch.inf, dtype=torch.float64)
    assert merge_statistics(torch.zeros(2, 3), nothing, nothing).kl.tolist() == [0.0, 0.0, 0.0]
    lse = torch.zeros(2, 3, dtype=torch.float64)
    kl = torch.tensor([[1.0, torch.nan, 1.0], [1.0, 1.0, torch.nan]])
    assert merge_statistics(kl, lse, lse).kl.isnan().tolist() == [False, True, True]


def test_statistics_that_do_not_fit_are_refused():
    lse = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="teacher_lse must be float64, got torch.float32"):
        merge_statistics(torch.zeros(2, 3), lse, lse.float())
    with pytest.raises(ValueError, match=r"student_lse must have the shape of kl, got \(2, 3\) and \(3, 3\)"):
        merge_statistics(torch.zeros(3, 3), lse, lse)
    with pytest.raises(ValueError, match="R >= 1 parts"):
        merge_statistics(torch.zeros(0, 3), lse[:0], lse[:0])


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("k", [0, 1, 4, 30])
def test_the_best_of_the_parts_are_those_of_the_whole(parts, k):
    generator = torch.Generator().manual_seed(k)
    whole = torch.randint(0, 4, (3, N, 20), generator=generator).float()  # of whole numbers: full of ties
    similarity, index = [], []
    for places in torch.randperm(20, generator=generator).tensor_split(parts):
        taken = min(k, len(places))
        order = whole[..., places].argsort(dim=-1, descending=True, stable=True)[..., :taken]
        padding = (0, k - taken)
        similarity.append(torch.nn.functional.pad(whole[..., places].gather(-1, order), padding, value=-torch.inf))
        index.append(torch.nn.functional.pad(places[order], padding, value=-1))
        # A part's own ties lie in the order of its places, which is none of the whole: all of them must be there.
        if taken < len(places):
            similarity[-1] = whole[..., places]
            index[-1] = places.expand(3, N, -1)
    merged = merge_selection(torch.cat(similarity, -1), torch.cat(index, -1), k)
    order = whole.argsort(dim=-1, descending=True, stable=True)[..., :k]
    expected = whole.gather(-1, order), order
    for ours, theirs, fill in zip(merged, expected, (-torch.inf, -1), strict=True):
        assert torch.equal(ours, torch.nn.functional.pad(theirs, (0, max(0, k - 20)), value=fill))


def test_what_is_no_candidate_comes_last_whatever_it_says():
    similarity = torch.tensor([9.0, -torch.inf, 1.0, -3.0])
    index = torch.tensor([-1, 5, 7, 2])
    found = merge_selection(similarity, index, 4)
    assert found[1].tolist() == [7, 2, 5, -1]
    assert found[0].tolist() == [1.0, -3.0, -torch.inf, -torch.inf]
    with pytest.raises(ValueError, match="one shape"):
        merge_selection(similarity, index[:2], 1)
    with pytest.raises(ValueError, match="k must be at least 0"):
        merge_selection(similarity, index, -1)
