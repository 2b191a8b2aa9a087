"""Pictures like this one: features and facts of every picture of a folder, kept by the file's hash, searched exactly.

found = find_similar(Path("wafer.tif"), Path("archive"), top=5)

What is compared are the frozen features that class heads stand on: texture descriptors and, where its package is
installed, the stage statistics of the frozen tower. Knows nothing about answers or pages.

Letters: N pictures of the folder, F features.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sqlalchemy import delete, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from assistant.conditions import Condition
from assistant.config import TOWER_SIDE
from assistant.database import Database
from assistant.disk import disk_errors, fingerprint
from assistant.encoders.texture import SIDE, texture_descriptors
from assistant.errors import ConfigError, DatasetError, MicrographError
from assistant.heads import SETTINGS, Heads, load_heads, unit
from assistant.measure import Fact, known_of, measure
from assistant.micrograph import Micrograph, ReadLimits, find_micrographs, read_micrograph, to_model_input
from assistant.progress import Progress
from assistant.readers.files import sidecar_texts
from assistant.starts import BUNDLED
from assistant.towers import WEIGHTS_SHA256, load_tower, see

_VERSION = "1"
"""Of what is kept of a picture; another one is computed anew."""
_FEWEST = 3
"""Pictures that have a mean worth looking from."""
_ROWS = 4096
"""Pictures compared at a time."""
_ASKED = 500
"""Keys that one query names."""


@dataclass(frozen=True)
class IndexedPicture:
    """One picture of a folder, with what is known of it."""

    path: Path
    sha256: str
    distance: float
    """From the picture asked for: 0 for the same features, 1 for nothing in common, 2 for the opposite."""
    facts: tuple[Fact, ...]

    def as_dict(self) -> dict[str, Any]:
        """As `maemi similar --json` prints it."""
        facts = [asdict(fact) for fact in self.facts]
        return {"path": str(self.path), "sha256": self.sha256, "distance": self.distance, "facts": facts, "error": None}


@dataclass(frozen=True)
class Found:
    """The nearest pictures, nearest first, and what was left out."""

    pictures: tuple[IndexedPicture, ...]
    looked_at: int
    """Pictures of the folder that could be read."""
    undecided: int
    """Pictures left out because the quantity of a condition is not known of them."""
    failed: Mapping[Path, MicrographError]
    left: int = 0
    """Pictures that are new and were not looked at this time."""


class Read(Protocol):
    """`read_micrograph`, or the same in another process."""

    def __call__(self, source: Path, /) -> Micrograph: ...


def find_similar(
    image: Path | Micrograph,
    folder: Path,
    *,
    top: int = 10,
    where: Sequence[Condition] = (),
    index: Path | None = None,
    read: Read | None = None,
    most_new: int | None = None,
    progress: Progress = lambda done, total, text: None,
) -> Found:
    """The `top` pictures of a folder that are most like an image, the image itself left out.

    `where` are conditions that all hold for what is found. What is computed of a picture is kept in `index`, one commit
    each: after a stop at any moment the same call goes on. `most_new` is how many new pictures are looked at this time.
    Raises MicrographError for the image, ConfigError `no_images`, and DatasetError `disk_full`, `disk` or
    `damaged_index`.
    """
    read = read or read_micrograph
    asked = image if isinstance(image, Micrograph) else read(image)
    with PictureIndex(index or index_place(), read) as kept:
        looks, failed, left = kept.look_at_all(folder, progress, most_new=most_new)
    if not looks and not failed and not left:
        raise ConfigError("no_images", f"{folder} holds no micrographs. Name a folder with TIFF, PNG, JPEG or BMP.")
    itself = asked.source.resolve() if asked.source else None
    others = [look for look in looks if look.path.resolve() != itself]
    met = [_meets(look.facts, where) for look in others]
    away = distances(features_of(asked), [look.vector for look in others])
    chosen = sorted((n for n, holds in enumerate(met) if holds), key=lambda n: away[n])
    return Found(
        tuple(IndexedPicture(others[n].path, others[n].sha256, float(away[n]), others[n].facts) for n in chosen[:top]),
        looked_at=len(looks),
        undecided=met.count(None),
        failed=failed,
        left=left,
    )


def distances(asked: np.ndarray, vectors: Sequence[np.ndarray]) -> np.ndarray:
    """1 - cosine [N] of features [F] to those of pictures, N times [F], seen from the mean of the pictures.

    Scaling every feature by its spread as well finds pictures of the same class less often (benchmarks/similar.py).
    """
    if not vectors:
        return np.zeros(0, np.float32)
    seen = np.stack(vectors)
    mean = seen.mean(axis=0, dtype=np.float64).astype(np.float32) if len(seen) >= _FEWEST else np.float32(0)
    blocks = [slice(start, start + _ROWS) for start in range(0, len(seen), _ROWS)]
    away: np.ndarray = np.concatenate([1 - unit(seen[block] - mean) @ unit(asked - mean) for block in blocks])
    return away


def features_of(m: Micrograph) -> np.ndarray:
    """The features [F] that pictures are compared by, float16: what is kept is what is compared."""
    parts = [texture_descriptors(to_model_input(m, SIDE)[0])]
    if load_tower() is not None:
        parts.append(see([to_model_input(m, TOWER_SIDE)[0]])[0])
    seen: np.ndarray = np.clip(np.concatenate(parts), -6e4, 6e4).astype(np.float16)
    return seen


def index_place() -> Path:
    """Where the index is kept: `maemi/similar.sqlite` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maemi" / "similar.sqlite"


