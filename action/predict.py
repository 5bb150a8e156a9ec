# PYTHON_ARGCOMPLETE_OK
"""Segment images with the networks of runs: ``python -m action.predict RUN IMAGES -o DIR``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from action.cli import add_processing, choose_device, command_parser, run
from action.data import findings
from action.data.cases import Case, raise_problems
from action.data.images import cases_of
from action.data.nifti import is_prediction, write_label
from action.data.reading import check_headers
from action.data.volumes import LoadedCase, check_channels, load_case, native_slice
from action.ensemble import Ensemble, load_ensemble
from action.errors import InputError
from action.figures import plot_overlays
from action.files import check_targets, check_writable, remove_abandoned, write_aside
from action.progress import track


@dataclass(frozen=True)
class PredictOptions:
    """What is made of the images beside plain labels.

    Args:
        ensemble: further runs, whose probabilities are averaged with the first one's.
        mirror: average over the four flips of every slice.
        largest_component: classes of which only the largest piece is kept, all for an empty list; ``None``: of none.
        probabilities: write them, too.
        overlay: draw a slice of each, too.
        overwrite: replace files of the results' names. An image is never replaced.
        go_on: pass over images whose results are there.
    """

    ensemble: Sequence[Path] = ()
    mirror: bool = False
    largest_component: Sequence[str] | None = None
    probabilities: bool = False
    overlay: bool = False
    overwrite: bool = False
    go_on: bool = False


class Targets(NamedTuple):
    """The files of a case's results; those that are not asked for are ``None``."""

    label: Path
    probabilities: Path | None
    overlay: Path | None

    @property
    def files(self) -> list[Path]:
        """What is asked for."""
        return [path for path in self if path is not None]

    @property
    def done(self) -> bool:
        """Whether all is there; every file is written whole."""
        return is_prediction(self.label) and all(path.is_file() for path in self.files)


def predict(
    run_folder: Path,
    images: Sequence[Path],
    output: Path,
    device: str = "auto",
    options: PredictOptions = PredictOptions(),
) -> list[Path]:
    """Segment images and write labels on each image's own grid, under the image's file name or the case's.

    An image is read, segmented and written before the next. One whose voxels cannot be read does not keep the others
    from being segmented.

    Args:
        run_folder: of the run.
        images: files, or folders of them. Of several channels each has a file, ``CASE_0000``, ``CASE_0001`` ..., and
            the label is called ``CASE``.
        output: folder for the results.
        device: "auto", "cpu", "cuda" or "cuda:<n>".
        options: see there.

    Returns:
        The labels that were written.

    Raises:
        InputError: a run without checkpoint, runs that do not go together, an unreadable header, a missing channel, two
            images of one name, or an output that would replace an image or, unasked, any other file: nothing is written
            then. Images whose voxels are damaged are named in the end.
    """
    if options.overwrite and options.go_on:
        raise InputError("--continue and --overwrite exclude each other: give one of them")
    check_writable(output, "--output")
    ensemble = load_ensemble([run_folder, *options.ensemble], choose_device(device))
    ensemble = ensemble.post_processed(mirror=options.mirror, largest_component=options.largest_component)
    channels = len(ensemble.fingerprint.channels)
    cases = cases_of(images, channels, numbered=ensemble.config.format == "nnunet")
    targets = [_targets(case.name, output, options) for case in cases]
    inputs = [*(path for case in cases for path in case.files), *ensemble.files]
    check_targets([path for target in targets for path in target.files], inputs, overwrite=True)
    open_ = [(c, t) for c, t in zip(cases, targets, strict=True) if not (options.go_on and t.done)]
    _check_free([target for _, target in open_], options)
    _check_readable([case for case, _ in open_], channels)
    if len(open_) < len(cases):
        print(f"{len(cases) - len(open_)} of {len(cases)} images have results in {output} and are passed over")
    output.mkdir(parents=True, exist_ok=True)
    remove_abandoned(output, {path.name for target in targets for path in target.files}.__contains__)
    written: list[Path] = []
    lines: list[str] = []
    problems: list[str] = []
    notes: list[str] = []
    for case, target in track(open_, "predict", "volume"):
        begin = time.perf_counter()
        try:
            with findings.collected(notes):
                loaded = load_case(case, len(ensemble.class_names), ensemble.config.input, ensemble.fingerprint)
        except InputError as error:
            problems.append(str(error))
            continue
        _write(loaded, target, ensemble, options)
        seconds = time.perf_counter() - begin
        lines.append(f"{target.label}: {_speed(loaded.shape[0], seconds)}")
        written.append(target.label)
    findings.say(notes)
    if lines:
        print("\n".join(lines))
    raise_problems(problems, f"the images; the other {len(written)} are segmented")
    return written


