"""Files a browser sent -> micrographs on disk, with their side-cars beside them, and 8-bit pictures to show.

Browsers cannot show TIFF and turn 16-bit pictures white; what they get is our own windowed PNG. Knows nothing about
Gradio or models.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph

PICTURES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
SIDECARS = (".txt", ".hdr")
SHOWN_SIDE = 1024
"""Longest side of a picture as it is shown [px]."""
LIFETIME_S = 8 * 3600
"""Age after which files of a conversation are removed [s]."""


class Workspace:
    """A private folder for the files of all conversations; old ones are swept out, the rest goes with the process.

    Everything in it belongs to an owner: folders begin with the owner's name.
    """

    def __init__(self, parent: Path | str | None = None) -> None:
        if parent is not None:
            Path(parent).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root = Path(os.path.realpath(tempfile.mkdtemp(prefix="maemi-", dir=parent)))
        self.close = weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        """Removes everything; a second call does nothing."""
        self.kept = self.root / "kept"
        """Whatever else goes with the process; no browser reaches it, and nothing of it is swept out."""

    def owns(self, owner: str, path: object) -> bool:
        """Whether this is the very path of a file that was handed out to an owner: no link, no `..`, no URL."""
        if not isinstance(path, str) or not path.startswith(f"{self.root}/{owner}-"):
            return False
        try:
            return os.path.realpath(path) == path and os.path.isfile(path)
        except (OSError, ValueError):
            return False

    def folder(self, owner: str) -> Path:
        """A fresh folder; what has outlived its time is swept away first."""
        for path in self.root.iterdir():
            with suppress(FileNotFoundError):  # another thread sweeps too
                if path == self.kept:
                    continue
                if time.time() - path.stat().st_mtime > LIFETIME_S:
                    remove(path)
        return Path(tempfile.mkdtemp(prefix=f"{owner}-", dir=self.root))

    def stage(self, files: Sequence[str | Path], owner: str) -> list[Path]:
        """Put uploaded files into one fresh folder, so that side-cars are found; returns them.

        What is no side-car counts as a picture: reading it says what is wrong with it.
        """
        folder = self.folder(owner)
        staged = []
        for file in map(Path, files):
            target = folder / file.name
            if target.exists():  # two uploads of one name
                target = Path(tempfile.mkdtemp(dir=folder)) / file.name
            shutil.copyfile(file, target)
            staged.append(target)
        return staged

    def hand_out(self, picture: Path, owner: str) -> Path:
        """A copy of a picture that is kept elsewhere, which its owner's browser may fetch."""
        path = self.root / f"{owner}-{picture.parent.name}.png"
        if not path.exists():
            copy = Path(shutil.copyfile(picture, self.folder(owner) / "picture.png"))
            with suppress(FileExistsError):  # another thread was faster
                os.link(copy, path)  # nobody fetches half a picture
            remove(copy.parent)
        return path


def is_sidecar(path: Path) -> bool:
    """Whether a file tells of a picture and is none."""
    return path.suffix.lower() in SIDECARS


def sidecars_of(staged: Path) -> list[Path]:
    """The side-cars that were uploaded with a picture."""
    return [path for path in staged.parent.iterdir() if is_sidecar(path)]


def shown_png(micrograph: Micrograph) -> bytes:
    """A PNG of the windowed micrograph, small enough for a page."""
    from PIL import Image

    image = Image.fromarray(micrograph.to_display())
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def small_jpeg(micrograph: Micrograph, side: int = 132) -> bytes:
    """A picture for a row of a table, at most `side` px."""
    from PIL import Image

    image = Image.fromarray(micrograph.to_display())
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
