"""Cases in memory as the network sees them, each read once although all training volumes are measured first."""

from __future__ import annotations

from collections.abc import Callable

from action.config import RunInputConfig
from action.data.cases import Case
from action.data.fingerprint import Fingerprint, Measures
from action.data.look import Directions, Look, guess_look
from action.data.notes import keeping, tell
from action.data.volumes import LoadedCase, load_case, read_case, tell_unlike


class CasesInMemory:
    """What ``PreparedCases`` is on disk: cases that were prepared as they were measured wait here to be loaded."""

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Look, LoadedCase, list[str]]] = {}

    def measures(
        self, case: Case, classes: int, config: RunInputConfig, directions: Callable[[], Directions | None]
    ) -> list[Measures]:
        """``measures_of`` a training volume, which is prepared at the same time.

        Args:
            case: the volume.
            classes: of the data set.
            config: of the run.
            directions: gives those of the fingerprint that is being made.

        Raises:
            InputError: see ``read_case``.
        """
        look = guess_look(case, config.intensity, directions())
        with keeping() as notes:
            loaded = read_case(case, classes, config, look, keep_truth=False)
        self._waiting[case.name] = look.settled(loaded.measures), loaded, notes
        return list(loaded.measures)

    def load(
        self,
        case: Case,
        classes: int,
        config: RunInputConfig,
        fingerprint: Fingerprint | None = None,
        *,
        keep_truth: bool = True,
    ) -> LoadedCase:
        """As ``load_case``, once of each case.

        Raises:
            InputError: see ``load_case``.
        """
        waiting = self._waiting.pop(case.name, None)
        if waiting is None or fingerprint is None or waiting[0] != fingerprint.look or keep_truth:
            return load_case(case, classes, config, fingerprint, keep_truth=keep_truth)
        _, loaded, notes = waiting
        tell(notes)
        tell_unlike(loaded, fingerprint)
        return loaded
