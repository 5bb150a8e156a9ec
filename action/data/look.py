"""What of a fingerprint the preparation of a volume follows from: the scaling of its intensities, and its axes.

It can be guessed before there is a fingerprint, from the headers of the training volumes and a volume's own
intensities. So a volume is prepared while it is in memory to be measured, and only where the guess was wrong again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from action.data.cases import Case
from action.data.orientation import Turn, common_axes, turn_between
from action.data.reading import channels_of, read_grid
from action.errors import InputError

if TYPE_CHECKING:
    from action.data.fingerprint import Measures

AUTO = "auto"
AIR_HU = -500.0
"""Values below it occur in CT (air, lung) and not in MRI."""

Directions = tuple[tuple[float, float, float], ...]
"""A direction matrix [3, 3] as in ``orientation``, by rows."""


@dataclass(frozen=True)
class Look:
    """How volumes are shown to the network.

    Args:
        intensities: of each channel a name in ``INTENSITIES``, or ``auto``: as the volume's own intensities suggest.
        directions: common to the training volumes; ``None`` if most of their headers give none.
    """

    intensities: tuple[str, ...]
    directions: Directions | None

    def turn(self, measures: Measures) -> Turn:
        """What brings a volume into the axes of the training volumes; none where its header leaves that open."""
        if self.directions is None or measures.directions is None:
            return Turn()
        return turn_between(measures.directions, np.array(self.directions)) or Turn()

    def settled(self, measures: Sequence[Measures]) -> Look:
        """This look, for a volume whose first channels have these ``measures``: what was ``auto`` in them is chosen."""
        chosen = [choose_intensity(name, [m]) for name, m in zip(self.intensities, measures, strict=False)]
        return Look((*chosen, *self.intensities[len(chosen) :]), self.directions)


def guess_look(case: Case, intensity: str, directions: Directions | None) -> Look:
    """The look that a case will have if all volumes are like it."""
    return Look((intensity,) * channels_of(case), directions)


def choose_intensity(intensity: str, measures: Sequence[Measures]) -> str:
    """A name in ``INTENSITIES`` for a channel of volumes with these ``measures``.

    ``auto``: ``hu`` if half of the volumes or more have a thousandth of their voxels below -500, which is air in
    Hounsfield units, otherwise ``minmax``.
    """
    if intensity != AUTO:
        return intensity
    return "hu" if 2 * volumes_with_air(measures) >= len(measures) else "minmax"


def volumes_with_air(measures: Sequence[Measures]) -> int:
    """How many volumes have values as air has them in CT."""
    return sum(m.quantiles[0] < AIR_HU for m in measures)


def listed(directions: np.ndarray | None) -> Directions | None:
    """Directions [3, 3] as plain numbers."""
    return None if directions is None else tuple((float(x), float(y), float(z)) for x, y, z in directions)


def directions_in_headers(cases: Sequence[Case]) -> Directions | None:
    """The directions that the fingerprint of cases will have, from their headers; what cannot be read has none."""
    found = []
    for case in cases:
        with suppress(InputError):  # loading the case says so
            found.append(read_grid(case).directions)
    return listed(common_axes(found)[0])
