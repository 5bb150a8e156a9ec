"""What a logger is to a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class Start:
    """What a logger begins with, or goes on with.

    Args:
        folder: of the run.
        settings: of the run, by their names as flags.
        step: updates done before; what was logged of later ones is logged again, with the same values.
        identity: what the logger said when the run began; ``None``: the run is new to it.
    """

    folder: Path
    settings: Mapping[str, Any]
    step: int
    identity: str | None = None


class Logger(ABC):
    """Shows numbers and figures of a run; made from a ``Start``. Its package is imported then and not before.

    Attributes:
        package: that it needs, as it is imported and installed.
        remote: whether a failure after the start, as of a network, ends the logger alone and not the run.
        identity: by which a resumed run finds what it has logged; "": it needs none.
    """

    package: ClassVar[str]
    remote: ClassVar[bool] = True
    identity: str = ""

    @abstractmethod
    def __init__(self, start: Start) -> None: ...

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of update ``step``, from 1, by name; a slash divides groups."""

    @abstractmethod
    def figure(self, step: int, name: str, path: Path) -> None:
        """A PNG file, after update ``step``."""

    @abstractmethod
    def close(self) -> None:
        """Nothing more comes in this process."""
