"""Segment NIfTI images with a run's network: ``python -m action.predict RUN IMAGE... -o DIR``."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from action.cli import Parser, choose_device, load_config, run
from action.data.cases import Case
from action.data.nifti import write_label
from action.data.volumes import load_cases
from action.errors import InputError
from action.experiment import load_network
from action.inference import segment
from action.run_folder import RunFolder


def predict(run_folder: Path, images: list[Path], output: Path, device: str = "auto") -> list[Path]:
    """Segment images and write labels on each image's own grid, under the image's file name.

    Raises:
        InputError: a run without checkpoint, an unreadable image, two images of one name, or an output that would
            replace an image. Nothing is written then.
    """
    folder = RunFolder(run_folder)
    config = load_config(folder.config)
    targets = [output / f"{_stem(image)}.nii.gz" for image in images]
    for image, target in zip(images, targets, strict=True):
        if targets.count(target) > 1:
            raise InputError(f"several images would be written to {target}: give them to separate calls")
        if target.resolve() == image.resolve():
            raise InputError(f"{image} would be replaced by its prediction: choose another -o than {output}")
    network, class_names = load_network(config, folder.best, choose_device(device))
    cases = [Case(_stem(image), _stem(image), image, None) for image in images]
    loaded = load_cases(cases, len(class_names), config.input, progress=True)
    output.mkdir(parents=True, exist_ok=True)
    for case, target in zip(tqdm(loaded, desc="predict", unit="volume"), targets, strict=True):
        write_label(target, segment(network, case, config.evaluation.batch), case.volume)
    return targets


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def main(arguments: list[str]) -> None:
    parser = Parser(prog="python -m action.predict", description=__doc__)
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("images", type=str, nargs="+", help="NIfTI images")
    parser.add_argument("-o", "--output", type=str, required=True, help="folder for the predictions")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:<number>")
    parsed = parser.parse_args(arguments)
    written = predict(Path(parsed.run), [Path(image) for image in parsed.images], Path(parsed.output), parsed.device)
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    run(main)
