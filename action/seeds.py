"""Which runs are one method: those that differ in nothing but their seed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from action.run_folder import RunFolder

OWN = ("seed", "output")
"""Settings that runs of one method may differ in."""


class Entry(NamedTuple):
    """What is compared: one run, or several that differ in their seed.

    Attributes:
        name: the run's; of several what their names have in common.
        places: of its runs among all that were given.
        seeds: of each of them; none for one run alone.
    """

    name: str
    places: tuple[int, ...]
    seeds: tuple[int, ...]


def entries(roots: Sequence[Path], names: Sequence[str], summaries: Sequence[dict[str, Any]]) -> list[Entry]:
    """Put runs together whose settings, and the processing of whose predictions, differ in nothing but the seed.

    A seed that is there twice is a repetition, as of another version of the code: it begins another entry. Where the
    settings cannot be read, the run stands alone.

    Args:
        roots: folders of the runs.
        names: of the runs, each another.
        summaries: of the runs.
    """
    members: dict[tuple[str, int], list[tuple[int, int]]] = {}
    met: dict[tuple[str, int], int] = {}
    alone: dict[int, Entry] = {}
    for place, (root, summary) in enumerate(zip(roots, summaries, strict=True)):
        settings = _settings(RunFolder(root).config)
        if settings is None:
            alone[place] = Entry(names[place], (place,), ())
            continue
        seed = settings["seed"]
        shared = {name: value for name, value in settings.items() if name not in OWN}
        processing = [summary.get("mirror", False), sorted(summary.get("largest_component", []))]
        same = json.dumps([shared, processing], sort_keys=True, default=str)
        repetition = met[same, seed] = met.get((same, seed), -1) + 1
        members.setdefault((same, repetition), []).append((place, seed))
    found = {group[0][0]: _entry(group, names) for group in members.values()} | alone
    ordered = [found[place] for place in sorted(found)]
    taken = [entry.name for entry in ordered]
    return [entry._replace(name=_all(entry, names)) if taken.count(entry.name) > 1 else entry for entry in ordered]


def _settings(path: Path) -> dict[str, Any] | None:
    """A run's ``config.yaml`` as it stands, whatever version wrote it; ``None`` where it cannot be read."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(settings, dict) and isinstance(settings.get("seed"), int):
            return settings
    return None


def _all(entry: Entry, names: Sequence[str]) -> str:
    return ", ".join(names[place] for place in entry.places)


def _entry(group: Sequence[tuple[int, int]], names: Sequence[str]) -> Entry:
    places, seeds = zip(*group, strict=True)
    if len(group) == 1:
        return Entry(names[places[0]], places, ())
    every = [names[place] for place in places]
    without = {re.sub(rf"[-_./ ]*(seed[-_ ]?)?{seed}$", "", name) for name, seed in zip(every, seeds, strict=True)}
    common = without.pop()
    return Entry(", ".join(every) if without or not common else common, places, seeds)
