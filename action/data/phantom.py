"""A phantom data set: short-axis cine MRI of invented hearts, written as NIfTI files in the ACDC layout.

Every patient is drawn from continuous ranges of anatomy (`Anatomy`) and of scanner appearance (`Appearance`), spread
evenly over the patients by Latin hypercube sampling. Lengths are in mm. In-plane axes: x to the image's right (the
patient's left), y down; z runs from base (0) to apex. Angles turn from x to y.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from action.data.nifti import write_volume
from action.data.split import SETS

CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")
SIZE = 96
"""Voxels along y and x."""
SPACING = (8.0, 1.5, 1.5)
"""Voxel size (z, y, x) in mm."""
DEPTHS = (-2.7, 0.0, 2.7)
"""A thick slice is the mean of sections at these offsets in z."""


def write_phantom(root: Path | str, patients: int = 24, seed: int = 0) -> Path:
    """Writes the data set to the folder `root`, aside and then renamed, and returns `root`. Equal arguments give equal files.

    Beside the patients lie `dataset.json` (classes, origin) and `split.json` (of 24 patients: 16 train, 3 validation,
    5 test).

    Raises:
        FileExistsError: `root` exists.
        ValueError: fewer than 4 patients.
    """
    root = Path(root)
    if root.exists():
        raise FileExistsError(f"{root} exists: remove it or choose another folder")
    if patients < 4:
        raise ValueError(f"patients = {patients}: a split needs at least 4")
    rng = np.random.default_rng(seed)
    anatomies, appearances = _draw(Anatomy, patients, rng), _draw(Appearance, patients, rng)
    names = [f"patient{i + 1:03d}" for i in range(patients)]
    aside = root.with_name(f".partial-{os.getpid()}-{root.name}")
    try:
        for name, anatomy, appearance in zip(names, anatomies, appearances, strict=True):
            _write_patient(aside / name, anatomy, appearance, np.random.default_rng(rng.integers(2**63)))
        test, validation = max(1, round(0.2 * patients)), max(1, round(0.12 * patients))
        train = patients - test - validation
        sets = names[:train], names[train : train + validation], names[train + validation :]
        _write_json(aside / "split.json", dict(zip(SETS, sets, strict=True)))
        about = "synthetic short-axis cardiac MRI, drawn by action.data.phantom; no patient data"
        content = {"classes": CLASSES, "about": about, "patients": patients, "seed": seed, "spacing_zyx_mm": SPACING}
        _write_json(aside / "dataset.json", content)
        aside.rename(root)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return root


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_patient(folder: Path, anatomy: Anatomy, appearance: Appearance, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    diastole = 1 if rng.random() < 0.7 else int(rng.integers(2, 5))
    systole = diastole + int(rng.integers(7, 13))
    slices = int(np.ceil((anatomy.length - anatomy.top) / SPACING[0])) + int(rng.integers(0, 2))
    affine = _affine(rng, slices)
    body_seed = int(rng.integers(2**63))  # what does not beat is the same in both frames
    for frame, contraction in ((diastole, 0.0), (systole, 1.0)):
        scene = Scene(anatomy, contraction, slices, np.random.default_rng(body_seed))
        image = acquire(scene.tissue(appearance), appearance, np.random.default_rng(body_seed + 1), rng)
        stem = folder / f"{folder.name}_frame{frame:02d}"
        write_volume(f"{stem}.nii.gz", image, affine, None)
        write_volume(f"{stem}_gt.nii.gz", scene.label(), affine, None)
    info = {"ED": diastole, "ES": systole, "Group": "PHANTOM", "NbFrame": systole + int(rng.integers(8, 16))}
    (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()), encoding="utf-8")


def _draw(kind: type, count: int, rng: np.random.Generator) -> list:
    """Latin hypercube: each parameter's range is cut into `count` strata and every patient gets one of each."""
    columns = {}
    for field in fields(kind):
        low, high = field.default
        columns[field.name] = low + (high - low) * (rng.permutation(count) + rng.random(count)) / count
    return [kind(**{name: float(values[i]) for name, values in columns.items()}) for i in range(count)]


def _affine(rng: np.random.Generator, slices: int) -> np.ndarray:
    """Voxel (x, y, z) to RAS mm of a double-oblique short-axis stack, a little different for every patient."""
    normal = np.array([-0.65, 0.55, -0.5]) + rng.normal(0, 0.07, 3)  # to the apex: left, anterior, inferior
    normal /= np.linalg.norm(normal)
    down = np.array([0, -0.55, -0.8]) + rng.normal(0, 0.07, 3)
    down -= normal * (down @ normal)
    down /= np.linalg.norm(down)
    axes = np.stack([np.cross(normal, down), down, normal], axis=1) * SPACING[::-1]
    centre = np.array([-25, 10, 5]) + rng.normal(0, 12, 3)
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = centre - axes @ ((np.array([SIZE, SIZE, slices]) - 1) / 2)
    return affine.round(6)


