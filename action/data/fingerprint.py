"""The fingerprint of a data set: how its training volumes look, and so how every volume is shown to the network.

What concerns the whole data set is decided once, from all training volumes, and kept with the run: whether the
intensities of a channel are Hounsfield units, and which way the axes run. A volume that differs from the training
volumes is reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from action.data.cases import Case
from action.data.intensities import INTENSITIES, LEVELS, quantiles
from action.data.look import AIR_HU, Directions, Look, choose_intensity, listed, volumes_with_air
from action.data.nifti import Volume, known_directions
from action.data.notes import keeping
from action.data.orientation import Turn, axis_codes, common_axes, turn_between
from action.data.reading import read_channels
from action.errors import InputError
from action.files import write_aside
from action.progress import track
from action.workers import in_parallel

_LOW, _HIGH = 1, len(LEVELS) - 2
_OFFSET_TISSUE = (824, 1274)
"""Soft tissue, -200 to 250 HU, in files that store 1024 more than the Hounsfield units."""


@dataclass(frozen=True)
class Measures:
    """What is kept of a volume to compare it with the others.

    Args:
        path: the file.
        quantiles: intensities at ``LEVELS``.
        lowest, highest: the extreme intensities.
        offset_tissue: share of the voxels in ``_OFFSET_TISSUE``.
        spacing: voxel size (z, y, x) in mm.
        shape: voxels (z, y, x).
        directions: [3, 3] as in ``orientation``; ``None`` where the header gives neither sform nor qform.
    """

    path: str
    quantiles: tuple[float, ...]
    lowest: float
    highest: float
    offset_tissue: float
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    directions: np.ndarray | None


@dataclass(frozen=True)
class Fingerprint:
    """The training volumes of a data set, and what was decided from them.

    Args:
        volumes: number of volumes.
        volumes_with_air: how many have values below -500.
        intensity: ``hu`` or ``minmax``, see ``INTENSITIES``.
        quantiles: median over the volumes of their intensities at ``levels``.
        relative_quantiles: the same of intensities between the volume's own 0.5 % (0) and 99.5 % (1) quantiles.
        ranges: smallest and largest distance of these two in a volume; a tenth of the volumes may lie beyond each.
        levels: see ``quantiles``.
        spacing: median voxel size (z, y, x) in mm.
        spacing_ranges: of each axis, as in ``ranges``.
        shape_ranges: voxels of each axis (z, y, x), as in ``ranges``.
        directions: common directions [3, 3] of the axes, by rows; ``None`` if most headers give none.
        axis_codes: the scanner's axes nearest to x, y, z.
        others: of the further channels, whose grid is the first one's.
    """

    volumes: int
    volumes_with_air: int
    intensity: str
    quantiles: tuple[float, ...]
    relative_quantiles: tuple[float, ...]
    ranges: tuple[float, float]
    spacing: tuple[float, float, float]
    spacing_ranges: tuple[tuple[float, float], ...]
    shape_ranges: tuple[tuple[float, float], ...]
    directions: Directions | None
    axis_codes: str | None
    levels: tuple[float, ...] = LEVELS
    others: tuple[Fingerprint, ...] = ()

    @property
    def channels(self) -> tuple[Fingerprint, ...]:
        """The fingerprint of every channel."""
        return self, *self.others

    @property
    def look(self) -> Look:
        """How volumes are shown to the network."""
        return Look(tuple(channel.intensity for channel in self.channels), self.directions)

    def turn(self, measures: Measures) -> Turn:
        """See ``Look.turn``."""
        return self.look.turn(measures)


def measure(volume: Volume) -> Measures:
    """``Measures`` of a volume as it is stored."""
    array = volume.array
    low, high = _OFFSET_TISSUE
    return Measures(
        str(volume.path),
        quantiles(array),
        float(array.min()),
        float(array.max()),
        sum(np.count_nonzero((slice_ > low) & (slice_ < high)) for slice_ in array) / array.size,
        volume.spacing,
        array.shape,
        known_directions(volume.header, volume.affine),
    )


def make_fingerprint(measures: Sequence[Measures], intensity: str) -> Fingerprint:
    """The fingerprint of one channel of volumes, at least one.

    Args:
        measures: of the volumes.
        intensity: ``minmax`` or ``hu`` prescribes the scaling, ``auto``: see ``choose_intensity``.
    """
    common, turns = common_axes([m.directions for m in measures])
    spacings = np.array([turn.sizes(m.spacing) for turn, m in zip(turns, measures, strict=True)])
    shapes = np.array([turn.sizes(m.shape) for turn, m in zip(turns, measures, strict=True)])
    return Fingerprint(
        volumes=len(measures),
        volumes_with_air=volumes_with_air(measures),
        intensity=choose_intensity(intensity, measures),
        quantiles=_plain(np.median([m.quantiles for m in measures], axis=0)),
        relative_quantiles=_plain(np.median([_relative(m.quantiles) for m in measures], axis=0)),
        ranges=_middle([m.quantiles[_HIGH] - m.quantiles[_LOW] for m in measures]),
        spacing=_plain(np.median(spacings, axis=0)),
        spacing_ranges=tuple(_middle(column) for column in spacings.T),
        shape_ranges=tuple(_middle(column) for column in shapes.T),
        directions=listed(common),
        axis_codes=None if common is None else axis_codes(common),
    )


def measures_of(case: Case) -> list[Measures]:
    """``Measures`` of each channel of a case.

    Raises:
        InputError: see ``read_channels``.
    """
    return [measure(channel) for channel in read_channels(case, narrow=True)]


def fingerprint_of(
    cases: Sequence[Case],
    intensity: str,
    measure_case: Callable[[Case], list[Measures]] | None = None,
    *,
    progress: bool = False,
) -> Fingerprint | None:
    """The fingerprint of cases on disk; ``None`` if no image of theirs can be read.

    Files that cannot be read are passed over, and what is odd is not told: loading the cases does both.

    Args:
        cases: the training volumes.
        intensity: as for ``make_fingerprint``.
        measure_case: does what ``measures_of`` does, and more; a case that it refuses is measured alone.
        progress: shows a bar.
    """

    def attempt(case: Case) -> list[Measures] | None:
        with keeping():
            for measures in (measure_case, measures_of):
                with suppress(InputError):
                    if measures is not None:
                        return measures(case)
        return None

    reading = in_parallel(attempt, cases)
    tracked = track(reading, "measuring", "volume", total=len(cases), leave=False, disable=not progress)
    measures = [found for found in tracked if found is not None]
    return join_channels(measures, intensity) if measures else None


def join_channels(measures: Sequence[Sequence[Measures]], intensity: str) -> Fingerprint:
    """The fingerprint of volumes with all their channels.

    Args:
        measures: of each volume those of its channels. Volumes with another number than the first are passed over:
            loading the cases reports them.
        intensity: as for ``make_fingerprint``; "auto" decides for each channel.
    """
    alike = [volume for volume in measures if len(volume) == len(measures[0])]
    first, *others = (make_fingerprint(channel, intensity) for channel in zip(*alike, strict=True))
    return replace(first, others=tuple(others))


def unlike(measures: Sequence[Measures], fingerprint: Fingerprint) -> list[str]:
    """Sentences about a volume that differs from the training volumes: intensities, axes, voxel size, extent.

    Args:
        measures: of the volume's channels.
        fingerprint: of the training volumes, with as many channels.
    """
    notes = []
    for channel, usual in zip(measures, fingerprint.channels, strict=True):
        notes += [f"{channel.path}: {note}" for note in _unlike_intensities(channel, usual)]
    return notes + [f"{measures[0].path}: {note}" for note in _unlike_geometry(measures[0], fingerprint)]


def save_fingerprint(fingerprint: Fingerprint, path: Path) -> None:
    """Write JSON, aside and then renamed."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(asdict(fingerprint), indent=2) + "\n", encoding="utf-8")


