import numpy as np
import pytest
import torch
from scipy import ndimage

from action.config import AugmentationConfig, TrainConfig, fill_in
from action.data.augment import Augmentation
from action.data.batches import SlicePool
from action.data.slices import Slices, WholeSlices
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


def still(**settings) -> AugmentationConfig:
    """Nothing but what ``settings`` ask for."""
    nothing = {"rotation": 0.0, "zoom": 0.0, "flip": 0.0, "intensity_probability": 0.0, "deformation_probability": 0.0}
    return AugmentationConfig(**nothing | settings)


def view(augmentation: Augmentation, name: str, batch: Slices, seed: int) -> Slices:
    rng = np.random.default_rng(seed)
    if name != "weak":
        return getattr(augmentation, name)(batch, rng)
    image = batch["image"]
    return augmentation.weak(WholeSlices(batch, [tuple(image.shape[2:])] * len(image)), rng)


@pytest.mark.parametrize("name", ["weak", "strong"])
def test_image_label_and_confidence_move_together(batch, name):
    augmentation = Augmentation(geometry_only(), SIZE)
    moved = 0
    for seed in range(8):
        result = view(augmentation, name, batch, seed)
        label, inside = result["label"], result["confidence"] > 0
        moved += not torch.equal(result["image"], batch["image"])
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


@pytest.mark.parametrize("name", ["weak", "strong", "intensity"])
def test_the_input_is_never_modified(batch, name):
    config = AugmentationConfig(intensity_probability=1.0, deformation_probability=1.0)
    before = {key: value.clone() for key, value in batch.items()}
    result = view(Augmentation(config, SIZE), name, batch, 0)
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
    size = loaded_cases[0].image.shape[2:]
    pool = SlicePool(loaded_cases, labels=True, seed=0)
    settings = fill_in(TrainConfig(method="supervised", augmentation=config), "data", "output", (1.5, 1.5), size)
    stage = make_stages(settings, classes=4)["supervised"]
    weak, strong = stage.two_views(pool, 0, 4, np.random.default_rng(0))
    torch.testing.assert_close(weak["image"], pool.batch(0, 4).canvas["image"], atol=1e-4, rtol=0)
    assert (strong["image"] - weak["image"]).abs().mean() > 0.01
    assert strong["image"].data_ptr() != weak["image"].data_ptr()