class _Table(DeclarativeBase):
    """Registry of the index."""


class _Place(_Table):
    """A file as it was when it was last read."""

    __tablename__ = "places"
    path: Mapped[str] = mapped_column(primary_key=True)
    stamp: Mapped[str]
    """Changes with the file or with what stands beside it."""
    content: Mapped[str] = mapped_column(index=True)


class _Content(_Table):
    """What is known of a picture, whatever it is called."""

    __tablename__ = "contents"
    content: Mapped[str] = mapped_column(primary_key=True)
    """Hash of the file and of the texts beside it."""
    seen_by: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    vector: Mapped[bytes]
    facts: Mapped[str]


@dataclass(frozen=True)
class _Look:
    path: Path
    sha256: str
    vector: np.ndarray
    facts: tuple[Fact, ...]


class PictureIndex(Database):
    """Features and facts of pictures in one SQLite file."""

    damaged_file = ("damaged_index", "Remove it: it is built again.")

    def __init__(self, file: Path, read: Read) -> None:
        self._read_file, self._looked_at = read, 0
        with disk_errors(file, DatasetError):
            file.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(file, tables=_Table, durable=False)

    def look_at_all(
        self, folder: Path, progress: Progress, *, most_new: int | None = None
    ) -> tuple[list[_Look], dict[Path, MicrographError], int]:
        """Every picture under a folder, in order; what is wrong with others; how many new ones were left."""
        paths = find_micrographs(folder)
        with self._session() as session:
            known = {place.path: place for place in session.scalars(select(_Place))}
        contents: dict[Path, str] = {}
        failed: dict[Path, MicrographError] = {}
        left = 0
        for done, path in enumerate(paths):
            place = known.get(str(path.absolute()))
            try:
                stamp, texts = _stamp(path)
                if place is not None and place.stamp == stamp:
                    contents[path] = place.content
                elif most_new is not None and self._looked_at >= most_new:
                    left += 1
                else:
                    contents[path] = self._look_at(path, stamp, texts)
            except MicrographError as error:
                failed[path] = error
            progress(done + 1, len(paths), path.name)
        self._forget(folder, known, paths)
        kept = self._read(set(contents.values()))
        return [_with_path(path, kept[content]) for path, content in contents.items()], failed, left

    def _look_at(self, path: Path, stamp: str, texts: Sequence[str]) -> str:
        """The key of a picture of which everything is kept when this returns. Raises MicrographError."""
        with _unreadable(path):
            content = _digest(fingerprint(path), *texts)
        if not self._read({content}):
            self._looked_at += 1
            m = self._read_file(path)
            vector = features_of(m)
            facts = json.dumps([asdict(fact) for fact in facts_of(m, vector)])
            row = {"content": content, "seen_by": seen_by(), "sha256": m.sha256, "vector": vector.tobytes()}
            self._replace(_Content, [{**row, "facts": facts}])
        self._replace(_Place, [{"path": str(path.absolute()), "stamp": stamp, "content": content}])
        return content

    def _read(self, contents: Iterable[str]) -> dict[str, _Content]:
        keys, rows = sorted(contents), {}
        with self._session() as session:
            for start in range(0, len(keys), _ASKED):
                asked = select(_Content).where(
                    _Content.seen_by == seen_by(), _Content.content.in_(keys[start : start + _ASKED])
                )
                rows.update({row.content: row for row in session.scalars(asked)})
        return rows

    def _forget(self, folder: Path, known: Mapping[str, _Place], paths: Sequence[Path]) -> None:
        """Let go of files that a folder has no more, and of what was kept of them alone."""
        there, root = {str(path.absolute()) for path in paths}, folder.absolute()
        gone = [place for path, place in known.items() if path not in there and Path(path).is_relative_to(root)]
        for start in range(0, len(gone), _ASKED):
            some = gone[start : start + _ASKED]
            with self._session() as session:
                session.execute(delete(_Place).where(_Place.path.in_([place.path for place in some])))
                unseen = _Content.content.not_in(select(_Place.content))
                session.execute(delete(_Content).where(_Content.content.in_([p.content for p in some]), unseen))


