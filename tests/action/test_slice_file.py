"""Arrays on disk that are read slice by slice: the same as in memory, damage is found and repaired."""

import numpy as np
import pytest

from action.data.slice_file import Damaged, SliceFile, write_slices

RNG = np.random.default_rng(0)
IMAGE = RNG.random((5, 2, 7, 9)).astype(np.float16)
LABEL = RNG.integers(4, size=(5, 7, 9), dtype=np.uint8)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "case.slices"
    write_slices(path, {"name": "é", "numbers": [1, 0.1]}, {"image": IMAGE, "label": LABEL})
    return path


def test_indices_slices_and_all_of_it(path):
    file = SliceFile(path)
    assert file.content == {"name": "é", "numbers": [1, 0.1]}
    assert file.array("truth") is None
    for name, array in (("image", IMAGE), ("label", LABEL)):
        stored = file.array(name)
        assert (stored.shape, stored.dtype, stored.nbytes, len(stored)) == (array.shape, array.dtype, array.nbytes, 5)
        assert np.array_equal(np.asarray(stored), array)
        assert np.array_equal(np.asarray(stored, np.float32), array.astype(np.float32))
        for place in (0, 4, -1, -5, np.int64(3), slice(1, 3), slice(None, None, -2), slice(4, 2)):
            assert np.array_equal(stored[place], array[place]), place
        for place in (5, -6):
            with pytest.raises(IndexError):
                stored[place]
        stored[0][...] = 0  # a copy, which may be written to
        assert np.array_equal(stored[0], array[0])


def test_labels_are_packed_and_images_are_not(tmp_path):
    sizes = {}
    for name, dtype in (("image", np.float16), ("label", np.uint8)):
        write_slices(tmp_path / name, {}, {name: np.zeros((3, 100, 100), dtype)})
        sizes[name] = (tmp_path / name).stat().st_size
    assert sizes["image"] > 60_000 and sizes["label"] < 1000


@pytest.mark.parametrize("length", [0, 10, -1, -19, -20, -200])
def test_a_file_cut_short_is_refused(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Damaged):
        SliceFile(path)


def test_no_changed_byte_goes_unnoticed(path):
    whole = path.read_bytes()
    for place in range(0, len(whole), 13):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(Damaged):
            file = SliceFile(path)
            for name in ("image", "label"):
                np.asarray(file.array(name))


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_is_repaired_once(path, gone):
    whole, repairs = path.read_bytes(), []

    def repair():
        repairs.append(1)
        path.write_bytes(whole)

    stored = SliceFile(path, repair).array("image")
    if gone:
        path.unlink()
    else:
        path.write_bytes(b"\0" * len(whole))
    assert np.array_equal(np.asarray(stored), IMAGE)
    assert repairs == [1]


def test_a_repair_that_does_not_help_is_an_error(path):
    stored = SliceFile(path, lambda: None).array("image")
    path.write_bytes(b"")
    with pytest.raises(Damaged):
        stored[0]
