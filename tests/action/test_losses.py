import pytest
import torch
import torch.nn.functional as F

from action.stages.losses import masked_segmentation_loss, pseudo_label_loss, ramp_up, segmentation_loss, zero_like


def test_segmentation_loss_is_half_cross_entropy_and_half_dice_with_squared_denominators():
    logits, label = torch.randn(3, 4, 8, 8).double(), torch.randint(0, 4, (3, 1, 8, 8)).double()
    p, truth = logits.softmax(1), F.one_hot(label[:, 0].long(), 4).permute(0, 3, 1, 2).double()
    overlap = (p * truth).sum((0, 2, 3))
    dice = 1 - ((2 * overlap + 1e-5) / ((p**2).sum((0, 2, 3)) + (truth**2).sum((0, 2, 3)) + 1e-5)).mean()
    entropy = -(truth * p.log()).sum(1).mean()
    torch.testing.assert_close(segmentation_loss(logits, label), 0.5 * (dice + entropy))


def test_pseudo_label_loss_weighs_each_image_by_its_share_of_confident_valid_pixels():
    logits = torch.randn(2, 3, 4, 4)
    label = torch.randint(0, 3, (2, 1, 4, 4)).float()
    confidence = torch.full((2, 1, 4, 4), 0.8)
    confidence[0, :, :2] = 0.99
    confidence[1, :, 0] = 0.0  # outside the image: no valid pixel
    confidence[1, :, 1, 0] = 0.98
    loss, weight = pseudo_label_loss(logits, label, confidence, strong_threshold=0.97)
    entropy = F.cross_entropy(logits, label[:, 0].long(), reduction="none")
    expected = (0.5 * entropy[0].sum() + (1 / 12) * entropy[1, 1:].sum()) / (16 + 12)
    torch.testing.assert_close(loss, expected)
    assert weight.item() == pytest.approx((0.5 + 1 / 12) / 2)


def test_pixels_below_the_threshold_have_no_pseudo_label():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    label = torch.randint(0, 3, (2, 1, 4, 4)).float()
    confidence = torch.full((2, 1, 4, 4), 0.6)
    confidence[0, :, :2], confidence[1, :, 0] = 0.98, 0.8
    loss, weight = pseudo_label_loss(logits, label, confidence, strong_threshold=0.97, threshold=0.7)
    loss.backward()
    entropy = F.cross_entropy(logits, label[:, 0].long(), reduction="none")
    torch.testing.assert_close(loss, entropy[0, :2].sum() / (8 + 4))  # no pixel of the second image is confident
    assert weight.item() == 0.5
    assert logits.grad[0, :, 2:].abs().max() == 0 < logits.grad[0, :, :2].abs().min()


def test_dice_makes_up_half_of_the_pseudo_label_loss():
    logits = torch.randn(2, 3, 4, 4)
    label = torch.randint(0, 3, (2, 1, 4, 4)).float()
    confidence = torch.full((2, 1, 4, 4), 0.98)
    confidence[0, :, :2], confidence[1, :, 0] = 0.8, 0.0  # half of the first image is confident, all of the second is
    plain, _ = pseudo_label_loss(logits, label, confidence, strong_threshold=0.97)
    loss, _ = pseudo_label_loss(logits, label, confidence, strong_threshold=0.97, dice=True)
    p, scores = logits.double().softmax(dim=1), []
    for c in range(3):
        y = (label[:, 0] == c).double()
        parts = ((0.5, p[0, c], y[0]), (1.0, p[1, c, 1:], y[1, 1:]))
        scores.append(sum(w * 2 * (a * b).sum() for w, a, b in parts) / sum(w * (a**2 + b).sum() for w, a, b in parts))
    expected = 0.5 * (plain.double() + 0.75 * (1 - sum(scores) / 3))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dice", [False, True])
def test_no_valid_pixel_gives_zero_with_a_graph(dice):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss, _ = pseudo_label_loss(logits, torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4), 0.97, dice=dice)
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_the_loss_of_a_mask_sees_its_pixels_alone():
    logits, label = torch.randn(2, 3, 4, 4).double(), torch.randint(0, 3, (2, 1, 4, 4)).double()
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[0, :, :2] = True
    logits.requires_grad_()
    loss = masked_segmentation_loss(logits, label, mask, torch.tensor(16))
    # A slice of these pixels alone, whose cross-entropy is divided by 16 and not by 8.
    cut, truth = logits[:1, :, :2], label[:1, :, :2]
    entropy = F.cross_entropy(cut, truth[:, 0].long())
    torch.testing.assert_close(loss, segmentation_loss(cut, truth) - 0.5 * entropy * (1 - 8 / 16))
    loss.backward()
    inside = mask.expand(-1, 3, -1, -1)
    assert logits.grad[~inside].abs().max() == 0 < logits.grad[inside].abs().min()


def test_the_loss_of_an_empty_mask_is_zero_with_a_graph():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    nothing = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    loss = masked_segmentation_loss(logits, torch.zeros(1, 1, 4, 4), nothing, nothing.sum())
    loss.backward()
    assert loss.item() == 0.0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_zero_carries_the_graph_and_survives_emptiness():
    empty = torch.empty(0, 3, requires_grad=True)
    zero_like(empty).backward()
    assert empty.grad.shape == (0, 3)


def test_ramp_up_grows_to_one_and_may_be_absent():
    values = [ramp_up(step, 10) for step in range(12)]
    assert values == sorted(values) and values[0] < 0.01 and values[10] == values[11] == 1.0
    assert ramp_up(0, 0) == 1.0
