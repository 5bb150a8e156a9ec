import numpy as np
import torch

from action.data.batches import SlicePool, step_generator


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
    batch = pool.batch(5, 4)
    for image, label, index in zip(batch["image"], batch["label"], pool.indices(5, 4), strict=True):
        assert torch.equal(image[0], torch.from_numpy(pool.images[index]))
        assert torch.equal(label[0], torch.from_numpy(pool.labels[index].astype(np.float32)))


def test_unlabelled_batches_have_no_labels(loaded_cases):
    assert set(SlicePool(loaded_cases, labels=False, seed=0).batch(0, 2)) == {"image"}


def test_random_choices_of_a_step_follow_from_its_place():
    def draw(*place):
        return step_generator(*place).integers(2**60)

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)}) == 4
