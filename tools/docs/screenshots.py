"""Show the page of a finished run in the tutorial: ``python -m tools.docs.screenshots RUN``, by a Chromium.

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

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCHEMES = {"dark": 0, "light": 1}  # as Blink counts them


def screenshots(root: Path, output: Path = FOLDER, width: int = 1000, height: int = 900) -> None:
    """Save the upper part of the page.

    Args:
        root: folder of the run.
        output: folder of the pictures.
        width: of the browser's window, pixels.
        height: likewise.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        refuse(f"no browser is installed: install one of {', '.join(BROWSERS)}")
    report.main([str(root)])
    page = (root / "report.html").resolve().as_uri()
    for scheme, number in SCHEMES.items():
        with tempfile.TemporaryDirectory() as folder:
            shot = Path(folder, "shot.png")
            flags = [f"--screenshot={shot}", f"--window-size={width},{height}", "--hide-scrollbars"]
            flags += [f"--blink-settings=preferredColorScheme={number}", f"--user-data-dir={folder}/profile"]
            subprocess.run([browser, "--headless", "--no-sandbox", *flags, page], check=True, capture_output=True)
            # Few colours: a page has no more, but for its images.
            Image.open(shot).convert("RGB").quantize(128).save(output / f"report-{scheme}.png", optimize=True)


if __name__ == "__main__":
    run(screenshots)
