"""Files a browser sent -> micrographs on disk, with their side-cars beside them, and 8-bit pictures to show.

Browsers cannot show TIFF and turn 16-bit pictures white; what they get is our own windowed PNG. Knows nothing about
Gradio or models.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph

PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
SIDECARS = (".txt", ".hdr")
SHOWN_SIDE = 1024
"""Longest side of a picture as it is shown [px]."""
LIFETIME_S = 8 * 3600
"""Age after which files of a conversation are removed [s]."""


class Workspace:
    """A private folder for the files of all conversations; old ones are swept out, the rest goes with the process."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="maemi-"))
        weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)

    def stage(self, files: Sequence[str | Path]) -> list[Path]:
        """Put uploaded files into one fresh folder, so that side-cars are found; returns the pictures.

        What is no side-car counts as a picture: reading it says what is wrong with it.
        """
        self._sweep()
        folder = Path(tempfile.mkdtemp(dir=self.root))
        staged = []
        for file in map(Path, files):
            target = folder / file.name
            if target.exists():  # two uploads of one name
                target = Path(tempfile.mkdtemp(dir=folder)) / file.name
            shutil.copyfile(file, target)
            staged.append(target)
        return [path for path in staged if path.suffix.lower() not in SIDECARS]

    def picture(self, micrograph: Micrograph) -> Path:
        """A PNG of the windowed micrograph, small enough for a page."""
        from PIL import Image

        image = Image.fromarray(micrograph.to_display())
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
        folder = Path(tempfile.mkdtemp(dir=self.root))
        image.save(folder / "micrograph.png")
        return folder / "micrograph.png"

    def folder(self) -> Path:
        """A fresh folder for files to download."""
        return Path(tempfile.mkdtemp(dir=self.root))

    def _sweep(self) -> None:
        for folder in self.root.iterdir():
            if time.time() - folder.stat().st_mtime > LIFETIME_S:
                shutil.rmtree(folder, ignore_errors=True)
