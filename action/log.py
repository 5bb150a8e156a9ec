"""The loggers of a run together: started, found again by a resumed run, and none of them able to stop it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from action.config import RunConfig
from action.errors import InputError, said
from action.files import write_aside
from action.loggers import LOGGERS
from action.loggers.base import Logger, Start
from action.run_folder import RunFolder


def check_installed(names: Sequence[str]) -> None:
    """Refuse loggers whose packages are not there.

    Raises:
        InputError: names the first of them.
    """
    for name in names:
        if find_spec(LOGGERS[name].package) is None:
            raise InputError(
                f"loggers names {name}, but the package {LOGGERS[name].package} is not installed: pip install "
                f"{LOGGERS[name].package}, or leave it out"
            )


class Loggers:
    """Several loggers as one. A remote one that fails is reported, and left out from then on.

    Args:
        loggers: by name.
    """

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self._loggers = dict(loggers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Logger.log``."""
        self._each(lambda logger: logger.log(step, values))

    def figure(self, step: int, name: str, path: Path) -> None:
        """See ``Logger.figure``; a file that is not there is not shown."""
        if path.is_file():
            self._each(lambda logger: logger.figure(step, name, path))

    def close(self) -> None:
        """See ``Logger.close``."""
        self._each(lambda logger: logger.close())

    def _each(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                act(logger)
            except Exception as error:  # whatever its package raises
                if not logger.remote:
                    raise
                del self._loggers[name]
                print(f"warning: {name} failed ({said(error)}): the run goes on without it")


@contextmanager
def started(config: RunConfig, run: RunFolder, step: int) -> Iterator[Loggers]:
    """The loggers of the settings, open until the block ends.

    Args:
        config: settings of the run.
        run: its folder, where the identities are written that resumed runs read.
        step: updates that were done before.

    Raises:
        InputError: one of them does not start.
    """
    settings = dict(flat(dataclasses.asdict(config)))
    known, loggers = _identities(run), dict[str, Logger]()
    try:
        for name in dict.fromkeys(config.loggers):
            try:
                loggers[name] = LOGGERS[name](Start(run.root, settings, step, known.get(name)))
            except Exception as error:  # whatever its package raises
                if not LOGGERS[name].remote:
                    raise
                raise InputError(
                    f"the logger {name} does not start ({said(error)}): set it up as its documentation says, or "
                    "leave it out of loggers"
                ) from error
        identities = known | {name: logger.identity for name, logger in loggers.items() if logger.identity}
        if identities != known:
            with write_aside(run.loggers) as aside:
                aside.write_text(json.dumps(identities, indent=2) + "\n", encoding="utf-8")
        together = Loggers(loggers)
    except BaseException:
        Loggers(loggers).close()
        raise
    try:
        yield together
    finally:
        together.close()


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their names as flags, such as ``optimizer.lr``."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _identities(run: RunFolder) -> dict[str, str]:
    """What the loggers said when the run began; nothing where it is not there or cannot be read."""
    try:
        found = json.loads(run.loggers.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}
