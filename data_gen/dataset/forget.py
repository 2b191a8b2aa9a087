"""Deletes a micrograph from a data set on request: what was measured, asked, answered, judged and derived of it.

Its hash stays in the ledger, so that it is never taken up again, and so do the lines that tell that it left. Knows
nothing about teaching; the next run writes what is left.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from assistant.errors import DatasetError
from data_gen.dataset.decisions import FILE, Reviews
from data_gen.ledger import Ledger

DERIVED = (
    "data/*.parquet",
    "pending",
    "README.md",
    "rejected.jsonl",
    "egress.jsonl",
    "examples",
    "exports",
    ".drafts.sqlite*",
    ".*.partial",
)
"""What the next run writes anew, as patterns in the data set directory."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def forget_micrograph(out: Path, micrograph: str | Path) -> str:
    """Delete a micrograph, given as a file or as its sha256, from the data set in `out`; gives the sha256.

    Everything derived is removed at once, whole, and written anew without it by the next run.

    Raises DatasetError `no_dataset`, `not_found`, `locked` or `disk`.
    """
    path = out / "ledger.sqlite"
    if not path.is_file():
        raise DatasetError("no_dataset", f"{out} holds no ledger. Name a directory that `maemi teach` wrote.")
    sha256 = str(micrograph)
    if not _SHA256.fullmatch(sha256):
        try:
            with Path(micrograph).open("rb") as stream:
                sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DatasetError(
                "not_found", f"{micrograph}: {error.strerror}. Name a file that is still there, or its sha256."
            ) from None
    with Ledger(path) as ledger:
        ledger.forget(sha256)
        if (out / FILE).is_file():
            with Reviews(out) as reviews:
                reviews.forget(sha256)
        for derived in (found for pattern in DERIVED for found in [*out.glob(pattern), *out.glob(f"data/{pattern}")]):
            shutil.rmtree(derived) if derived.is_dir() else derived.unlink(missing_ok=True)
    return sha256
