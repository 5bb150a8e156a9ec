"""Cases on disk as the network sees them: made once, then read slice by slice, by this run and by later ones.

A folder holds a file for each case and for each way in which it was prepared, and a small one of what the fingerprint
wants to know of its image. Their names end in a digest of all that they follow from: a changed scan or setting gives
other files. What cannot be used is made anew; nothing is ever removed but what was left half-written, and what this
run has prepared by a guess that the fingerprint does not bear out (``action.data.look``).
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch

from action.config import RunInputConfig
from action.data import findings
from action.data.cases import Case
from action.data.fingerprint import Measures, measures_of
from action.data.identity import describe_case
from action.data.look import Directions, Look, guess_look
from action.data.nifti import Volume
from action.data.notes import keeping
from action.data.orientation import Turn
from action.data.slice_file import Damaged, SliceFile, write_slices
from action.data.source import CaseSource
from action.data.volumes import LoadedCase, read_case
from action.errors import InputError
from action.files import remove_abandoned, write_aside

VERSION = 3
"""Of the preparation: raised with every change of what it computes or stores."""
END, END_OF_MEASURES = ".slices", ".measures.json"
_ARRAYS = ("image", "label", "truth")

_Unusable = (Damaged, OSError, ValueError, KeyError, TypeError, AttributeError)
"""What reading a damaged or foreign file may raise."""


class PreparedCases(CaseSource):
    """A folder of prepared cases, made if it is not there.

    Args:
        folder: several runs and processes may use it at once.

    Raises:
        InputError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guessed: dict[str, Path] = {}  # by case, what was prepared by a guess and not asked for yet
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cache {folder} cannot be made ({error.strerror}): choose another folder") from error
        remove_abandoned(folder, lambda name: name.endswith((END, END_OF_MEASURES)))

    def measures(
        self, case: Case, classes: int, config: RunInputConfig, directions: Callable[[], Directions | None]
    ) -> list[Measures]:
        """See ``CaseSource.measures``."""
        key = _key(case.images)
        if key is None:
            return measures_of(case)  # says which file is missing
        path = self._path(case, key, END_OF_MEASURES)
        with suppress(*_Unusable):
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["key"] == key:
                return [_measures(values) for values in kept["measures"]]
        task, look = _Task(case, classes, config, keep_truth=False), guess_look(case, config.intensity, directions())
        measures, self._guessed[case.name] = self._prepare(task, look, task.key(look))
        _check_unchanged(case, key, _key(case.images))
        with write_aside(path, flushed=False) as aside:
            text = json.dumps({"key": key, "measures": [_plain(m) for m in measures]})
            aside.write_text(text + "\n", encoding="utf-8")
        return measures

    def prepared(
        self, case: Case, classes: int, config: RunInputConfig, look: Look, *, keep_truth: bool
    ) -> tuple[LoadedCase, list[str]] | None:
        """See ``CaseSource.prepared``; the arrays are on disk.

        Raises:
            InputError: see ``read_case``; a file that is changed meanwhile.
        """
        task = _Task(case, classes, config, keep_truth)
        key = task.key(look)
        if key is None:
            return None
        path = self._path(case, key, END)
        guessed = self._guessed.pop(case.name, path)
        if guessed != path:
            guessed.unlink(missing_ok=True)  # whoever else wants it makes it anew
        write = functools.partial(self._prepare, task, look, key)
        try:
            return _opened(case, path, key, write)
        except _Unusable:  # or not there
            write()
            return _opened(case, path, key, write)

    def _prepare(self, task: _Task, look: Look, key: dict[str, Any] | None) -> tuple[list[Measures], Path]:
        """Read a case and write it; its measures, and the file.

        ``key``: of the case and the ``look``; since it was made and until the end no file may change.
        """
        case = task.case
        _check_unchanged(case, key, task.key(look))
        with keeping() as notes:
            loaded = read_case(case, task.classes, task.config, look, keep_truth=task.keep_truth)
        _check_unchanged(case, key, task.key(look))
        key = {**(key or {}), "intensities": list(look.settled(loaded.measures).intensities)}
        path = self._path(case, key, END)
        arrays = {name: np.asarray(getattr(loaded, name)) for name in _ARRAYS if getattr(loaded, name) is not None}
        write_slices(path, {"key": key, "notes": notes, **_content(loaded, task.classes)}, arrays)
        return list(loaded.measures), path

    def _path(self, case: Case, key: dict[str, Any], end: str) -> Path:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{case.name}-{digest[:16]}{end}"


