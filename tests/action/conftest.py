"""Miniature data sets in both layouts, written once a session. A test that changes files works on a copy."""

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser import CHROMIUM, Page, opened
from placeholders import instead_of_figures

from action.config import InputConfig
from action.data import open_dataset
from action.data.phantom import write_phantom
from action.data.volumes import LoadedCase, load_cases

SHAPE = (4, 32, 32)  # z, y, x


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Writes [Z, Y, X] straight with nibabel, so that the project's reader is not tested against its own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.5, 1.5, 8.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), path)
    return path


def blobs(rng: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """An image int16 and a label uint8 [Z, Y, X] in which every class is a bright ellipse of its own."""
    z, y, x = np.indices(SHAPE)
    image, label = rng.normal(100, 15, SHAPE), np.zeros(SHAPE, np.uint8)
    for index in range(1, classes):
        cy, cx = 16 + 8 * np.array([np.sin(2.1 * index), np.cos(2.1 * index)]) + rng.uniform(-2, 2, 2)
        inside = ((y - cy) / 4) ** 2 + ((x - cx) / 5) ** 2 < 1 - 0.08 * z
        label[inside] = index
        image[inside] += 120 * index
    return image.round().astype(np.int16), label


@pytest.fixture(scope="session", autouse=True)
def _without_figures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        instead_of_figures(patch)
        yield


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Page]:
    """A page in a headless browser."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium to open a page with")
    with opened(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="session")
def acdc_root(tmp_path_factory) -> Path:
    """Ten patients of two labelled frames; end-diastole is not always frame 1, and patient003 has a single frame."""
    root, rng = tmp_path_factory.mktemp("acdc"), np.random.default_rng(0)
    for number in range(1, 11):
        patient = f"patient{number:03d}"
        frames = {2: (4, 11), 3: (1, 1)}.get(number, (1, 9))
        for frame in set(frames):
            image, label = blobs(rng, 4)
            save_nifti(root / patient / f"{patient}_frame{frame:02d}.nii.gz", image)
            save_nifti(root / patient / f"{patient}_frame{frame:02d}_gt.nii.gz", label)
        (root / patient / f"{patient}_4d.nii.gz").write_bytes(b"never read")
        (root / patient / "Info.cfg").write_text(f"ED: {frames[0]}\nES: {frames[1]}\nGroup: NOR\nNbFrame: 30\n")
    return root


@pytest.fixture(scope="session")
def lits_root(tmp_path_factory) -> Path:
    """Ten CT volumes, flat and in a sub-folder, compressed and not; the last segmentation has an identity affine."""
    root, rng = tmp_path_factory.mktemp("lits"), np.random.default_rng(1)
    for number in range(10):
        image, label = blobs(rng, 3)
        image = image - 150
        image[:, :3] = -1000  # air
        folder, end = (root, ".nii") if number < 6 else (root / "batch2", ".nii.gz")
        affine = np.diag([-0.75, -0.75, 2.5, 1.0])
        save_nifti(folder / f"volume-{number}{end}", image, affine)
        save_nifti(folder / f"segmentation-{number}{end}", label, np.eye(4) if number == 9 else affine)
    return root


@pytest.fixture(scope="session")
def tiny_phantom(tmp_path_factory) -> Path:
    """A phantom of four patients."""
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", patients=4, seed=3)


@pytest.fixture(scope="session")
def loaded_cases(acdc_root) -> list[LoadedCase]:
    """The first six cases of `acdc_root` in memory, at their own size."""
    dataset = open_dataset(acdc_root, "acdc")
    return load_cases(dataset.cases[:6], len(dataset.class_names), InputConfig((1.5, 1.5)))
