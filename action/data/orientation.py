"""Which way the axes of a volume run: turning volumes to a common order and direction, and back.

A direction matrix [3, 3] has the unit vectors of a file's voxel axes x, y, z as its columns, in scanner coordinates.
Volumes are compared with each other and not with the scanner's axes: short-axis stacks of the heart lie oblique to all
of these, where the nearest axis is a matter of chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import nibabel as nib
import numpy as np

T = TypeVar("T", int, float)
CLEAR = 0.8
"""Smallest cosine (37 degrees) at which an axis of one volume is taken for that axis of another."""


@dataclass(frozen=True)
class Turn:
    """A permutation and flips of the axes, without resampling.

    Args:
        axes: for each axis x, y, z of the stored volume the axis that it becomes.
        signs: -1 where it is flipped as well.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    signs: tuple[int, int, int] = (1, 1, 1)

    @property
    def is_identity(self) -> bool:
        return self == Turn()

    @property
    def _orientation(self) -> np.ndarray:
        return np.array([self.axes, self.signs], float).T

    def apply(self, array: np.ndarray) -> np.ndarray:
        """A stored array [Z, Y, X], turned; contiguous."""
        return np.ascontiguousarray(nib.apply_orientation(array.T, self._orientation).T)

    def undo(self, array: np.ndarray) -> np.ndarray:
        """The stored array of a turned one [Z, Y, X]; contiguous."""
        back = nib.orientations.ornt_transform(Turn()._orientation, self._orientation)  # noqa: SLF001  its own class
        return np.ascontiguousarray(nib.apply_orientation(array.T, back).T)

    def sizes(self, sizes: tuple[T, T, T]) -> tuple[T, T, T]:
        """Extents or spacings (z, y, x) of the stored volume in the order (z, y, x) of the turned one."""
        becomes = dict(zip(self.axes, sizes[::-1], strict=True))
        return becomes[2], becomes[1], becomes[0]

    def affine(self, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """The affine [4, 4] of the turned volume, from that of a stored one of ``shape`` (Z, Y, X)."""
        turned: np.ndarray = affine @ nib.orientations.inv_ornt_aff(self._orientation, shape[::-1])
        return turned

    def directions(self, directions: np.ndarray) -> np.ndarray:
        """The direction matrix of the turned volume."""
        turned = np.empty((3, 3))
        turned[:, list(self.axes)] = directions * self.signs
        return turned


def directions_of(affine: np.ndarray) -> np.ndarray:
    """Direction matrix [3, 3] of an affine [4, 4] that is neither singular nor infinite."""
    axes = affine[:3, :3].astype(np.float64)
    directions: np.ndarray = axes / np.linalg.norm(axes, axis=0)
    return directions


def axis_codes(directions: np.ndarray) -> str:
    """The scanner's axes nearest to x, y, z, such as ``LPS``."""
    affine = np.eye(4)
    affine[:3, :3] = directions
    return "".join(code or "?" for code in nib.aff2axcodes(affine))


def turn_between(stored: np.ndarray, wanted: np.ndarray) -> Turn | None:
    """What turns a volume of directions ``stored`` [3, 3] to ``wanted``; ``None`` where it is too oblique to tell."""
    cosines = wanted.T @ stored  # [wanted axis, stored axis]
    axes = np.abs(cosines).argmax(0)
    matched = cosines[axes, range(3)]
    if len(set(axes)) < 3 or np.abs(matched).min() < CLEAR:
        return None
    x, y, z = (int(axis) for axis in axes)
    flip_x, flip_y, flip_z = (int(sign) for sign in np.sign(matched))
    return Turn((x, y, z), (flip_x, flip_y, flip_z))


def common_directions(volumes: Sequence[np.ndarray]) -> np.ndarray | None:
    """The directions [3, 3] of the volume with which most others agree without a turn; ``None`` without volumes."""
    if not volumes:
        return None
    directions = np.stack(volumes)  # [N, 3, 3]
    along = np.einsum("nij,mij->nmj", directions, directions)  # cosine between the same axes of two volumes
    agree = (along > CLEAR).all(2)
    # Among those that agree with most others, the one in their middle.
    score = agree.sum(1) + (along.mean(2) * agree).sum(1) / (1 + len(volumes))
    middle: np.ndarray = directions[int(np.round(score, 9).argmax())]
    return middle


def common_axes(volumes: Sequence[np.ndarray | None]) -> tuple[np.ndarray | None, list[Turn]]:
    """The directions that volumes have in common, and what turns each of them there.

    Args:
        volumes: their directions [3, 3]; ``None`` where a header leaves them open: such a volume is not turned.

    Returns:
        ``None`` and no turns if most headers leave them open; an oblique volume is not turned either.
    """
    known = [directions for directions in volumes if directions is not None]
    common = common_directions(known) if 2 * len(known) >= len(volumes) else None
    if common is None:
        return None, [Turn() for _ in volumes]
    return common, [Turn() if d is None else turn_between(d, common) or Turn() for d in volumes]
