"""What a browser brings to any tab: files with their side-cars, a pixel size for those that carry none.

Knows nothing about what a tab does with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from assistant.errors import ConfigError, MicrographError
from serve.desk.answering import parse_pixel_size, read_images
from serve.page.sessions import MAX_FILES, owner_of
from serve.page.uploads import PICTURES, SIDECARS, is_sidecar

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph
    from serve.desk.desk import Desk
    from serve.page.uploads import Workspace


@dataclass(frozen=True)
class Intake:
    """Uploads of all tabs."""

    desk: Desk
    workspace: Workspace

    def stage(self, files: Sequence[str] | None, request: gr.Request) -> list[Path]:
        """Lay uploaded files side by side; gives the pictures. Raises ConfigError `too_many`."""
        return [path for path in self.lay(files, request) if not is_sidecar(path)]

    def lay(self, files: Sequence[str] | None, request: gr.Request) -> list[Path]:
        """Lay uploaded files side by side; gives all of them. Raises ConfigError `too_many`."""
        if files and len(files) > MAX_FILES:
            raise ConfigError("too_many", f"More than {MAX_FILES} files at once. Use `maemi caption FOLDER` for many.")
        return self.workspace.stage(files or [], owner_of(request))

    def read(self, paths: Sequence[Path], size: str) -> list[Micrograph]:
        """Read pictures; the given pixel size counts for those whose metadata carry none.

        Raises ConfigError `bad_pixel_size` or `expired`, and MicrographError.
        """
        nm = parse_pixel_size(size)
        found = []
        for path in paths:
            try:
                (micrograph,) = read_images([path], read=self.desk.reader)
            except MicrographError as error:
                if error.code != "not_found":
                    raise
                raise ConfigError("expired", "The pictures were cleared. Add them again.") from None
            if nm is not None and (micrograph.calibration is None or micrograph.calibration.source == "banner"):
                (micrograph,) = read_images([path], pixel_size_nm=nm, read=self.desk.reader)
            found.append(micrograph)
        return found


def user_of(request: gr.Request) -> str:
    """The login that a call came with, for the book of answers."""
    return str(request.request.scope.get("state", {}).get("user", "local")) if request.request else "local"


def picture_files(label: str, *more: str) -> gr.File:
    """A field for many pictures, and for files with `more` suffixes."""
    return gr.File(label=label, file_count="multiple", file_types=[*PICTURES, *SIDECARS, *more], height=170)


def pixel_size() -> gr.Textbox:
    """A field for the pixel size."""
    return gr.Textbox(label="Pixel size, for pictures that carry none", placeholder="4.2 nm", max_lines=1)
