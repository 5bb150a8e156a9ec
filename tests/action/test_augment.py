import numpy as np
import pytest
import torch
from monai.data.meta_obj import get_track_meta, set_track_meta

from action.config import AugmentationConfig, TrainConfig, fill_in
from action.data.augment import Augmentation
from action.data.batches import SlicePool
from action.stages import make_stages

SIZE = (64, 64)


@pytest.fixture
def batch():
    """One slice whose label and confidence can be read off its image."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    blob = ((x - 24) ** 2 + 1.5 * (y - 38) ** 2 < 14**2).astype(np.float32)
    image = torch.from_numpy(0.25 + 0.5 * blob)[None, None]
    return {"image": image, "label": torch.from_numpy(blob)[None, None], "confidence": image.clone()}


def geometry_only():
    return AugmentationConfig(intensity_probability=0.0, deformation=6.0, deformation_probability=1.0)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_image_label_and_confidence_move_together(batch, view):
    augmentation = Augmentation(geometry_only(), SIZE)
    moved = 0
    for seed in range(8):
        result = getattr(augmentation, view)(batch, np.random.default_rng(seed))
        label, inside = result["label"], result["confidence"] > 0
        moved += not torch.equal(label, batch["label"])
        assert set(label.unique().tolist()) <= {0.0, 1.0}
        # The image still says the label and the confidence everywhere but on the interpolated edge of the blob.
        agrees = ((result["image"] > 0.5) == (label > 0.5)) & ((result["image"] - result["confidence"]).abs() < 0.26)
        assert agrees[inside].float().mean() > 0.97
    assert moved == 8


def test_intensity_moves_nothing(batch):
    config = AugmentationConfig(intensity_probability=1.0, blur=(0.5, 1.0))
    result = Augmentation(config, SIZE).intensity(batch, np.random.default_rng(0))
    assert torch.equal(result["label"], batch["label"]) and torch.equal(result["confidence"], batch["confidence"])
    assert not torch.equal(result["image"], batch["image"])


@pytest.mark.parametrize("view", ["weak", "strong", "intensity"])
def test_the_input_is_never_modified(batch, view):
    config = AugmentationConfig(intensity_probability=1.0, deformation_probability=1.0)
    before = {key: value.clone() for key, value in batch.items()}
    result = getattr(Augmentation(config, SIZE), view)(batch, np.random.default_rng(0))
    assert all(torch.equal(batch[key], before[key]) for key in batch)
    assert all(result[key].data_ptr() != batch[key].data_ptr() for key in batch)


def test_the_same_generator_gives_the_same_view(batch):
    augmentation = Augmentation(AugmentationConfig(), SIZE)
    three = {key: value.repeat(3, 1, 1, 1) for key, value in batch.items()}
    first, second = (augmentation.strong(three, np.random.default_rng(5))["image"] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])  # each slice has draws of its own


def test_the_two_views_are_separate_and_the_teacher_gets_the_weak_one(loaded_cases):
    config = AugmentationConfig(intensity_probability=1.0, rotation=0.0, zoom=0.0, flip=0.0)
    size = loaded_cases[0].image.shape[1:]
    pool = SlicePool(loaded_cases, labels=True, seed=0)
    settings = fill_in(TrainConfig(method="supervised", augmentation=config), "data", "output", size)
    stage = make_stages(settings, classes=4)["supervised"]
    weak, strong = stage.two_views(pool, 0, 4, np.random.default_rng(0))
    torch.testing.assert_close(weak["image"], pool.batch(0, 4)["image"], atol=1e-4, rtol=0)
    assert (strong["image"] - weak["image"]).abs().mean() > 0.01
    assert strong["image"].data_ptr() != weak["image"].data_ptr()


def test_augmentation_leaves_the_switches_of_its_library_as_they_are():
    batch = {"image": torch.rand(2, 1, *SIZE)}
    for tracked in (True, False):
        set_track_meta(tracked)
        try:
            augmentation = Augmentation(AugmentationConfig(), SIZE)
            for view in (augmentation.weak, augmentation.strong, augmentation.intensity):
                assert type(view(batch, np.random.default_rng(0))["image"]) is torch.Tensor
                assert get_track_meta() is tracked
        finally:
            set_track_meta(True)
