"""From files to volumes at the network's scale and back to the file's own grid."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from action.config import RunInputConfig
from action.data.cases import Case, raise_problems
from action.data.crops import CROPS, Box
from action.data.fingerprint import Fingerprint, Measures, fingerprint_of, measure, unlike
from action.data.intensities import intensity_limits, scale_intensity
from action.data.look import Look
from action.data.nifti import Volume
from action.data.notes import tell
from action.data.orientation import Turn
from action.data.reading import channels_of, read_channels, read_label
from action.data.scale import pixels
from action.data.slice_file import Voxels
from action.errors import InputError
from action.progress import track
from action.workers import in_parallel

if TYPE_CHECKING:
    from action.data.findings import Facts


@dataclass
class LoadedCase:
    """A case whose axes have the order and direction of those of the training volumes; ``write_label`` turns them back.

    Its arrays are in memory, or on disk (``action.data.prepared``) and read by slice.

    Args:
        name, patient: as in ``Case``.
        image: float16 [Z, C, H, W] of C channels, in [0, 1] at the network's spacing: finer than the noise, in half
            the memory of float32. H and W are as large as the slices are.
        label: uint8 [Z, H, W] at the network's spacing, ``None`` without a label file.
        truth: uint8 [Z, Y, X] of the file's voxels, ``None`` without a label file and in training, which needs none.
        spacing: voxel size (z, y, x) in mm; 1 where the file has none.
        volume: geometry for writing; its array is empty, its shape is ``shape``.
        shape: (Z, Y, X) of the file's voxels.
        box: the part of every slice that ``image`` and ``label`` show.
        measures: of the file's channels.
        facts, description: what ``findings.of_case`` and ``identity.describe_case`` say, of a case that is on disk:
            nothing has to read it for that.
    """

    name: str
    patient: str
    image: Voxels
    label: Voxels | None
    truth: Voxels | None
    spacing: tuple[float, float, float]
    volume: Volume
    shape: tuple[int, int, int]
    box: Box
    measures: Sequence[Measures] = ()
    facts: Facts | None = None
    description: list[float] | None = None

    @property
    def required_truth(self) -> np.ndarray:
        """``truth`` in memory, of a case that is evaluated."""
        if self.truth is None:
            raise ValueError(f"{self.name} has no label to be compared with")
        return np.asarray(self.truth)


def unit_of(cases: Sequence[LoadedCase]) -> str:
    """In what distances are given: mm, or voxels if no volume has a voxel size."""
    return "mm" if any(case.volume.sized for case in cases) else "voxels"


def load_case(
    case: Case, classes: int, config: RunInputConfig, fingerprint: Fingerprint | None = None, *, keep_truth: bool = True
) -> LoadedCase:
    """Read and verify a case and brings its slices to the spacing of ``config``: image bilinear, label nearest.

    Intensities of each channel are scaled and axes turned as those of the training volumes, whose ``fingerprint`` this
    is (without one, the volume's own); a warning says in what the volume differs from them. The crop is that of the
    first channel.
    ``keep_truth``: whether the labels of the file's own voxels are kept beside them.

    Raises:
        InputError: see ``read_channels``, ``read_label`` and ``intensity_limits``; another number of channels than the
            training volumes have; no air around the body that is to be cropped to; slices that would be far too large.
    """
    fingerprint = fingerprint or fingerprint_of([case], config.intensity)
    if fingerprint is None:
        deque(read_channels(case), maxlen=0)  # says why a channel cannot be read
        raise AssertionError(f"{case.image} can be read after all")
    loaded = read_case(case, classes, config, fingerprint.look, keep_truth=keep_truth)
    tell_unlike(loaded, fingerprint)
    return loaded


def tell_unlike(case: LoadedCase, fingerprint: Fingerprint) -> None:
    """Tell the user in what a case differs from the training volumes."""
    tell(unlike(case.measures, fingerprint))


def read_case(case: Case, classes: int, config: RunInputConfig, look: Look, *, keep_truth: bool) -> LoadedCase:
    """As ``load_case`` with a ``look``, of which what is open follows from the volume; without notes on the volume."""
    check_channels(case, len(look.intensities))
    channels = read_channels(case, narrow=True)
    volume = next(channels)
    truth = read_label(case, volume, classes)
    measures = [measure(volume)]
    turn = look.turn(measures[0])
    volume = volume.turned(turn)
    truth = None if truth is None else turn.apply(truth)
    shape = volume.array.shape
    try:
        rows, columns = box = CROPS[config.crop](volume.array)
        size = tuple(
            pixels(part.stop - part.start, spacing, wanted)
            for part, spacing, wanted in zip(box, volume.spacing[1:], config.spacing, strict=True)
        )
    except InputError as error:
        raise InputError(f"{case.image}: {error}") from None
    geometry = replace(volume, array=np.empty((0, 0, 0), np.float32))  # frees the native voxels' memory
    image = np.empty((shape[0], len(look.intensities), *size), np.float16)
    _show(volume.array, look.settled(measures).intensities[0], turn, measures[0], box, image[:, 0])
    del volume
    for index, channel in enumerate(channels, start=1):
        measures.append(measure(channel))
        array, intensity = turn.apply(channel.array), look.settled(measures).intensities[index]
        _show(array, intensity, turn, measures[index], box, image[:, index])
    label = None if truth is None else _pick(truth[:, rows, columns], size)
    truth = truth if keep_truth else None
    return LoadedCase(case.name, case.patient, image, label, truth, geometry.spacing, geometry, shape, box, measures)


def check_channels(case: Case, wanted: int) -> None:
    """Refuse an image that has not as many channels as the training volumes.

    Raises:
        InputError: it has more or fewer.
    """
    there = channels_of(case)
    if there == wanted:
        return
    names = [f"{case.name}_{index:04d}.nii.gz" for index in range(wanted)]
    remedy = f"give each as a file, {', '.join(names)}" if wanted > 1 else "give that one alone"
    raise InputError(
        f"{case.image}: {_count(there)} of {case.name} there, but the training volumes have {_count(wanted)}: {remedy}"
    )


def _count(channels: int) -> str:
    return "one channel" if channels == 1 else f"{channels} channels"


def _show(array: np.ndarray, intensity: str, turn: Turn, measures: Measures, box: Box, shown: np.ndarray) -> None:
    """Write what the network sees of a turned channel [Z, Y, X] into ``shown`` [Z, H, W]: in [0, 1], by slices."""
    # Of a large volume every n-th voxel is sorted, and a turn gives others.
    limits = intensity_limits(array, intensity, measures.quantiles if turn.is_identity else None)
    for slice_, target in zip(array, shown, strict=True):
        scaled = scale_intensity(slice_[None, box[0], box[1]], limits)
        resized = _resize(scaled, target.shape, mode="bilinear", antialias=True)[0]
        torch.from_numpy(target).copy_(torch.from_numpy(resized))  # rounds as NumPy does, many times as fast


def load_cases(
    cases: Sequence[Case],
    classes: int,
    config: RunInputConfig,
    fingerprint: Fingerprint | None = None,
    *,
    training: Collection[str] = (),
    progress: bool = False,
    load: Callable[..., LoadedCase] = load_case,
) -> list[LoadedCase]:
    """``load_case`` of all ``cases``, in their order and on all cores; ``progress`` shows a bar.

    ``fingerprint``: that of the training volumes; without one, that of ``cases``.
    ``load``: in the place of ``load_case``, as ``PreparedCases.load``.
    ``training``: patients who are never evaluated, so that the labels of the file's own voxels need not be kept.

    Raises:
        InputError: the problems of all files in one message.
    """
    fingerprint = fingerprint or fingerprint_of(cases, config.intensity)

    def attempt(case: Case) -> LoadedCase | InputError:
        try:
            return load(case, classes, config, fingerprint, keep_truth=case.patient not in training)
        except InputError as error:
            return error

    reading = in_parallel(attempt, cases)
    results = list(track(reading, "reading", "volume", total=len(cases), leave=False, disable=not progress))
    loaded = [result for result in results if isinstance(result, LoadedCase)]
    problems = [str(result) for result in results if isinstance(result, InputError)]
    raise_problems(problems, "the data set")
    return loaded


def native_slice(case: LoadedCase, z: int) -> np.ndarray:
    """The first channel of a slice on the file's own grid, to be shown; black where it was cropped away."""
    rows, columns = case.box
    image = np.zeros(case.shape[1:], np.float32)
    extent = rows.stop - rows.start, columns.stop - columns.start
    image[rows, columns] = _resize(case.image[z][:1].astype(np.float32), extent, mode="bilinear")[0]
    return image


def resize_to_native(
    slices: Iterable[torch.Tensor],
    shape: tuple[int, int, int],
    box: Box,
    probabilities: np.ndarray | None = None,
) -> np.ndarray:
    """Class probabilities [C, H, W] of a ``box`` of every slice to uint8 labels of ``shape`` (Z, Y, X).

    Outside the box is background. Probabilities are interpolated (bilinear), then the largest one is taken: smoother
    outlines than resized labels.

    Args:
        slices: Z of them, each dropped before the next is asked for: all at once would be large.
        shape: of the file's voxels.
        box: rows and columns.
        probabilities: [C, Z, Y, X], filled with what was interpolated; ``None``: it is not kept.
    """
    rows, columns = box
    extent = rows.stop - rows.start, columns.stop - columns.start
    labels = np.zeros(shape, np.uint8)
    if probabilities is not None:
        probabilities[0], probabilities[1:] = 1, 0
    for z, slice_ in zip(range(shape[0]), slices, strict=True):
        if slice_.shape[1:] != extent:
            slice_ = F.interpolate(slice_[None].float(), size=extent, mode="bilinear", align_corners=False)[0]
        labels[z, rows, columns] = slice_.argmax(0).to(torch.uint8).cpu().numpy()
        if probabilities is not None:
            probabilities[:, z, rows, columns] = slice_.cpu().numpy()
    return labels


def _pick(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Labels [Z, Y, X] at another size: of every pixel the nearest voxel's."""
    if array.shape[1:] == size:
        return array
    rows, columns = (_nearest(there, wanted) for there, wanted in zip(array.shape[1:], size, strict=True))
    picked = np.empty((len(array), *size), array.dtype)
    for slice_, result in zip(array, picked, strict=True):
        slice_.take(rows, 0).take(columns, 1, out=result, mode="clip")  # without clip, a copy is made first
    return picked


def _nearest(there: int, wanted: int) -> np.ndarray:
    """The nearest of ``there`` voxels in a line for each of ``wanted`` pixels, as PyTorch rounds."""
    places = torch.arange(there, dtype=torch.float32)  # as for labels: float64 rounds otherwise
    return F.interpolate(places[None, None], size=wanted, mode="nearest-exact")[0, 0].long().numpy()


def _resize(array: np.ndarray, size: tuple[int, ...], **options: Any) -> np.ndarray:
    """Slices [Z, Y, X] at another size, in their own data type."""
    if array.shape[1:] == size:
        return array
    resized = np.empty((len(array), *size), array.dtype)
    for slice_, result in zip(array, resized, strict=True):  # one at a time, in the cache
        whole = torch.from_numpy(np.ascontiguousarray(slice_))[None, None]
        result[...] = F.interpolate(whole, size=size, **options)[0, 0].numpy()
    return resized