def facts_of(m: Micrograph, vector: np.ndarray) -> tuple[Fact, ...]:
    """What is known of a micrograph: measured, read, and what the bundled heads are sure of."""
    heads = _heads()
    predicted: tuple[Fact, ...] = ()
    width = heads.space.mean.size if heads else 0
    if heads and len(vector) > width:
        seen = vector[-width:].astype(np.float32)
        predicted = tuple(verdict.fact() for verdict in heads.verdicts(seen[None])[0])
    return tuple(known_of(m, measure(m), predicted))


def _stamp(path: Path) -> tuple[str, list[str]]:
    """What changes with a file or with the texts beside it, and these. Raises MicrographError, also for a link."""
    with _unreadable(path):
        status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise MicrographError("not_a_file", f"{path.name} is not a regular file. Give an image file, not a link.")
    texts = [text or "" for _, text in sidecar_texts(path, ReadLimits().max_sidecar_bytes)]
    return _digest(seen_by(), str(status.st_size), str(status.st_mtime_ns), *texts), texts


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or "an error of the disk"
        raise MicrographError("unreadable", f"{path.name} cannot be read: {reason.lower()}. Check it.") from None


@cache
def seen_by() -> str:
    """Who looked: what is kept by another is never compared with what this one sees."""
    tower = WEIGHTS_SHA256[:16] if load_tower() is not None else "none"
    heads = fingerprint(BUNDLED / "heads" / SETTINGS)[:16] if _heads() else "none"
    return f"{_VERSION}-texture-{SIDE}-tower-{tower}-heads-{heads}"


@cache
def _heads() -> Heads | None:
    return load_heads(BUNDLED / "heads") if (BUNDLED / "heads").is_dir() else None


def _with_path(path: Path, kept: _Content) -> _Look:
    facts = tuple(Fact(**fact) for fact in json.loads(kept.facts))
    return _Look(path, kept.sha256, np.frombuffer(kept.vector, np.float16), facts)


def _meets(facts: Sequence[Fact], where: Sequence[Condition]) -> bool | None:
    """Whether every condition holds; None where none fails and one cannot be decided."""
    by_name = {fact.name: fact for fact in facts}
    held = [condition.holds(by_name.get(condition.quantity)) for condition in where]
    return False if False in held else None if None in held else True


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
