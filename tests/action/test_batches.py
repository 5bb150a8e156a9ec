import dataclasses

import numpy as np
import pytest
import torch

from action.data import batches
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
    assert sizes == [tuple(pool.images[0].shape[1:])] * 4
    for image, label, index in zip(batch["image"], batch["label"], pool.indices(5, 4), strict=True):
        assert torch.equal(image, pool.images[index].float())
        assert torch.equal(label, pool.labels[index].float())
    assert set(pool.batch(5, 4, labels=False).canvas) == {"image"}


def test_slices_of_different_sizes_lie_on_one_canvas(loaded_cases):
    cases = [dataclasses.replace(loaded_cases[0], image=np.full((1, 1, h, w), h / 64, np.float16)) for h, w in SIZES]
    canvas, sizes = SlicePool(cases, labels=False, seed=0).batch(0, len(SIZES))
    assert sorted(sizes) == sorted(SIZES) and canvas["image"].shape == (3, 1, 48, 50)
    for image, (height, width) in zip(canvas["image"][:, 0], sizes, strict=True):
        assert (image[:height, :width] == height / 64).all()
        assert image.sum() == image[:height, :width].sum()


@pytest.mark.parametrize("free", [10**9, 1000])
def test_slices_lie_on_the_gpu_if_they_take_a_part_of_its_memory(loaded_cases, monkeypatch, free):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * 10**9))
    assert batches._fits(loaded_cases, torch.device("cuda")) == (free > 1000)
    assert batches._fits(loaded_cases, torch.device("cpu"))


def test_a_batch_is_made_on_the_device_wherever_the_slices_lie(loaded_cases):
    pool = SlicePool(loaded_cases, labels=True, seed=0)
    pool._device = torch.device("meta")  # as a GPU that does not hold the slices
    assert {value.device.type for value in pool.batch(0, 3).canvas.values()} == {"meta"}


def test_unlabelled_batches_have_no_labels(loaded_cases):
    assert set(SlicePool(loaded_cases, labels=False, seed=0).batch(0, 2).canvas) == {"image"}


def test_random_choices_of_a_step_follow_from_its_place():
    def draw(*place):
        return step_generator(*place).integers(2**60)

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)}) == 4
