"""Gzip files, by both libraries: whole, in members, cut, damaged; at every boundary between pieces."""

import gzip
import random
import zlib

import nibabel as nib
import numpy as np
import pytest
from isal import isal_zlib

from action.data import nifti, unpacking
from action.data.nifti import read_image
from action.data.unpacking import pieces, unpack

RNG = random.Random(0)


@pytest.fixture(params=[zlib, isal_zlib], ids=["zlib", "isal"], autouse=True)
def library(request, monkeypatch):
    monkeypatch.setattr(unpacking, "library", request.param)


def members(count):
    """Plain and packed, with and without zeros between the members."""
    plain = [bytes(RNG.choices(range(RNG.choice([1, 2, 256])), k=RNG.choice([0, 1, 700]))) for _ in range(count)]
    return b"".join(plain), b"".join(gzip.compress(part) + bytes(RNG.choice([0, 0, 9])) for part in plain)


@pytest.mark.parametrize("piece", [1, 7, 64, 2**16])
def test_all_of_it_and_its_beginning(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(unpacking, "PIECE", piece)
    path = tmp_path / "a.gz"
    for count in range(1, 4):
        plain, packed = members(count)
        path.write_bytes(packed)
        assert b"".join(pieces(path)) == plain and all(len(part) <= piece for part in pieces(path))
        for size in (0, len(plain) // 2, len(plain)):
            assert unpack(path, size).tobytes() == plain[:size]
        with pytest.raises(EOFError, match=f"holds {len(plain)} bytes where its header claims {len(plain) + 1}"):
            unpack(path, len(plain) + 1)


@pytest.mark.parametrize("piece", [1, 7, 2**16])
def test_damage_is_found_behind_what_is_wanted(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(unpacking, "PIECE", piece)
    path = tmp_path / "a.gz"
    packed = gzip.compress(bytes(RNG.choices(range(256), k=300)))
    for end in range(1, 9):
        path.write_bytes(packed[:-end])
        with pytest.raises(EOFError, match="end-of-stream"):
            unpack(path, 10)
        damaged = bytearray(packed)
        damaged[-end] ^= 1  # of the checksum or the length
        path.write_bytes(damaged)
        with pytest.raises((zlib.error, isal_zlib.error)):
            unpack(path, 10)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "u1", "i1", "<u2", "<i4", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_the_voxels_are_those_of_nibabel(tmp_path, dtype, scaled, end):
    dtype = np.dtype(dtype)
    stored = np.random.default_rng(0).integers(0, 100, (5, 4, 3)).astype(dtype)
    header = nib.Nifti1Header(endianness=dtype.byteorder if dtype.byteorder in "<>" else "<")
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(stored, np.diag([1.5, 1.5, 8, 1]), header)
    if scaled:
        image.header.set_slope_inter(0.3, 7)
    nib.save(image, tmp_path / f"a{end}")
    expected = nib.load(tmp_path / f"a{end}").get_fdata(dtype=np.float32).T
    plain, narrow = (read_image(tmp_path / f"a{end}", narrow=narrow).array for narrow in (False, True))
    assert plain.dtype == np.float32 and np.array_equal(plain, expected) and np.array_equal(narrow, expected)
    small = dtype.kind in "iu" and dtype.itemsize <= 2 and not scaled
    assert narrow.dtype == (dtype.newbyteorder("=") if small else np.float32) and narrow.dtype.isnative
    assert narrow.flags.c_contiguous and narrow.flags.writeable
    values = nifti.label_values(tmp_path / f"a{end}")
    assert len(values) == len(np.unique(expected)) and not isinstance(narrow, np.memmap)
