"""Compilations as a ninja file, and their running."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .modules import ROOT, Build
from .toolchain import BuildError, find_ninja


def ninja_file(build: Build, target: Path) -> str:
    """The file's text; objects are relative to its folder."""
    lines = [
        "rule compile",
        f"  command = {build.compiler} -MMD -MF $out.d {' '.join(build.flags)} $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {build.compiler} -shared $in -o $out {' '.join(build.link)}",
    ]
    for unit in build.units:
        lines += [f"build {unit.object}: compile {_escape(ROOT / unit.source)}", f"  flags = {' '.join(unit.flags)}"]
    return "\n".join([*lines, f"build {_escape(target)}: link {' '.join(x.object for x in build.units)}", ""])


def run(build: Build, target: Path, work: Path) -> None:
    """Bring ``target`` up to date, with the objects in the folder ``work``.

    Raises:
        BuildError: a compilation fails.
    """
    work.mkdir(parents=True, exist_ok=True)
    (work / "build.ninja").write_text(ninja_file(build, target))
    jobs = os.environ.get("MAX_JOBS")
    command = [find_ninja(), *(["-j", jobs] if jobs else [])]
    run = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if run.returncode:
        print(run.stdout, run.stderr, file=sys.stderr)
        errors = [line for line in run.stdout.splitlines() if "error" in line.lower()]
        raise BuildError(f"{build.compiler} failed: {errors[0] if errors else run.stdout.strip().splitlines()[-1]}")


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