def _targets(name: str, output: Path, options: PredictOptions) -> Targets:
    return Targets(
        output / f"{name}.nii.gz",
        output / f"{name}.npz" if options.probabilities else None,
        output / f"{name}.png" if options.overlay else None,
    )


def _check_free(targets: Sequence[Targets], options: PredictOptions) -> None:
    """Refuse to replace files unasked. Going on, those beside labels of ours may be: labels are written first."""
    if options.go_on:
        targets = [target for target in targets if not is_prediction(target.label)]
    check_targets([path for target in targets for path in target.files], [], overwrite=options.overwrite)


def _check_readable(cases: Sequence[Case], channels: int) -> None:
    """Look at the headers of all images before the first one is segmented."""
    problems = []
    for case in cases:
        try:
            check_channels(case, channels)
            check_headers(case)
        except InputError as error:
            problems.append(str(error))
    raise_problems(problems, "the images")


def _write(case: LoadedCase, targets: Targets, ensemble: Ensemble, options: PredictOptions) -> None:
    """Segment a case and write its results, the labels first."""
    probabilities = None
    if targets.probabilities is not None:
        probabilities = np.empty((len(ensemble.class_names), *case.shape), np.float16)
    labels = ensemble.segmenter.segment(case, probabilities)
    _check_free([targets], options)  # again: it took a while
    write_label(targets.label, labels, case.volume)
    if targets.probabilities is not None and probabilities is not None:
        turn = case.volume.turn
        stored = probabilities if turn.is_identity else np.stack([turn.undo(of_class) for of_class in probabilities])
        with write_aside(targets.probabilities) as aside:
            np.savez_compressed(aside, probabilities=stored)
    if targets.overlay is not None:
        z = int(np.count_nonzero(labels, axis=(1, 2)).argmax())
        panel = (f"{case.name}, slice {z + 1}", native_slice(case, z), {"prediction": labels[z]})
        plot_overlays([panel], ensemble.class_names, targets.overlay)


def _speed(slices: int, seconds: float) -> str:
    return f"{slices} {'slice' if slices == 1 else 'slices'} in {seconds:.1f} s ({slices / seconds:.1f} slices/s)"


def main(arguments: list[str]) -> None:
    """The command line of ``python -m action.predict``."""
    parser = command_parser("predict")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("images", type=str, nargs="+", help="images, or folders of them; a file for each channel")
    parser.add_argument("-o", "--output", type=str, required=True, help="folder for the predictions")
    parser.add_argument(
        "--ensemble",
        type=str,
        nargs="+",
        default=[],
        metavar="RUN",
        help="further runs, such as those of other folds or seeds, whose probabilities are averaged with RUN's",
    )
    add_processing(parser)
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="write CASE.npz, too: the array 'probabilities', float16 [class, z, y, x] on the image's grid",
    )
    parser.add_argument("--overlay", action="store_true", help="draw CASE.png, too: the slice with most foreground")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--continue", action="store_true", help="pass over images whose results are there")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parsed = parser.parse_args(arguments)
    options = PredictOptions(
        ensemble=[Path(folder) for folder in parsed.ensemble],
        mirror=parsed.mirror,
        largest_component=parsed.largest_component,
        probabilities=parsed.probabilities,
        overlay=parsed.overlay,
        overwrite=parsed.overwrite,
        go_on=parsed["continue"],
    )
    predict(Path(parsed.run), [Path(image) for image in parsed.images], Path(parsed.output), parsed.device, options)


if __name__ == "__main__":
    run(main)
