# PYTHON_ARGCOMPLETE_OK
"""Segment images with a run's network: ``python -m action.predict RUN IMAGES -o DIR``."""

from __future__ import annotations

from pathlib import Path

from action.cli import choose_device, command_parser, load_config, run
from action.data import findings
from action.data.fingerprint import load_fingerprint
from action.data.images import cases_of
from action.data.nifti import write_label
from action.data.volumes import load_cases
from action.experiment import check_network, load_network
from action.files import check_targets
from action.inference import segment
from action.progress import track
from action.run_folder import RunFolder


def predict(
    run_folder: Path, images: list[Path], output: Path, device: str = "auto", *, overwrite: bool = False
) -> list[Path]:
    """Segment images and write labels on each image's own grid, under the image's file name or the case's.

    Args:
        run_folder: of the run.
        images: files, or folders of them. Of several channels each has a file, ``CASE_0000``, ``CASE_0001`` ..., and
            the label is called ``CASE``.
        output: folder for the labels.
        device: "auto", "cpu", "cuda" or "cuda:<n>".
        overwrite: replace files of the predictions' names. An image is never replaced.

    Raises:
        InputError: a run without checkpoint, an unreadable image, a missing channel, two images of one name, or an
            output that would replace an image or, without ``overwrite``, any other file. Nothing is written then.
    """
    folder = RunFolder(run_folder)
    config = load_config(folder.config)
    fingerprint = load_fingerprint(folder.fingerprint)
    cases = cases_of(images, len(fingerprint.channels), numbered=config.format == "nnunet")
    targets = [output / f"{case.name}.nii.gz" for case in cases]
    inputs = [path for case in cases for path in case.files]
    check_targets(targets, [*inputs, *(path for path in folder.files if path.is_file())], overwrite=overwrite)
    network, class_names = load_network(config, folder.best, choose_device(device))
    check_network(network, fingerprint, folder)
    with findings.printed():
        loaded = load_cases(cases, len(class_names), config.input, fingerprint, progress=True)
    output.mkdir(parents=True, exist_ok=True)
    for case, target in zip(track(loaded, "predict", "volume"), targets, strict=True):
        prediction = segment(network, case, config.input.size, config.evaluation.batch)
        check_targets([target], [], overwrite=overwrite)  # again: it took a while
        write_label(target, prediction, case.volume)
    return targets


def main(arguments: list[str]) -> None:
    """The command line of ``python -m action.predict``."""
    parser = command_parser("predict")
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("images", type=str, nargs="+", help="images, or folders of them; a file for each channel")
    parser.add_argument("-o", "--output", type=str, required=True, help="folder for the predictions")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parsed = parser.parse_args(arguments)
    images = [Path(image) for image in parsed.images]
    written = predict(Path(parsed.run), images, Path(parsed.output), parsed.device, overwrite=parsed.overwrite)
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    run(main)