def load_fingerprint(path: Path) -> Fingerprint:
    """Read what ``save_fingerprint`` wrote.

    Raises:
        InputError: missing or damaged file.
    """
    if not path.is_file():
        raise InputError(
            f"{path} does not exist: the run is of an older version, which scaled every volume by itself; use that "
            "version, or train again"
        )
    try:
        return _checked(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a readable fingerprint ({type(error).__name__}: {error}): train again"
        ) from error


def _checked(content: Any) -> Fingerprint:
    """The fingerprint that a JSON file holds; those of runs before there were channels have no ``others``.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it holds something else.
    """
    others = tuple(_checked(other) for other in content.get("others", ()))
    known = {field.name: _tuples(content[field.name]) for field in fields(Fingerprint) if field.name != "others"}
    fingerprint = Fingerprint(**known, others=others)
    numbers = [np.array(value, float) for name, value in vars(fingerprint).items() if name in _SHAPES]
    sound = [number.shape for number in numbers] == list(_SHAPES.values())
    sound &= all(np.isfinite(number).all() for number in numbers)
    sound &= fingerprint.directions is None or np.array(fingerprint.directions, float).shape == (3, 3)
    if not sound or fingerprint.intensity not in INTENSITIES or fingerprint.levels != LEVELS:
        raise ValueError("values that a fingerprint cannot have")
    return fingerprint


_SHAPES = {
    "quantiles": (len(LEVELS),),
    "relative_quantiles": (len(LEVELS),),
    "ranges": (2,),
    "spacing": (3,),
    "spacing_ranges": (3, 2),
    "shape_ranges": (3, 2),
}
"""Shapes of a fingerprint's numbers, in the order of its fields."""


