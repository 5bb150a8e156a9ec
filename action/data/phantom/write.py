"""A phantom data set: short-axis cine MRI of invented hearts, written as NIfTI files in the ACDC layout.

Every patient is drawn from continuous ranges of anatomy and of scanner appearance, so that a network trained on one of
them meets others that it does not know, and between any two there are intermediate ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from action.data.nifti import write_volume
from action.data.phantom.scene import SIZE, SPACING, Anatomy, Appearance, Scene, acquire
from action.data.split import SETS
from action.errors import InputError
from action.files import aside_of, check_writable, remove_abandoned

CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")
MOST_PATIENTS = 10_000
T = TypeVar("T", Anatomy, Appearance)


def write_phantom(root: Path | str, patients: int = 24, seed: int = 0) -> Path:
    """Write the data set to the folder ``root``, aside and then renamed, unless it is there already.

    Equal arguments give equal files. Beside the patients lie ``dataset.json`` (classes, origin) and ``split.json`` (of
    24 patients: 16 train, 3 validation, 5 test).

    Returns:
        ``root``.

    Raises:
        InputError: ``root`` holds something else; fewer than 4 or far too many patients; a seed out of range.
    """
    root = Path(root)
    if patients < 4:
        raise InputError(f"{patients} phantom patients asked for: train, validation and test sets need at least 4")
    if patients > MOST_PATIENTS:
        raise InputError(f"{patients} phantom patients asked for: at most {MOST_PATIENTS} are drawn, about 1 MB each")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed is {seed}: it must be between 0 and {2**63 - 1}")
    about = "synthetic short-axis cardiac MRI, drawn by action.data.phantom; no data of people"
    content = {"classes": list(CLASSES), "about": about, "patients": patients, "seed": seed, "ranges": _ranges()}
    if root.exists():
        if _read_json(root / "dataset.json") != content:
            raise InputError(
                f"{root} exists and is not this phantom ({patients} patients, seed {seed}): choose another folder"
            )
        return root
    check_writable(root.parent, "the phantom's folder", root)
    rng = np.random.default_rng(seed)
    anatomies, looks = draw(Anatomy, patients, rng), draw(Appearance, patients, rng)
    names = [f"patient{i + 1:03d}" for i in range(patients)]
    print(f"writing {patients} synthetic hearts to {root}", flush=True)
    remove_abandoned(root.parent, root.name.__eq__)
    aside = aside_of(root)
    try:
        for name, anatomy, look in zip(names, anatomies, looks, strict=True):
            _write_patient(aside / name, anatomy, look, np.random.default_rng(rng.integers(2**63)))
        test, validation = max(1, round(0.2 * patients)), max(1, round(0.12 * patients))
        train = patients - test - validation
        sets = names[:train], names[train : train + validation], names[train + validation :]
        _write_json(aside / "split.json", dict(zip(SETS, sets, strict=True)))
        _write_json(aside / "dataset.json", content)
        aside.rename(root)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return root


def draw(kind: type[T], count: int, rng: np.random.Generator) -> list[T]:
    """Latin hypercube: the range of each field is cut into ``count`` strata, and every patient gets another one."""
    columns = {}
    for field in fields(kind):
        low, high = field.metadata["range"]
        columns[field.name] = low + (high - low) * (rng.permutation(count) + rng.random(count)) / count
    return [kind(**{name: float(values[i]) for name, values in columns.items()}) for i in range(count)]


def _write_patient(folder: Path, anatomy: Anatomy, look: Appearance, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    diastole = 1 if rng.random() < 0.7 else int(rng.integers(2, 5))
    systole = diastole + int(rng.integers(7, 13))
    slices = int(np.ceil((anatomy.length - anatomy.top) / SPACING[0])) + int(rng.integers(0, 2))
    affine = _oblique_affine(rng, slices)
    still = int(rng.integers(2**62))  # both frames show the same chest
    for frame, contraction in ((diastole, 0.0), (systole, 1.0)):
        scene = Scene(anatomy, contraction, slices, np.random.default_rng(still))
        image = acquire(scene.signal(look), look, np.random.default_rng(still + 1), rng)
        stem = folder / f"{folder.name}_frame{frame:02d}"
        write_volume(f"{stem}.nii.gz", image, affine, None)
        write_volume(f"{stem}_gt.nii.gz", scene.label(), affine, None)
    info = {"ED": diastole, "ES": systole, "Group": "PHANTOM", "NbFrame": systole + int(rng.integers(8, 16))}
    (folder / "Info.cfg").write_text("".join(f"{key}: {value}\n" for key, value in info.items()), encoding="utf-8")


def _oblique_affine(rng: np.random.Generator, slices: int) -> np.ndarray:
    """Voxel (x, y, z) to RAS millimetres of a double-oblique short-axis stack, different for every patient."""
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
    return affine


def _ranges() -> dict[str, dict[str, list[float]]]:
    """What patients are drawn from, written beside them: a phantom of other ranges is another phantom."""
    kinds = (Anatomy, Appearance)
    return {kind.__name__.lower(): {f.name: list(f.metadata["range"]) for f in fields(kind)} for kind in kinds}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
