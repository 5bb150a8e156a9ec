"""The first run with ``--cache`` beside mere unpacking of the same files: ``python -m benchmarks.reading``.

In turn, on all cores: the files of the scans are unpacked and thrown away, by Python's ``gzip`` and by the reader of
``action``; a run does all that it does before it trains, into an empty folder; the next run does so from that folder.
The files are in the system's memory when the clock starts, unless there are too many.
"""

from __future__ import annotations

import gzip
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Generator, rand

from action.config import RunConfig, TrainConfig
from action.data.unpacking import library, pieces
from action.experiment import load_data, open_split, resolve
from action.workers import in_parallel

from .measure import peak_meter, quantiles
from .table import append, describe

CHUNK = 2**20  # bytes
SHAPES = {"ct": (64, 512, 512), "mri": (10, 256, 216)}  # z, y, x
SPACINGS = {"ct": (2.0, 0.75), "mri": (10.0, 1.5)}  # mm along z, and about that in the slices
NOISE = {"ct": 15.0, "mri": 5.0}
LARGEST_NOISE = 200.0

Kind = Literal["ct", "mri"]


def main(
    kind: Kind = "ct",
    volumes: int = 24,
    slices: int | None = None,
    noise: float | None = None,
    data: Path | None = None,
    rounds: int = 3,
    folder: Path | None = None,
    output: Path = Path("results/benchmarks"),
) -> None:
    """Print a Markdown table, add to ``reading.csv``.

    Args:
        kind: of the scans that are made.
        volumes: how many are made; three or more, so that there are some to train, to validate and to test.
        slices: of each; null: some, since the time of a voxel does not depend on it.
        noise: deviation, in units of the scan; null: as such scans have. 0: small files, which unpack fast.
        data: a data set that is read in place of made scans.
        rounds: of the measurement, after one that does not count; 0: only that one, for data that take long.
        folder: where scans and cache are written, and removed; null: the system's folder for temporary files.
        output: folder of the table.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        scans, cache = Path(temporary, "scans"), Path(temporary, "cache")
        root = data or write_scans(scans, kind, volumes, slices, noise)
        config = resolve(TrainConfig(str(root), labeled=1, cache=str(cache), output=str(scans)))
        files = files_read(config)

        def first_run() -> None:
            shutil.rmtree(cache, ignore_errors=True)
            load_data(config)

        programs = {
            "gzip": lambda: unpack(files, gzip_pieces),
            library.__name__: lambda: unpack(files, pieces),
            "first run": first_run,
            "next run": lambda: load_data(config),
        }
        spans, peaks = measured(programs, rounds)
        voxels = sum(volume_bytes(file) for file in files) / 2**20
    unpacking = quantiles(spans["gzip"]).median
    print(f"{len(files)} files of {voxels:,.0f} MiB of voxels, {', '.join(map(str, describe('cpu').values()))}")
    print("| program | s | 20 % | 80 % | speed, of gzip's | peak MiB |\n|---|---|---|---|---|---|")
    rows = []
    for name in programs:
        seconds = quantiles(spans[name])
        share = unpacking / seconds.median
        print(
            f"| {name} | {seconds.median:.2f} | {seconds.low:.2f} | {seconds.high:.2f} | {share:.2f} "
            f"| {peaks[name]:.0f} |"
        )
        row = {"data": data.name if data else kind, "files": len(files), "voxels_mib": round(voxels), "program": name}
        row |= {"seconds": round(seconds.median, 3), "seconds_q20": round(seconds.low, 3)}
        row |= {"seconds_q80": round(seconds.high, 3), "peak_mib": round(peaks[name], 1)}
        rows.append(row | describe("cpu"))
    append(output / "reading.csv", rows)


def measured(programs: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each round, and MiB by which the first, which does not count among several, raised the memory."""
    spans: dict[str, list[float]] = {name: [] for name in programs}
    peaks: dict[str, float] = {}
    for round_ in range(rounds + 1):
        for name, program in programs.items():
            meter = peak_meter("cpu") if round_ == 0 else None
            begin = time.perf_counter()
            program()
            if round_ or not rounds:
                spans[name].append(time.perf_counter() - begin)
            if meter:
                peaks[name] = meter.bytes() / 2**20
    return spans, peaks


def files_read(config: RunConfig) -> list[Path]:
    """The files that a run reads: labels of patients who train without them are none."""
    dataset, split = open_split(config)
    hidden = set(split.unlabeled)
    return [file for case in dataset.cases for file in (case.images if case.patient in hidden else case.files)]


def volume_bytes(file: Path) -> int:
    image = nib.load(file)
    return int(np.prod(image.shape)) * image.get_data_dtype().itemsize


def unpack(files: Sequence[Path], pieces: Callable[[Path], Iterator[bytes]]) -> None:
    """Unpack files and throw their content away."""

    def length(path: Path) -> int:
        return sum(map(len, pieces(path)))

    assert sum(in_parallel(length, files)) > sum(map(volume_bytes, files))


def gzip_pieces(path: Path) -> Iterator[bytes]:
    with gzip.open(path) as stream:
        while piece := stream.read(CHUNK):
            yield piece


def write_scans(root: Path, kind: Kind, volumes: int, slices: int | None, noise: float | None) -> Path:
    """Write scans in the layout of LiTS: a body of smooth tissue in air, or in darkness, and an organ in it."""
    depth, height, width = SHAPES[kind]
    shape = (slices or depth, height, width)
    root.mkdir(parents=True)
    noise = NOISE[kind] if noise is None else min(noise, LARGEST_NOISE)
    z_size, size = SPACINGS[kind]
    y, x = np.indices(shape[1:]) / np.reshape(shape[1:], (2, 1, 1)) - 0.5
    body = (x / 0.42) ** 2 + (y / 0.35) ** 2 < 1
    organ = ((x + 0.15) / 0.12) ** 2 + (y / 0.15) ** 2 < 1

    def write(number: int) -> None:
        rng = np.random.default_rng(number)
        coarse = rand(1, 1, 8, 8, 8, generator=Generator().manual_seed(number))
        tissue = F.interpolate(coarse, size=shape, mode="trilinear")[0, 0].numpy()
        image = np.empty(shape, np.int16)
        label = np.zeros(shape, np.uint8)
        label[shape[0] // 3 : 2 * shape[0] // 3, organ] = 1
        for slice_, values, marked in zip(image, tissue, label, strict=True):
            inside = 150 * values - 50 + 100 * marked + (0 if kind == "ct" else 200)
            shown = np.where(body, inside, -1000 if kind == "ct" else 20)
            slice_[...] = np.rint(shown + noise * rng.standard_normal(shown.shape, np.float32))
        pixel = size * rng.uniform(0.9, 1.1)
        affine = np.diag([pixel, pixel, z_size, 1])
        for name, array in (("volume", image), ("segmentation", label)):
            nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), affine), root / f"{name}-{number}.nii.gz")

    for _ in in_parallel(write, range(volumes)):
        pass
    return root


if __name__ == "__main__":
    auto_cli(main)