def _unlike_intensities(m: Measures, fingerprint: Fingerprint) -> list[str]:
    notes = []
    q, usual = m.quantiles, fingerprint.quantiles
    extent = q[_HIGH] - q[_LOW]
    if fingerprint.intensity == "hu":
        # Stored without a sign: no value is negative, and soft tissue lies where otherwise only bone does.
        if q[_LOW] > -50 and usual[_LOW] < AIR_HU and m.offset_tissue > 0.1:
            notes.append(
                f"has no air below 0, but {100 * m.offset_tissue:.0f} % of its voxels where CT stored with 1024 added "
                "has soft tissue; the training volumes are in Hounsfield units: subtract it (scl_inter of -1024 in its "
                "header), if it is CT"
            )
        elif q[0] > AIR_HU > usual[0]:
            notes.append(
                f"has no air (values from {m.lowest:g} to {m.highest:g}), unlike the training volumes: cropped, or not "
                "in Hounsfield units?"
            )
        elif q[_LOW] < usual[_LOW] - 500 or q[_HIGH] > usual[_HIGH] + 2000:
            notes.append(
                f"99 % of its values lie from {q[_LOW]:g} to {q[_HIGH]:g}, those of the training volumes from "
                f"{usual[_LOW]:g} to {usual[_HIGH]:g}: padding, or not in Hounsfield units?"
            )
    else:
        low, high = fingerprint.ranges
        apart = np.abs(np.subtract(_relative(q), fingerprint.relative_quantiles))[_LOW + 1 : _HIGH].mean()
        if q[0] < AIR_HU < usual[0]:
            notes.append(f"has values below {AIR_HU:g}, as air has in CT, which the training volumes have not")
        if extent > 0 and not low / 20 <= extent <= high * 20:
            notes.append(
                f"99 % of its values span {extent:g}, those of the training volumes {low:g} to {high:g}: another unit?"
            )
        if apart > 0.25:
            notes.append(
                f"its intensities are distributed unlike those of the training volumes (by {100 * apart:.0f} % of the "
                "range on average): another kind of image, an inverted one, or a crop?"
            )
    if extent > 0 and max(m.highest - q[-1], q[0] - m.lowest) > 5 * extent:
        notes.append(
            f"has single values from {m.lowest:g} to {m.highest:g} far outside the others ({q[0]:g} to {q[-1]:g}), "
            "which are cut off"
        )
    return notes


def _unlike_geometry(m: Measures, fingerprint: Fingerprint) -> list[str]:
    notes = []
    turn = fingerprint.turn(m)
    if fingerprint.directions is not None:
        if m.directions is None:
            notes.append("its header has neither sform nor qform: it is sliced as it is stored")
        elif turn_between(m.directions, np.array(fingerprint.directions)) is None:
            notes.append("lies oblique to the training volumes: it is sliced as it is stored")
        elif not turn.is_identity:
            notes.append(
                f"stored with other axes than the training volumes ({fingerprint.axis_codes}), sliced as they are"
            )
    spacing = turn.sizes(m.spacing)
    if _beyond(spacing, fingerprint.spacing_ranges):
        notes.append(
            f"voxels of {_shown(spacing)} mm, those of the training volumes are {_shown(fingerprint.spacing)} (median)"
        )
    shape = turn.sizes(m.shape)
    if _beyond(shape, fingerprint.shape_ranges):
        low, high = zip(*fingerprint.shape_ranges, strict=True)
        notes.append(f"{_shown(shape)} voxels, the training volumes have {_shown(low)} to {_shown(high)}")
    return notes


def _beyond(values: Sequence[float], ranges: tuple[tuple[float, float], ...]) -> bool:
    """Whether a value is less than half of the smallest or more than twice the largest."""
    return any(not low / 2 <= value <= high * 2 for value, (low, high) in zip(values, ranges, strict=True))


def _relative(values: Sequence[float]) -> np.ndarray:
    low, high = values[_LOW], values[_HIGH]
    return np.clip((np.array(values) - low) / (high - low), -1, 2) if high > low else np.zeros(len(values))


def _middle(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value, without a tenth of the values at each end."""
    ordered = sorted(float(value) for value in values)
    cut = len(ordered) // 10
    return ordered[cut], ordered[len(ordered) - 1 - cut]


def _plain(values: np.ndarray) -> Any:
    """A tuple of as many plain numbers as there are values."""
    return tuple(float(value) for value in values)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _shown(sizes: Sequence[float]) -> str:
    """x y z of sizes (z, y, x)."""
    return " x ".join(f"{size:.3g}" for size in sizes[::-1])
