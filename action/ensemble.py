"""One run or several, ready to segment: their networks, checked against each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from action.cli import load_config
from action.config import RunConfig
from action.data.cases import raise_problems
from action.data.fingerprint import Fingerprint, load_fingerprint
from action.data.orientation import turn_between
from action.errors import InputError
from action.experiment import check_network, load_network
from action.inference import Member, Segmenter
from action.run_folder import RunFolder
from action.suggestions import did_you_mean


@dataclass(frozen=True)
class Ensemble:
    """Runs that are shown the same image, and whose probabilities are averaged.

    Args:
        folders: of the runs.
        config, fingerprint: of the first; where they say how an image is shown, the others' say the same.
        class_names: background first.
        segmenter: with the networks of all.
    """

    folders: tuple[RunFolder, ...]
    config: RunConfig
    fingerprint: Fingerprint
    class_names: tuple[str, ...]
    segmenter: Segmenter

    @property
    def files(self) -> list[Path]:
        """Files of the runs that are there."""
        return [path for folder in self.folders for path in folder.files if path.is_file()]

    def post_processed(self, *, mirror: bool, largest_component: Sequence[str] | None) -> Ensemble:
        """The same, but with more done to what the networks say.

        Args:
            mirror: average over mirrored slices.
            largest_component: classes of which one piece is kept, all for an empty list; ``None``: of none.

        Raises:
            InputError: a name that is no class besides the background.
        """
        largest = () if largest_component is None else class_indices(largest_component, self.class_names)
        return replace(self, segmenter=replace(self.segmenter, mirror=mirror, largest=largest))


def class_indices(names: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """Indices of the named classes in ``class_names``, of which the first is the background; of all if none is named.

    Raises:
        InputError: a name that is none of them.
    """
    known = list(class_names[1:])
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f": choose among {', '.join(known)}")
            raise InputError(f"largest_component: there is no class '{name}'{hint}")
    return tuple(index for index, name in enumerate(class_names) if index and (not names or name in names))


def load_ensemble(roots: Sequence[Path], device: torch.device) -> Ensemble:
    """Load the best networks of runs, one at least.

    Raises:
        InputError: a run without checkpoint or named twice, or runs that were trained on other classes or channels, or
            are shown an image otherwise.
    """
    resolved = [root.resolve() for root in roots]
    for index, root in enumerate(resolved):
        if root in resolved[:index]:
            raise InputError(f"{roots[index]} is named twice: name each run once")
    parts = [_load(RunFolder(root), device) for root in roots]
    first = parts[0]
    problems = [problem for part in parts[1:] for problem in _differences(first, part)]
    raise_problems(problems, "the runs")
    members = [member for part in parts for member in part.segmenter.members]
    segmenter = replace(first.segmenter, members=members)
    return replace(first, folders=tuple(folder for part in parts for folder in part.folders), segmenter=segmenter)


def _load(folder: RunFolder, device: torch.device) -> Ensemble:
    config = load_config(folder.config)
    fingerprint = load_fingerprint(folder.fingerprint)
    if (done := folder.updates()) is not None and done < (config.updates or 0):
        print(
            f"note: {folder.root} is not finished, it has {done} of {config.updates} updates: its best network until "
            "now is taken"
        )
    network, class_names = load_network(config, folder.best, device)
    check_network(network, fingerprint, folder)
    segmenter = Segmenter([Member(network, config.input.size)], config.evaluation.batch)
    return Ensemble((folder,), config, fingerprint, class_names, segmenter)


def _differences(first: Ensemble, other: Ensemble) -> Iterator[str]:
    """Sentences about what keeps two runs from an average."""
    names = f"{first.folders[0].root} and {other.folders[0].root} cannot be averaged"
    apart = "leave one out, or predict with each by itself"
    ours, theirs = (
        {
            "the classes": ", ".join(part.class_names),
            "the number of channels": len(part.fingerprint.channels),
            "input.spacing": part.config.input.spacing,
            "input.crop": part.config.input.crop,
            "the scaling of intensities": ", ".join(channel.intensity for channel in part.fingerprint.channels),
        }
        for part in (first, other)
    )
    for what, value in ours.items():
        if value != theirs[what]:
            yield f"{names}: {what} of the one: {_shown(value)}, of the other: {_shown(theirs[what])}; {apart}"
    if not _alike(first.fingerprint, other.fingerprint):
        codes = (part.fingerprint.axis_codes or "as stored" for part in (first, other))
        yield f"{names}: their training volumes lie {' and '.join(codes)}, so that other slices would be seen; {apart}"


def _alike(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether volumes are turned to the same axes."""
    if one.directions is None or other.directions is None:
        return one.directions == other.directions
    turn = turn_between(np.array(one.directions), np.array(other.directions))
    return turn is not None and turn.is_identity


def _shown(value: object) -> str:
    return " x ".join(f"{part:g}" for part in value) + " mm" if isinstance(value, tuple) else str(value)
