"""`python -m action.prepare`: the phantom on disk, and the check of a data set."""

import json
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from conftest import SHAPE, save_nifti

from action import prepare
from action.errors import InputError


def test_phantom_then_check(tmp_path, capsys):
    prepare.main(["phantom", str(tmp_path / "data"), "--patients", "4", "--seed=5"])
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["seed"] == 5
    assert "4 phantom patients" in capsys.readouterr().out
    prepare.main(["check", str(tmp_path / "data")])
    table = capsys.readouterr().out
    assert "8 cases of 4 patients; 0 of the cases without a label" in table
    assert "myocardium %" in table and "96 96" in table and "1.5 1.5 8" in table


def test_check_counts_voxels(acdc_root, capsys):
    prepare.main(["check", str(acdc_root), "--format", "acdc"])
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("patient002_frame11"))
    label = np.asarray(nib.load(acdc_root / "patient002" / "patient002_frame11_gt.nii.gz").dataobj)
    assert row.split()[-4:] == [f"{100 * share:.2f}" for share in np.bincount(label.ravel(), minlength=4) / label.size]


def test_check_notes_what_is_odd_but_readable(lits_root, tmp_path, capsys):
    root = shutil.copytree(lits_root, tmp_path / "data")
    save_nifti(root / "segmentation-0.nii", np.zeros(SHAPE, np.uint8), np.diag([-0.75, -0.75, 2.5, 1.0]))
    (root / "segmentation-1.nii").unlink()
    prepare.main(["check", str(root), "--format=lits"])
    table = capsys.readouterr().out
    assert "segmentation-9.nii.gz: affine differs" in table
    assert "note: volume-0 has no voxel of liver, tumour" in table
    assert "1 of the cases without a label" in table and "no label" in table


def test_check_names_every_problem(acdc_root, tmp_path, capsys):
    root = shutil.copytree(acdc_root, tmp_path / "data")
    (root / "patient001" / "patient001_frame01.nii.gz").write_bytes(b"")
    save_nifti(root / "patient005" / "patient005_frame01_gt.nii.gz", np.full(SHAPE, 7, np.uint8))
    save_nifti(root / "patient006" / "patient006_frame09.nii.gz", np.full(SHAPE, 7, np.int16))
    with pytest.raises(InputError) as error:
        prepare.main(["check", str(root)])
    for part in ("3 problems", "patient001_frame01.nii.gz", "patient005_frame01_gt.nii.gz", "every voxel is 7"):
        assert part in str(error.value)
    assert "patient002_frame04" in capsys.readouterr().out  # the table of the sound files


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "{tmp}/absent"], "absent does not exist"),
        (["check", "{tmp}"], "no patients in"),
        (["check", "{tmp}", "--format", "dicom"], "dicom"),
        (["phantom", "{tmp}"], "is not this phantom"),
        (["phantom", "{tmp}/new", "--patients", "2"], "2 phantom patients"),
        (["phantom", "{tmp}/new", "--patients", "many"], "patients"),
        ([], "command"),
    ],
)
def test_bad_arguments(tmp_path, arguments, words):
    with pytest.raises(InputError, match=words):
        prepare.main([argument.format(tmp=tmp_path) for argument in arguments])
    assert list(tmp_path.iterdir()) == []


def test_problems_exit_with_2(tmp_path):
    command = [sys.executable, "-m", "action.prepare", "check", str(tmp_path / "absent")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.strip().startswith("error: ") and "absent does not exist" in result.stderr
