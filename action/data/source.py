"""Where a run's cases come from: each training volume is prepared as it is measured, and loaded later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from action.config import RunInputConfig
from action.data.cases import Case
from action.data.fingerprint import Fingerprint, Measures
from action.data.look import Directions, Look
from action.data.notes import tell
from action.data.volumes import LoadedCase, load_case, tell_unlike


class CaseSource(ABC):
    """Measures training volumes and loads cases, and reads a volume once for both where it can."""

    @abstractmethod
    def measures(
        self, case: Case, classes: int, config: RunInputConfig, directions: Callable[[], Directions | None]
    ) -> list[Measures]:
        """``measures_of`` a training volume. One that has not been measured yet is read, and prepared at the same time.

        Args:
            case: the volume.
            classes: of the data set.
            config: of the run.
            directions: gives those of the fingerprint that is being made; asked for if the volume is read.

        Raises:
            InputError: see ``read_case``.
        """

    @abstractmethod
    def prepared(
        self, case: Case, classes: int, config: RunInputConfig, look: Look, *, keep_truth: bool
    ) -> tuple[LoadedCase, list[str]] | None:
        """A case as ``read_case`` gives it, and its notes; ``None``: it must be read from its files."""

    def load(
        self,
        case: Case,
        classes: int,
        config: RunInputConfig,
        fingerprint: Fingerprint | None = None,
        *,
        keep_truth: bool = True,
    ) -> LoadedCase:
        """As ``load_case``; the voxels are the same.

        Raises:
            InputError: as ``load_case``; a file that is changed meanwhile.
        """
        found = None
        if fingerprint is not None:
            found = self.prepared(case, classes, config, fingerprint.look, keep_truth=keep_truth)
        if found is None or fingerprint is None:
            return load_case(case, classes, config, fingerprint, keep_truth=keep_truth)  # says what is wrong
        loaded, notes = found
        tell(notes)
        tell_unlike(loaded, fingerprint)
        return loaded
