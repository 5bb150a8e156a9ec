"""What a run was computed with: the programs' versions, the machine and the command, for every start of a training."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from action import __version__
from action.files import write_aside

PACKAGES = ("torch", "triton", "monai", "numpy", "scipy", "nibabel")


def describe_start(device: torch.device, processes: int, step: int) -> dict[str, Any]:
    """What a training is started with; names neither the machine nor its user.

    Args:
        device: that trains.
        processes: that train together.
        step: updates that were done before, 0 unless the run is resumed.
    """
    program, *arguments = sys.orig_argv
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "command": shlex.join([Path(program).name, *arguments]),
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"action": __version__, "python": platform.python_version(), **_versions()},
    }


def add_start(path: Path, start: dict[str, Any]) -> None:
    """Append a start to the run's list; those before it are of the trainings that it resumes."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps([*read_starts(path), start], indent=2) + "\n", encoding="utf-8")


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The starts of a run, in order; none where they were not written down or cannot be read."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # Triton comes with PyTorch's builds for CUDA alone
            continue
    return found


def processor() -> str:
    """The processor's name as Linux tells it, or what the platform calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
