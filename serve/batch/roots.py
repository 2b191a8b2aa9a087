"""The folders of this machine that somebody at the page may name. Knows nothing about what is done with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from assistant.errors import ConfigError


@dataclass(frozen=True)
class Roots:
    """Folders that may be read with all that is in them."""

    paths: tuple[Path, ...] = ()
    """Without links or `..`."""

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Roots:
        """Take folders as a person named them. Raises ConfigError `no_folder`."""
        for folder in folders:
            if not folder.is_dir():
                raise ConfigError("no_folder", f"{folder} is not a folder. Name one that exists by --folders.")
        return cls(tuple(Path(os.path.realpath(folder)) for folder in folders))

    def find(self, words: str) -> tuple[Path, Path]:
        """A folder that was typed, absolute or inside one of these, and the one of these that holds it.

        Whether something exists outside is not told. Raises ConfigError `no_roots` or `outside`.
        """
        if not self.paths:
            raise ConfigError(
                "no_roots",
                "No folder of the server may be read from the page. Whoever runs it allows some by "
                "`maemi serve --folders PATH`; until then, add files or a zip.",
            )
        for root in self.paths:
            try:
                folder = Path(os.path.realpath(root / words.strip()))  # an absolute path replaces the root
                if folder.is_relative_to(root) and folder.is_dir():
                    return folder, root
            except (OSError, ValueError):
                continue
        allowed = ", ".join(map(str, self.paths))
        raise ConfigError("outside", f"{words.strip()[:200]!r} is no folder in {allowed}. Name one of these or below.")
