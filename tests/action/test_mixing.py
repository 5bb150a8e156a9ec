import numpy as np
import pytest
import torch

from action.data.mixing import boxes, mix, paste


@pytest.fixture
def batch():
    """Every pixel knows its slice: image = slice number, label and confidence follow from it."""
    number = torch.arange(4.0)[:, None, None, None].expand(4, 1, 24, 32).clone()
    label = torch.zeros(4, 1, 24, 32)
    label[:, :, 4:12, 8:20] = 1.0 + number[:, :, 4:12, 8:20]
    return {"image": number + label / 10, "label": label, "confidence": (number + 1) / 5}


def neighbours(batch):
    return {key: value.roll(1, dims=0) for key, value in batch.items()}


@pytest.mark.parametrize("how", ["cutmix", "classmix", "none"])
def test_image_label_and_confidence_are_mixed_together(batch, how):
    mixed = mix(batch, neighbours(batch), how, np.random.default_rng(0))
    source = (mixed["confidence"] * 5 - 1).round().long()
    for b in range(4):
        assert set(source[b].unique().tolist()) <= {b, (b - 1) % 4}
    for key in batch:
        torch.testing.assert_close(mixed[key], batch[key].gather(0, source))
    assert (source != torch.arange(4)[:, None, None, None]).any() == (how != "none")
    assert all(mixed[key].data_ptr() != batch[key].data_ptr() for key in batch)


def test_cutmix_pastes_a_quarter_to_a_half(batch):
    own = torch.arange(4)[:, None, None, None]
    for seed in range(20):
        source = (
            (mix(batch, neighbours(batch), "cutmix", np.random.default_rng(seed))["confidence"] * 5 - 1).round().long()
        )
        share = (source != own).float().mean(dim=(1, 2, 3))
        assert ((share > 0.15) & (share < 0.6)).all()


def test_classmix_pastes_whole_classes(batch):
    mixed = mix(batch, neighbours(batch), "classmix", np.random.default_rng(1))
    source = (mixed["confidence"] * 5 - 1).round().long()
    for b in range(4):
        neighbour = batch["label"][(b - 1) % 4]
        pasted = source[b] == (b - 1) % 4
        for value in neighbour.unique():
            assert pasted[neighbour == value].float().mean() in (0.0, 1.0)


def test_boxes_have_one_size_and_lie_anywhere(batch):
    places = set()
    for seed in range(40):
        for box in boxes(batch["image"], 0.5, np.random.default_rng(seed)):
            _, rows, columns = box.nonzero(as_tuple=True)
            assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (12, 16) and box.sum() == 12 * 16
            places.add((int(rows.min()), int(columns.min())))
    assert {top for top, _ in places} == set(range(13)) and {left for _, left in places} == set(range(17))
    assert boxes(batch["image"], 1.0, np.random.default_rng(0)).all()
    assert not boxes(batch["image"], 0.0, np.random.default_rng(0)).any()


def test_what_is_pasted_comes_from_the_partner_and_the_rest_stays(batch):
    partner, pasted = neighbours(batch), boxes(batch["image"], 0.5, np.random.default_rng(0))
    for key, value in paste(batch, partner, pasted).items():
        assert torch.equal(value[pasted], partner[key][pasted]) and torch.equal(value[~pasted], batch[key][~pasted])
