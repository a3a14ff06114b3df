"""Take the picture that README opens with: the report of the deep-sigmoid demo, as a browser shows it.

Run: python docs/picture.py   (needs chromium on the path)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).parent / "_static" / "report.png"
QUIET = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-sync --hide-scrollbars"


def main() -> None:
    """Write the page, and take its picture."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        command = [sys.executable, "-m", "jaxgrad", "explain", "--demo", "deep-sigmoid", "--quiet", "--html", str(page)]
        subprocess.run(command, check=True)
        size = "--window-size=1100,1366"
        options = [*QUIET.split(), size, f"--user-data-dir={folder}/profile", f"--screenshot={PICTURE}"]
        subprocess.run(["chromium", *options, page.as_uri()], check=True)


if __name__ == "__main__":
    main()
