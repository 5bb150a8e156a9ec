"""Copy-paste and UniMatch by their formulas."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from action.config import AugmentationConfig, BaselineConfig, ModelConfig, TrainConfig, fill_in
from action.data.batches import SlicePool, step_generator
from action.data.mixing import boxes, paste_both_ways
from action.model.network import NetworkOutput
from action.model.teacher import StudentTeacher
from action.stages import make_stages
from action.stages.base import TrainingData
from action.stages.copy_paste import LABEL, PSEUDO_LABEL
from action.stages.losses import segmentation_loss

PLAIN = AugmentationConfig(intensity_probability=0.0, deformation_probability=0.0)  # strong views are as weak ones


class Painted(nn.Module):
    """In place of the U-Net: logits [B, 2, H, W] that say class 1 where the image is bright, and what it saw."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen = []

    def forward(self, images):
        return NetworkOutput(self.perturbed(images, lambda maps: maps), [])

    def perturbed(self, images, change):
        self.seen.append(images)
        maps = change(images)
        return torch.cat([0 * maps, 6 * self.weight * (maps - 0.5)], dim=1)


def stage_of(method, count=(2, 2), **settings):
    asked = TrainConfig(
        method=method,
        augmentation=PLAIN,
        model=ModelConfig(channels=(4, 6), window=8, stride=8, pooled=4),
        baseline=BaselineConfig(iterations=8, labeled=count[0], unlabeled=count[1]),
    )
    name = method.replace("-", "_")
    asked = dataclasses.replace(asked, **{name: dataclasses.replace(getattr(asked, name), **settings)})
    return make_stages(fill_in(asked, "data", "output", (1.0, 1.0), (16, 16)), 2)[name]


def half_dark(value, count):
    """Slices whose upper half is 0 and whose lower half has a value."""
    image = torch.zeros(count, 1, 16, 16)
    image[:, :, 8:] = value
    return image


@pytest.mark.parametrize("count", [(2, 2), (1, 3), (3, 1)])
def test_slices_are_pasted_into_each_other_both_ways(count):
    labeled, unlabeled = count
    known = {"image": 10 + torch.arange(labeled)[:, None, None, None].expand(-1, 1, 16, 16).float()}
    known |= {"label": torch.ones(labeled, 1, 16, 16), "confidence": torch.full((labeled, 1, 16, 16), LABEL)}
    others = {"image": torch.arange(unlabeled)[:, None, None, None].expand(-1, 1, 16, 16).float()}
    others |= {"label": torch.zeros_like(others["image"]), "confidence": torch.full_like(others["image"], PSEUDO_LABEL)}
    both = paste_both_ways(known, others, 0.5, np.random.default_rng(0))
    for k in range(unlabeled):
        inward, outward = both["image"][k], both["image"][unlabeled + k]
        box = inward == k
        assert box.sum() == 8 * 8
        assert (inward[~box] == 10 + k % labeled).all()
        assert (outward[box] == 10 + (k + 1) % labeled).all() and (outward[~box] == k).all()
    from_labeled = both["image"] >= 10
    assert torch.equal(both["confidence"] == LABEL, from_labeled) and torch.equal(both["label"] == 1, from_labeled)


def test_copy_paste_weighs_labels_and_pseudo_labels_by_the_formula():
    stage = stage_of("copy-paste", (1, 1), side=0.5, unlabeled_weight=0.25, pretraining=0.0)
    network = StudentTeacher(Painted())
    network.teacher.weight.fill_(-1.0)  # so that its classes are the others of the student's
    batch = {"image": half_dark(0.8, 1), "label": half_dark(1.0, 1), "weak": half_dark(0.9, 1)}
    losses = stage.losses(network, batch, 0, np.random.default_rng(3)).losses
    seen = network.student.seen[0]
    logits = network.student(seen).logits.detach()
    pseudo = (batch["weak"] < 0.5).float()
    box = boxes(batch["weak"], 0.5, np.random.default_rng(3))[0, 0]

    def part(way, pixels, label):
        """L_seg of a slice that has these pixels alone."""
        return segmentation_loss(logits[way][:, pixels][None, :, :, None], label[0, 0][pixels][None, None, :, None])

    known = (part(0, ~box, batch["label"]) + part(1, box, batch["label"])) / 2
    guessed = (part(0, box, pseudo) + part(1, ~box, pseudo)) / 2
    torch.testing.assert_close(losses["supervised"].detach(), known)
    torch.testing.assert_close(losses["unsupervised"].detach(), guessed)
    torch.testing.assert_close(losses["loss"].detach(), known + 0.25 * guessed)
    assert torch.equal(network.teacher.seen[0], batch["weak"]) and guessed > known


