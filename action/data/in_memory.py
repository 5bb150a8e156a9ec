"""Cases in memory as the network sees them, each read once although all training volumes are measured first."""

from __future__ import annotations

from collections.abc import Callable

from action.config import RunInputConfig
from action.data.cases import Case
from action.data.fingerprint import Measures
from action.data.look import Directions, Look, guess_look
from action.data.notes import keeping
from action.data.source import CaseSource
from action.data.volumes import LoadedCase, read_case


class CasesInMemory(CaseSource):
    """Cases that were prepared as they were measured wait here to be loaded, once each."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Look, LoadedCase, list[str]]] = {}

    def measures(
        self, case: Case, classes: int, config: RunInputConfig, directions: Callable[[], Directions | None]
    ) -> list[Measures]:
        """See ``CaseSource.measures``."""
        look = guess_look(case, config.intensity, directions())
        with keeping() as notes:
            loaded = read_case(case, classes, config, look, keep_truth=False)
        self._waiting[case.name] = look.settled(loaded.measures), loaded, notes
        return list(loaded.measures)

    def prepared(
        self, case: Case, classes: int, config: RunInputConfig, look: Look, *, keep_truth: bool
    ) -> tuple[LoadedCase, list[str]] | None:
        """See ``CaseSource.prepared``."""
        waiting = self._waiting.pop(case.name, None)
        return None if waiting is None or waiting[0] != look or keep_truth else waiting[1:]
