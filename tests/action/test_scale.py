"""One scale for all slices: what is chosen, round trips to the file's own grid, and windows over large slices."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import save_nifti
from torch import nn

from action.cli import parse_config
from action.config import InputConfig
from action.data.cases import Case
from action.data.orientation import Turn
from action.data.scale import choose_scale
from action.data.volumes import load_case, resize_to_native
from action.errors import InputError
from action.experiment import resolve
from action.inference import Member, Segmenter, segment
from action.model.network import NetworkOutput


def case(folder: Path, name: str, shape: tuple[int, int, int], spacing: tuple[float, float], turn=None) -> Case:
    """Noise of ``shape`` (Z, Y, X) with pixels of ``spacing`` (y, x), 8 mm apart."""
    image, affine = np.random.default_rng(0).normal(100, 20, shape), np.diag([spacing[1], spacing[0], 8.0, 1.0])
    if turn is not None:
        image, affine = turn.apply(image), turn.affine(affine, shape)
    return Case(name, name, save_nifti(folder / f"{name}.nii.gz", image.astype(np.float32), affine), None)


def test_the_pixel_and_the_patch_are_those_of_the_median_volume(tmp_path):
    cases = [
        case(tmp_path, "a", (2, 100, 80), (1.0, 1.0)),  # 100 x 80 mm
        case(tmp_path, "b", (2, 90, 60), (1.5, 1.4)),  # 135 x 84 mm
        case(tmp_path, "c", (2, 40, 30), (3.0, 9.0)),  # 120 x 270 mm
    ]
    assert choose_scale(cases, None, None) == ((1.5, 1.4), (96, 64))  # 120 / 1.5 = 80 and 84 / 1.4 = 60, in steps
    assert choose_scale(cases, (0.5, 2.0), None) == ((0.5, 2.0), (256, 64))  # 240 and 42
    assert choose_scale(cases, (0.1, 0.1), None) == ((0.1, 0.1), (256, 256))
    assert choose_scale(cases, None, (48, 16)) == ((1.5, 1.4), (48, 16))


def test_a_slice_of_whole_steps_gives_the_patch_its_own_size(tmp_path):
    assert choose_scale([case(tmp_path, "a", (2, 96, 64), (1.1, 1.3))], None, None) == ((1.1, 1.3), (96, 64))


def test_volumes_stored_the_other_way_count_as_they_are_sliced(tmp_path):
    usual = [case(tmp_path, name, (3, 64, 32), (1.0, 2.0)) for name in "ab"]
    other = [case(tmp_path, name, (3, 64, 32), (1.0, 2.0), Turn((1, 0, 2), (1, -1, 1))) for name in "cdefg"]
    spacing, size = choose_scale([*usual, *other[:1]], None, None)
    assert np.allclose(spacing, (1, 2)) and size == (64, 32)
    spacing, size = choose_scale([*usual, *other], None, None)
    assert np.allclose(spacing, (2, 1)) and size == (32, 64)


def test_files_without_a_readable_header_are_named_together(tmp_path):
    cases = [case(tmp_path, name, (2, 8, 8), (1.0, 1.0)) for name in "abc"]
    for broken in cases[1:]:
        broken.image.write_bytes(broken.image.read_bytes()[:50])
    with pytest.raises(InputError, match=r"(?s)2 problems.*b\.nii\.gz.*c\.nii\.gz"):
        choose_scale(cases, None, None)


def test_only_training_patients_choose_and_every_method_sees_the_same_scale(acdc_root):
    def scale(*flags: str) -> tuple[object, object]:
        config = resolve(parse_config([f"--data={acdc_root}", "--labeled=2", *flags]))
        return config.input.spacing, config.input.size

    assert scale() == scale("--method=supervised") == ((1.5, 1.5), (32, 32))
    assert scale("--input.spacing=[0.75,3]", "--model.window=16", "--model.stride=16") == ((0.75, 3.0), (64, 32))
    assert scale("--input.size=[64,48]", "--model.window=16", "--model.stride=16") == ((1.5, 1.5), (64, 48))


GRIDS = {
    "finer": ((2, 60, 50), (1.5, 1.5), (0.7, 0.7)),
    "coarser": ((2, 120, 90), (1.0, 1.0), (2.3, 2.3)),
    "anisotropic": ((2, 70, 110), (2.0, 0.9), (1.5, 1.5)),
    "to anisotropic": ((2, 70, 64), (1.5, 1.5), (1.1, 2.4)),
    "tiny": ((1, 5, 3), (1.5, 1.5), (0.8, 1.1)),
    "a line": ((1, 40, 1), (1.0, 1.0), (0.7, 3.0)),
    "huge": ((1, 1500, 900), (0.4, 0.4), (1.3, 1.3)),
    "prime": ((3, 101, 37), (1.37, 1.37), (1.0, 1.0)),
}


@pytest.mark.parametrize(("shape", "spacing", "wanted"), GRIDS.values(), ids=GRIDS.keys())
def test_a_round_trip_moves_no_border_by_more_than_half_a_voxel(tmp_path, shape, spacing, wanted):
    height, width = shape[1:]
    middle = height // 2, width // 2
    label = np.zeros(shape, np.uint8)
    label[:, : middle[0], : middle[1]] = 1
    label[:, middle[0] :, middle[1] :] = 2
    source = case(tmp_path, "a", shape, spacing)
    truth = save_nifti(tmp_path / "gt.nii.gz", label, nib.load(source.image).affine)
    loaded = load_case(Case("a", "a", source.image, truth), 3, InputConfig(wanted))
    expected = [max(1, round(e * s / w)) for e, s, w in zip(shape[1:], spacing, wanted, strict=True)]
    assert list(loaded.image.shape[2:]) == list(loaded.label.shape[1:]) == expected  # the aspect is kept
    back = resize_to_native(torch.eye(3)[torch.from_numpy(loaded.label).long()].movedim(3, 1), shape, loaded.box)
    for axis, extent in enumerate(shape[1:]):
        # Where the network's pixels are no larger than the file's, not at all. Else by half a pixel of the network's,
        # which then falls between two of the file's.
        ratio = wanted[axis] / spacing[axis]
        allowed = 0.0 if ratio <= 1 else 0.5 * ratio + 0.5
        other = np.arange(shape[2 - axis]) < middle[1 - axis]
        for side, value in ((other, 1), (~other, 2)):
            lines = np.moveaxis(back, 1 + axis, -1)[:, side]  # along this axis
            drawn = (lines == value).sum(-1)
            true = middle[axis] if value == 1 else extent - middle[axis]
            if drawn.size:
                assert np.abs(np.median(drawn) - true) <= allowed


def test_spacings_that_would_make_far_too_many_pixels_are_refused_with_the_file(tmp_path):
    with pytest.raises(InputError, match=r"a\.nii\.gz: 50 voxels of 900 mm become 45000 pixels of input.spacing 1 mm"):
        load_case(case(tmp_path, "a", (1, 50, 20), (900.0, 1.0)), 2, InputConfig((1.0, 1.0)))


class Pointwise(nn.Module):
    """A network whose logits follow from each pixel alone, so that windows must not show."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-3.0, 2.0, 5.0])[:, None, None])
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> NetworkOutput:
        self.seen.append(tuple(image.shape))
        return NetworkOutput(self.weight * (image - 0.4), [])


@pytest.mark.parametrize("height, width", [(32, 48), (5, 7), (200, 130), (32, 49), (20, 300), (1, 1)])
def test_windows_cover_every_slice_and_do_not_show(height, width):
    network, image = Pointwise(), np.random.default_rng(0).random((3, 1, height, width)).astype(np.float16)
    result = torch.stack(list(Segmenter([Member(network, (32, 48))], 4).slices(image)))
    with torch.no_grad():
        expected = network(torch.from_numpy(image).float()).logits.softmax(1)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)
    assert all(shape[1:] == (1, 32, 48) and shape[0] <= 4 for shape in network.seen[:-1])


def test_a_prediction_lies_on_the_file_s_own_grid(tmp_path):
    source = case(tmp_path, "a", (2, 75, 33), (0.9, 2.1))
    loaded = load_case(source, 3, InputConfig((1.5, 1.5)))
    labels = segment(Pointwise(), loaded, (32, 32), 8)
    assert labels.shape == (2, 75, 33) and labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 2}
