import dataclasses

import numpy as np
import torch

from action.data.batches import SlicePool, step_generator

SIZES = [(20, 50), (48, 8), (32, 32)]


def test_an_epoch_has_every_slice_once_and_epochs_differ(loaded_cases):
    pool = SlicePool(loaded_cases, labels=True, seed=3)
    n = len(pool)
    assert n == sum(len(case.image) for case in loaded_cases)
    first, second = pool.indices(0, n), pool.indices(n, n)
    assert sorted(first) == sorted(second) == list(range(n))
    assert list(first) != list(second)
    # A batch across the border of two epochs, and the same places asked for in another way.
    assert list(pool.indices(n - 2, 4)) == [*first[-2:], *second[:2]]


def test_labels_come_with_their_images(loaded_cases):
    pool = SlicePool(loaded_cases, labels=True, seed=0)
    batch, sizes = pool.batch(5, 4)
    assert sizes == [tuple(pool.images[0].shape)] * 4
    for image, label, index in zip(batch["image"], batch["label"], pool.indices(5, 4), strict=True):
        assert torch.equal(image[0], pool.images[index].float())
        assert torch.equal(label[0], pool.labels[index].float())
    assert set(pool.batch(5, 4, labels=False).canvas) == {"image"}


def test_slices_of_different_sizes_lie_on_one_canvas(loaded_cases):
    cases = [dataclasses.replace(loaded_cases[0], image=np.full((1, h, w), h / 64, np.float16)) for h, w in SIZES]
    canvas, sizes = SlicePool(cases, labels=False, seed=0).batch(0, len(SIZES))
    assert sorted(sizes) == sorted(SIZES) and canvas["image"].shape == (3, 1, 48, 50)
    for image, (height, width) in zip(canvas["image"][:, 0], sizes, strict=True):
        assert (image[:height, :width] == height / 64).all()
        assert image.sum() == image[:height, :width].sum()


def test_unlabelled_batches_have_no_labels(loaded_cases):
    assert set(SlicePool(loaded_cases, labels=False, seed=0).batch(0, 2).canvas) == {"image"}


def test_random_choices_of_a_step_follow_from_its_place():
    def draw(*place):
        return step_generator(*place).integers(2**60)

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)}) == 4