def test_copy_paste_begins_with_labelled_slices_alone(loaded_cases):
    stage = stage_of("copy-paste", pretraining=0.25)  # the first two of eight updates
    pools = SlicePool(loaded_cases[:2], labels=True, seed=0), SlicePool(loaded_cases[2:], labels=False, seed=1)
    for step in range(4):
        network, rng = StudentTeacher(Painted()), step_generator(0, 0, step)
        batch = stage.batch(TrainingData(*pools), step, rng)
        one_organ = {key: value.clamp_max(1) for key, value in batch.items()}
        losses = stage.losses(network, one_organ, step, rng).losses
        assert (len(network.teacher.seen), losses["unsupervised"] > 0) == ((0, False) if step < 2 else (1, True))


def test_without_unlabelled_patients_the_labelled_ones_slices_stand_in(loaded_cases):
    data = TrainingData(SlicePool(loaded_cases[:2], labels=True, seed=0), SlicePool([], labels=False, seed=1))
    for method in ("copy-paste", "unimatch"):
        stage = stage_of(method)
        batch = stage.batch(data, 7, step_generator(0, 0, 7))
        assert len(batch["weak"]) == 2 and "weak_label" not in batch


def unimatch_losses(threshold, drop=0.0, bright=0.9):
    stage = stage_of("unimatch", (1, 2), threshold=threshold, drop=drop, strong_weight=0.5, feature_weight=0.25)
    network = StudentTeacher(Painted())
    network.teacher.weight.fill_(2.0)
    weak = torch.cat([half_dark(bright, 1), half_dark(0.55, 1)])
    batch = {"image": half_dark(0.8, 1), "label": half_dark(1.0, 1), "weak": weak}
    return stage.losses(network, batch, 0, np.random.default_rng(0)).losses, batch, network


def test_unimatch_follows_the_formula():
    losses, batch, network = unimatch_losses(threshold=0.9)
    # The teacher's logits are 12 (x - 1/2): sure of the dark halves (x = 0) and of x = 0.9, not of x = 0.55.
    images = network.student.seen[0]
    assert len(images) == 1 + 3 * 2 and torch.equal(images[-2:], batch["weak"])
    assert not torch.equal(images[1:3], images[3:5])  # two draws of CutMix

    def consistency(view):
        sure, p = (view != 0.55), (6 * (view - 0.5)).sigmoid().double()
        y = (view > 0.5).double()
        entropy = -(y * p.log() + (1 - y) * (1 - p).log())
        overlap = [2 * (q * t)[sure].sum() / (q**2 + t)[sure].sum() for q, t in ((p, y), (1 - p, 1 - y))]
        return 0.5 * (entropy[sure].sum() / entropy.numel() + 1 - sum(overlap) / 2)

    strong = (consistency(images[1:3]) + consistency(images[3:5])) / 2
    feature = consistency(images[5:])
    torch.testing.assert_close(losses["strong"].detach().double(), strong, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["feature"].detach().double(), feature, rtol=1e-4, atol=1e-6)
    supervised = segmentation_loss(network.student(batch["image"]).logits, batch["label"])
    expected = supervised.double() + 0.5 * strong + 0.25 * feature
    torch.testing.assert_close(losses["loss"].double(), expected, rtol=1e-4, atol=1e-6)
    assert losses["confident"].item() == pytest.approx(0.75)


def test_unimatch_without_a_sure_pixel_is_the_labelled_loss():
    losses, _, _ = unimatch_losses(threshold=1.0)
    assert losses["strong"] == losses["feature"] == losses["confident"] == 0
    assert torch.equal(losses["loss"], losses["supervised"])


def test_channels_of_the_weak_views_alone_are_dropped_and_the_others_grow():
    stage = stage_of("unimatch", drop=0.25)

    class Maps(nn.Module):
        def perturbed(self, images, change):
            self.maps = [change(torch.ones(len(images), 200, 4, 4)), change(torch.ones(len(images), 300, 2, 2))]
            return self.maps[0]

    network = Maps()
    stage.perturbed(network, torch.zeros(5, 1, 4, 4), 2, np.random.default_rng(0))
    for features in network.maps:
        assert (features[:3] == 1).all()
        channels = features[3:].flatten(2)
        assert (channels == channels[:, :, :1]).all()  # whole channels
        torch.testing.assert_close(channels.unique(), torch.tensor([0.0, 4 / 3]))
        assert (channels[:, :, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.08)
        assert not torch.equal(channels[0], channels[1])
