"""Measurements as rows of a CSV file, each with the machine, the versions and the commit; rows are only ever added."""

from __future__ import annotations

import csv
import datetime
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from action import environment

Row = dict[str, Any]  # column -> value, a text once it was read from a file


def describe(device: str) -> Row:
    """The machine and the versions.

    Raises:
        SystemExit: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no CUDA device here; leave the flag out")
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def processor() -> str:
    """Name and widest vectors, as PyTorch sees them."""
    return f"{environment.processor()} {torch.backends.cpu.get_cpu_capability()}"


def commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"


def append(path: Path, rows: list[Row]) -> None:
    """Add rows of equal columns to the file.

    Raises:
        SystemExit: the file has other columns.
    """
    columns = list(rows[0])
    new = not path.exists()
    if not new:
        with path.open(newline="") as file:
            present = next(csv.reader(file), [])
        if present != columns:
            raise SystemExit(f"{path} has the columns {present}, not {columns}: choose another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
