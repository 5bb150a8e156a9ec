"""The phantom: real files in the ACDC layout, hearts of the right anatomy, patients that differ, equal by seed."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_fill_holes
from scipy.ndimage import label as components

from action.config import InputConfig
from action.data import open_dataset
from action.data.formats.acdc import read_info
from action.data.phantom.scene import SPACING, Anatomy, Appearance, Scene
from action.data.phantom.write import draw, write_phantom
from action.data.split import make_split
from action.data.volumes import load_cases
from action.errors import InputError


def load(path):
    return np.asarray(nib.load(path).dataobj).T


@pytest.fixture(scope="module")
def cases(tiny_phantom):
    return open_dataset(tiny_phantom, "acdc").cases


def pairs(cases):
    """(ED, ES) label of each patient."""
    by_name = {case.name: case for case in cases}
    for patient in dict.fromkeys(case.patient for case in cases):
        ed, es = read_info(by_name[next(n for n in by_name if n.startswith(patient))].image.parent / "Info.cfg")
        yield tuple(load(by_name[f"{patient}_frame{frame:02d}"].label) for frame in (ed, es))


def test_files_are_scanner_like(cases):
    assert len(cases) == 8
    affines = []
    for case in cases:
        image, label = nib.load(case.image), nib.load(case.label)
        assert image.get_data_dtype() == np.int16 and label.get_data_dtype() == np.uint8
        assert image.shape == label.shape and image.shape[:2] == (96, 96) and 8 <= image.shape[2] <= 13
        assert np.allclose(image.header.get_zooms(), SPACING[::-1], atol=1e-5)
        assert np.array_equal(image.affine, label.affine)
        assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
        axes = image.affine[:3, :3] / SPACING[::-1]
        assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-5)  # a rotation (or reflection), and an oblique one
        assert (np.abs(axes) > 0.1).sum() >= 6
        affines.append(image.affine)
        array = load(case.image)
        assert array.min() >= 0 and array.max() > 100
    assert np.array_equal(affines[0], affines[1]) and not np.allclose(affines[0], affines[2], atol=1e-2)


def test_the_set_passes_the_reader_and_brings_its_split(tiny_phantom):
    dataset = open_dataset(tiny_phantom, "acdc")
    assert dataset.class_names == ("background", "right ventricle", "myocardium", "left ventricle")
    load_cases(dataset.cases, 4, InputConfig((1.5, 1.5)))
    split = make_split(dataset.cases, labeled=1, seed=0, file=dataset.split_file)
    assert (len(split.labeled + split.unlabeled), len(split.validation), len(split.test)) == (2, 1, 1)


def test_every_class_is_there_and_some_slices_lack_them(cases):
    for case in cases:
        label = load(case.label)
        present = np.stack([(label == c).any((1, 2)) for c in (1, 2, 3)])
        assert present.any(1).all()
        assert not present[:, 0].any()  # above the base
        right, wall, left = (int(np.flatnonzero(row)[-1]) for row in present)
        assert right <= wall and left < wall  # the apex is muscle
        shares = np.bincount(label.ravel(), minlength=4) / label.size
        assert (shares[1:] > 0.005).all() and shares[0] > 0.8


def test_anatomy_of_the_labels(cases):
    for case in cases:
        label = load(case.label)
        for z in np.flatnonzero((label == 3).sum((1, 2)) > 60):
            ring, cavity, right = label[z] == 2, label[z] == 3, label[z] == 1
            assert components(ring | cavity)[1] == 1
            around = binary_dilation(cavity) & ~cavity
            assert ring[around].all()  # muscle all around the cavity
            assert not (binary_fill_holes(ring) & right).any()
            if right.any():
                assert (binary_dilation(right) & ring).any()  # the septum is shared
                assert np.nonzero(right)[1].mean() < np.nonzero(cavity)[1].mean()  # on the image's left


def test_systole_contracts_the_cavities_and_thickens_the_wall(cases):
    for diastole, systole in pairs(cases):
        assert (systole == 3).sum() < 0.75 * (diastole == 3).sum()
        assert (systole == 1).sum() < 0.95 * (diastole == 1).sum()
        assert (systole == 2).any((1, 2)).sum() < (diastole == 2).any((1, 2)).sum()  # the base moves down
        z = len(diastole) // 2

        def thickness(label):
            inside, outside = (label == 3).sum(), (label >= 2).sum()
            return np.sqrt(outside / np.pi) - np.sqrt(inside / np.pi)

        assert thickness(systole[z]) > thickness(diastole[z])


def test_blood_is_brighter_than_muscle_and_distractors_are_as_bright_as_the_heart(cases):
    for case in cases:
        image, label = load(case.image).astype(float), load(case.label)
        z = int((label == 3).sum((1, 2)).argmax())
        blood, muscle = (np.median(image[z][label[z] == c]) for c in (3, 2))
        assert blood > 1.2 * muscle
        background = image[z][label[z] == 0]
        assert (background > 0.8 * blood).sum() > 50 and (np.abs(background - muscle) < 0.2 * muscle).sum() > 200


def test_the_chest_does_not_beat():
    anatomy, look = draw(Anatomy, 1, np.random.default_rng(0))[0], draw(Appearance, 1, np.random.default_rng(1))[0]
    scenes = [Scene(anatomy, contraction, 10, np.random.default_rng(2)) for contraction in (0.0, 1.0)]
    diastole, systole = (scene.signal(look) for scene in scenes)
    changed = np.abs(diastole - systole) > 1e-3
    heart = binary_dilation(np.maximum(*(scene.label() for scene in scenes)) > 0, np.ones((3, 3, 3)), iterations=6)
    assert changed[heart].any() and changed[~heart].mean() < 0.02


def test_patients_spread_evenly_over_every_range():
    for kind in (Anatomy, Appearance):
        patients = draw(kind, 12, np.random.default_rng(0))
        for field in dataclasses.fields(kind):
            low, high = field.metadata["range"]
            values = np.array([getattr(patient, field.name) for patient in patients])
            strata = np.floor((values - low) / (high - low) * 12).astype(int)
            assert sorted(strata) == list(range(12)), field.name


def test_patients_differ_in_contrast_and_shape(cases):
    ratios, areas = [], []
    for case in cases[::2]:
        image, label = load(case.image), load(case.label)
        ratios.append(np.median(image[label == 2]) / np.median(image[label == 3]))
        areas.append((label == 3).sum())
    assert max(ratios) > 1.1 * min(ratios) and max(areas) > 1.15 * min(areas)


def test_equal_arguments_give_equal_files(tiny_phantom, tmp_path):
    again = write_phantom(tmp_path / "again", patients=4, seed=3)
    files = sorted(path.relative_to(tiny_phantom) for path in tiny_phantom.rglob("*"))
    assert files == sorted(path.relative_to(again) for path in again.rglob("*"))
    for path in files:
        if (tiny_phantom / path).is_file():
            assert (tiny_phantom / path).read_bytes() == (again / path).read_bytes(), path
    other = write_phantom(tmp_path / "other", patients=4, seed=4)
    first = [load(sorted(root.glob("patient001/*_gt.nii.gz"))[0]) for root in (tiny_phantom, other)]
    assert first[0].shape != first[1].shape or not np.array_equal(*first)


def test_it_is_written_once_and_never_over_something_else(tiny_phantom, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tiny_phantom.rglob("*")}
    assert write_phantom(tiny_phantom, patients=4, seed=3) == tiny_phantom
    assert before == {path: path.stat().st_mtime_ns for path in tiny_phantom.rglob("*")}
    with pytest.raises(InputError, match="is not this phantom"):
        write_phantom(tiny_phantom, patients=5, seed=3)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="notes exists"):
        write_phantom(tmp_path / "notes")
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupted(*_):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.zeros((8, 96, 96), np.uint8)

    monkeypatch.setattr(Scene, "label", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "data", patients=4)
    assert len(calls) == 2 and list(tmp_path.iterdir()) == []


def test_too_few_patients(tmp_path):
    with pytest.raises(InputError, match="3 phantom patients"):
        write_phantom(tmp_path / "data", patients=3)