def places(height: int, width: int) -> torch.Tensor:
    """Rows of an image [1, 1, H, W] whose every pixel says where it was: row + column / 1000, and never 0."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (1 + y + x / 1000)[None, None].float()


@pytest.mark.parametrize("height, width", [(64, 64), (90, 64), (64, 131), (300, 257), (20, 64), (7, 200), (1, 1)])
def test_a_patch_is_a_part_of_the_slice_and_padded_where_the_slice_is_smaller(height, width):
    canvas = torch.nn.functional.pad(places(height, width), (0, 9, 0, 13))  # beside a larger slice
    augmentation = Augmentation(still(), SIZE)
    corners = set()
    for seed in range(12):
        slices = WholeSlices({"image": canvas, "label": canvas.clone()}, [(height, width)])
        result = augmentation.weak(slices, np.random.default_rng(seed))
        assert result["image"].shape == (1, 1, *SIZE)
        patch = result["label"][0, 0]
        assert (result["image"][0, 0] - patch).abs().max() < 1e-2  # whole pixels: nothing is interpolated
        rows, columns = (patch > 0).any(1).nonzero()[:, 0], (patch > 0).any(0).nonzero()[:, 0]
        assert len(rows) == min(height, 64) and len(columns) == min(width, 64)  # all of the patch or of the slice
        inner = patch[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        top, left = int(inner[0, 0]) - 1, round(1000 * (inner[0, 0].item() % 1))
        expected = places(height, width)[0, 0, top : top + len(rows), left : left + len(columns)]
        assert torch.equal(inner, expected)
        corners.add((top, left))
        for extent, first in ((height, rows[0]), (width, columns[0])):
            if extent < 64:  # in the middle
                assert first == -((extent - 64) // 2)
    assert (len(corners) > 1) == (height > 64 or width > 64)


def test_rotation_keeps_distances_and_zoom_keeps_the_aspect():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    square = (((y - 31.5).abs() < 12) & ((x - 31.5).abs() < 12)).float()[None, None]
    slices = WholeSlices({"image": square.repeat(40, 1, 1, 1)}, [SIZE] * 40)
    turned = Augmentation(still(rotation=180.0), SIZE).weak(slices, np.random.default_rng(0))["image"]
    assert (turned.sum((1, 2, 3)) - square.sum()).abs().max() < 4  # of 576
    assert (turned - square).abs().sum((1, 2, 3)).median() > 30
    zoomed = Augmentation(still(zoom=0.3), SIZE).weak(slices, np.random.default_rng(0))["image"][:, 0]
    height, width = zoomed[:, :, 31].sum(1), zoomed[:, 31].sum(1)
    assert (height - width).abs().max() < 0.1
    assert 0.65 * 24 < height.min() < 0.8 * 24 and 1.2 * 24 < height.max() < 1.35 * 24


def test_a_flip_mirrors_one_axis():
    image = torch.rand(60, 1, *SIZE)
    flipped = Augmentation(still(flip=1.0), SIZE).weak(
        WholeSlices({"image": image}, [SIZE] * 60), np.random.default_rng(0)
    )
    rows, columns = ((flipped["image"] - image.flip(axis)).abs().amax((1, 2, 3)) < 1e-4 for axis in (2, 3))
    assert (rows ^ columns).all() and 15 < rows.sum() < 45


def test_blur_is_a_gaussian_and_a_border_is_not_darkened():
    image = torch.rand(1, 1, *SIZE)
    config = still(intensity_probability=1.0, brightness=(1.0, 1.0), blur=(0.9, 0.9))
    blurred = Augmentation(config, SIZE).intensity({"image": image}, np.random.default_rng(0))["image"][0, 0]
    expected = ndimage.gaussian_filter(image[0, 0].double().numpy(), 0.9, truncate=8)
    assert np.abs(blurred.numpy() - expected)[8:-8, 8:-8].max() < 1e-5
    flat = Augmentation(config, SIZE).intensity({"image": torch.ones(1, 1, *SIZE)}, np.random.default_rng(0))["image"]
    torch.testing.assert_close(flat, torch.ones_like(flat))


def test_brightness_scales_and_contrast_keeps_the_mean():
    image = torch.rand(200, 1, 8, 8)
    config = still(intensity_probability=0.5, brightness=(0.5, 1.5), blur=(0.0, 0.0))
    changed = Augmentation(config, (8, 8)).intensity({"image": image}, np.random.default_rng(0))["image"]
    brightness = changed.mean((1, 2, 3)) / image.mean((1, 2, 3))
    contrast = changed.std((1, 2, 3)) / image.std((1, 2, 3)) / brightness
    for factor in (brightness, contrast):
        assert factor.min() > 0.499 and factor.max() < 1.501
        assert 70 < ((factor - 1).abs() > 1e-4).sum() < 130  # every second slice
    assert ((changed - image).abs().amax((1, 2, 3)) < 1e-6).any()


def test_a_deformation_is_smooth_and_no_larger_than_asked_for():
    slices = {"image": places(*SIZE).repeat(50, 1, 1, 1), "label": places(*SIZE).repeat(50, 1, 1, 1)}
    config = still(deformation=4.0, deformation_probability=0.6)
    result = Augmentation(config, SIZE).strong(slices, np.random.default_rng(0))["label"][:, 0]
    row = torch.where(result > 0, result.floor() - 1 - torch.arange(64.0)[:, None], 0)
    assert 20 < (row.abs().amax((1, 2)) > 0).sum() < 40  # slices that move
    assert 2 <= row.abs().max() <= 5  # bicubic steps between control points may overshoot a little
    assert row[:, 8:-8, 8:-8].diff(dim=1).abs().max() <= 2
