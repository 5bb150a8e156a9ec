"""Figures and pages that are not drawn: drawing takes most of a miniature run's time."""

from pathlib import Path

import pytest
from PIL import Image

from action.files import write_aside


def _write(output: Path) -> None:
    with write_aside(output) as aside:
        Image.new("RGB", (2, 2)).save(aside, "PNG")


def instead_of_figures(patch: pytest.MonkeyPatch) -> None:
    """Runs leave placeholders where their figures and their page would be, until the patch is undone."""
    patch.setattr("action.trainer.plot_progress", lambda metrics, output: _write(output))
    patch.setattr("action.train.write_report", lambda folder: _write(folder.report))
    patch.setattr("action.evaluate.write_report", lambda folder, data: _write(folder.report))
    patch.setattr("action.evaluate.plot_overlays", lambda panels, names, output: _write(output))
