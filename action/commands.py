"""The commands, ``python -m action.<name>``: what each does, and an example. Imports nothing that is slow."""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A command.

    Args:
        does: one sentence.
        example: arguments that show its use.
    """

    does: str
    example: str


COMMANDS = {
    "train": Command(
        "Train on a folder of scans and evaluate on its test patients.",
        "--data ACDC --labeled 3",
    ),
    "crossval": Command(
        "Train once for every fold and validate on all patients.",
        "--data ACDC --labeled 3 --folds 5",
    ),
    "evaluate": Command(
        "Evaluate a run on its test patients again.",
        "runs/ACDC-action-3-seed0 --overwrite",
    ),
    "predict": Command(
        "Segment images with the networks of runs.",
        "runs/ACDC-action-3-seed0 scan.nii.gz -o predictions",
    ),
    "prepare": Command(
        "Check a data set, convert it, or write the synthetic heart.",
        "check ACDC",
    ),
}


def program(name: str) -> str:
    """How the command is called."""
    return f"python -m action.{name}"


def example(name: str) -> str:
    """A call of the command, as it would be typed."""
    return f"{program(name)} {COMMANDS[name].example}"
