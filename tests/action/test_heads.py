import pytest
import torch
import torch.nn.functional as F

from action.model.heads import LocalHead, Pixels, RepresentationHead, windows


@pytest.mark.parametrize(("height", "width", "size", "stride"), [(256, 256, 64, 32), (12, 20, 8, 4), (8, 8, 8, 4)])
def test_every_window_is_cut_at_its_own_place(height, width, size, stride):
    maps = torch.randn(3, 2, height, width)
    cut = windows(maps, size, stride)
    corners = [
        (top, left) for top in range(0, height - size + 1, stride) for left in range(0, width - size + 1, stride)
    ]
    assert len(cut) == len(corners)
    assert corners[-1] == (height - size, width - size)  # the last row and column take part
    for window, (top, left) in zip(cut, corners, strict=True):
        assert torch.equal(window, maps[:, :, top : top + size, left : left + size])


def test_published_windows_are_49():
    assert len(windows(torch.zeros(1, 1, 256, 256), 64, 32)) == 49


def test_windows_that_do_not_tile_are_refused():
    with pytest.raises(ValueError, match="width 20"):
        windows(torch.zeros(1, 1, 16, 20), 8, 8)


def test_local_embedding_of_a_slice_depends_on_its_own_window_alone():
    # Scrambled window and batch axes would mix slices or places.
    head = LocalHead(classes=2, window=8, stride=4, pooled=2)
    logits = torch.randn(3, 2, 16, 16)
    before = head(logits)
    assert before.shape == (9, 3, 2 * 2 * 2)
    changed = logits.clone()
    changed[1, :, 12:, 12:] += 1.0  # only in the last window of slice 1
    different = (head(changed) - before).abs().amax(dim=2) > 1e-6
    expected = torch.zeros(9, 3, dtype=torch.bool)
    expected[8, 1] = True
    assert torch.equal(different, expected)


def test_local_embedding_follows_the_formula():
    head = LocalHead(classes=3, window=8, stride=8, pooled=4)
    logits = torch.randn(2, 3, 16, 8)
    pooled = F.avg_pool2d(logits[1:2, :, 8:], 2)
    expected = head.project(pooled).flatten()
    torch.testing.assert_close(head(logits)[1, 1], expected)


@pytest.fixture
def sparse_case():
    head = RepresentationHead((6, 5, 4), 7).double()
    features = [
        torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 4, 12, 16, dtype=torch.float64, requires_grad=True),
    ]
    places = ([0, 0, 1, 1, 1, 0], [0, 11, 5, 0, 11, 6], [0, 15, 7, 15, 0, 3])
    pixels = Pixels(*map(torch.tensor, places))
    return head, features, pixels


def test_sampled_representation_equals_the_dense_one(sparse_case):
    head, features, pixels = sparse_case
    dense = head.dense(features)[pixels.image, :, pixels.y, pixels.x]
    sparse = head(features, pixels)
    torch.testing.assert_close(sparse, dense)
    weight = torch.randn_like(dense)
    inputs = [*features, *head.parameters()]
    for a, b in zip(
        torch.autograd.grad((sparse * weight).sum(), inputs),
        torch.autograd.grad((dense * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_no_pixels_give_no_rows(sparse_case):
    head, features, _ = sparse_case
    none = torch.empty(0, dtype=torch.int64)
    rows = head(features, Pixels(none, none, none))
    assert rows.shape == (0, 7)
    rows.sum().backward()
