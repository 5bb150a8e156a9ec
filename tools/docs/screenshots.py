"""Take the tutorial's picture of a finished run's page, with a Chromium: ``python -m tools.docs.screenshots``.

Twice, for light pages and for dark ones. The page is written again first, with today's code.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from action import report

from ..command import refuse, run
from .pictures import FOLDER

RUN = Path("runs/phantom-action-2-seed0")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCHEMES = {"dark": 0, "light": 1}  # as Blink counts them


def screenshots(run_folder: Path = RUN, output: Path = FOLDER, width: int = 1000, height: int = 900) -> None:
    """Save the upper part of the page.

    Args:
        run_folder: of the run that ``python -m action.train`` makes.
        output: folder of the pictures.
        width: of the browser's window, pixels.
        height: likewise.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        refuse(f"no browser is installed: install one of {', '.join(BROWSERS)}")
    report.main([str(run_folder)])
    page = (run_folder / "report.html").resolve().as_uri()
    for scheme, number in SCHEMES.items():
        with tempfile.TemporaryDirectory() as folder:
            shot = Path(folder, "shot.png")
            flags = [f"--screenshot={shot}", f"--window-size={width},{height}", "--hide-scrollbars"]
            flags += [f"--blink-settings=preferredColorScheme={number}", f"--user-data-dir={folder}/profile"]
            subprocess.run([browser, "--headless", "--no-sandbox", *flags, page], check=True, capture_output=True)
            Image.open(shot).convert("RGB").save(output / f"report-{scheme}.png", optimize=True)


if __name__ == "__main__":
    run(screenshots)