class _Task(NamedTuple):
    """A case, and how it is prepared but for its look."""

    case: Case
    classes: int
    config: RunInputConfig
    keep_truth: bool

    def key(self, look: Look) -> dict[str, Any] | None:
        """All that it follows from; ``None`` where a file is missing."""
        return _key(
            self.case.files,
            labeled=self.case.label is not None,
            classes=self.classes,
            spacing=list(self.config.spacing),
            crop=self.config.crop,
            intensities=list(look.intensities),
            directions=_listed(look.directions),
            truth=self.keep_truth,
        )


def _key(files: Sequence[Path], **settings: Any) -> dict[str, Any] | None:
    """All that a prepared case follows from; ``None`` where a file is missing."""
    try:
        states = [(path, path.stat()) for path in files]
    except OSError:
        return None
    return {
        "version": [VERSION, torch.__version__, np.__version__],  # which interpolate and round
        "files": [[str(path.absolute()), state.st_size, state.st_mtime_ns] for path, state in states],
        **settings,
    }


def _check_unchanged(case: Case, before: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
    if before != now:
        raise InputError(f"{case.image} or its label was changed while it was in use: start again")


def _opened(case: Case, path: Path, key: dict[str, Any], repair: Any) -> tuple[LoadedCase, list[str]]:
    """The case in a file, and what was noted as it was prepared.

    Raises:
        Damaged, OSError, ...: the file is missing, damaged or of something else, see ``_Unusable``.
    """
    file = SliceFile(path, repair)
    content = file.content
    if content["key"] != key:
        raise Damaged(f"{path} is of another case")
    image, label, truth = map(file.array, _ARRAYS)
    if image is None:
        raise Damaged(f"{path} has no image")
    facts = content["facts"]
    loaded = LoadedCase(
        case.name,
        case.patient,
        image,
        label,
        truth,
        _tuple(content["spacing"]),
        _volume(content["volume"], case.image),
        _tuple(content["shape"]),
        (slice(*content["box"][0]), slice(*content["box"][1])),
        [_measures(values) for values in content["measures"]],
        findings.Facts(
            case.name,
            case.patient,
            facts["blank"],
            bytes.fromhex(facts["digest"]),
            None if facts["voxels"] is None else np.array(facts["voxels"], np.int64),
        ),
        content["description"],
    )
    return loaded, content["notes"]


def _content(case: LoadedCase, classes: int) -> dict[str, Any]:
    """What ``_opened`` reads besides the arrays."""
    facts = findings.of_case(case, classes)
    return {
        "spacing": case.spacing,
        "shape": case.shape,
        "box": [[part.start, part.stop] for part in case.box],
        "volume": _geometry(case.volume),
        "measures": [_plain(m) for m in case.measures],
        "facts": {"blank": facts.blank, "digest": facts.digest.hex(), "voxels": _listed(facts.voxels)},
        "description": describe_case(case),
    }


def _geometry(volume: Volume) -> dict[str, Any]:
    stream = io.BytesIO()
    volume.header.copy().write_to(stream)  # with its extensions; it sets the offset
    return {
        "header": base64.b64encode(stream.getvalue()).decode(),
        "version": 2 if isinstance(volume.header, nib.Nifti2Header) else 1,
        "single": bool(volume.header.is_single),
        "offset": float(volume.header["vox_offset"]),
        "affine": volume.affine.tolist(),
        "spacing": volume.spacing,
        "turn": [volume.turn.axes, volume.turn.signs],
    }


def _volume(values: dict[str, Any], path: Path) -> Volume:
    kinds = {
        (1, True): nib.Nifti1Header,
        (1, False): nib.nifti1.Nifti1PairHeader,
        (2, True): nib.Nifti2Header,
        (2, False): nib.nifti2.Nifti2PairHeader,
    }
    kind = kinds[values["version"], values["single"]]
    header = kind.from_fileobj(io.BytesIO(base64.b64decode(values["header"])), check=False)
    header["vox_offset"] = values["offset"]
    axes, signs = values["turn"]
    turn = Turn(_tuple(axes), _tuple(signs))
    empty = np.empty((0, 0, 0), np.float32)
    return Volume(empty, np.array(values["affine"]), header, _tuple(values["spacing"]), path, turn)


def _plain(measures: Measures) -> dict[str, Any]:
    return {**dataclasses.asdict(measures), "directions": _listed(measures.directions)}


def _measures(values: dict[str, Any]) -> Measures:
    directions = values["directions"]
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Measures(**plain | {"directions": None if directions is None else np.array(directions)})


def _listed(values: Any) -> Any:
    return None if values is None else np.asarray(values).tolist()


def _tuple(values: Sequence[Any]) -> Any:
    return tuple(values)
