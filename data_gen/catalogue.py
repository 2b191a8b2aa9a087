"""A folder of micrographs as a list of entries: path, label, group, split, ground truth. Knows nothing about pixels.

A `truth.jsonl` (synthetic images) or an `index.csv` says what belongs together; otherwise sub-folders are labels and
file names tell the group. Whole groups go to one split, stratified by label, by hash: never single images.
"""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from assistant.errors import DatasetError
from data_gen.questions.evidence import chance

SPLITS = ("train", "validation", "test")
TRUTH, INDEX = "truth.jsonl", "index.csv"
_BLOCK = 8
"""Images of one pseudo-group where file names show fewer than three groups."""
_SPLIT_NAMES = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_NO = frozenset({"no", "n", "false", "0", "deny", "denied"})


@dataclass(frozen=True)
class CatalogueEntry:
    """One file, and what is known of it before it is opened."""

    position: int
    name: str
    """Path relative to the folder, with forward slashes."""
    label: str | None
    group: str
    source: str
    split: str | None = None
    """Given by the index; None where it is to be assigned."""
    truth: Mapping[str, Any] = field(default_factory=dict)
    nm_per_pixel: float | None = None
    stays: bool = False
    """Must not leave the machine, whatever is allowed for the others."""
    named_group: bool = False
    """The group is what the index says, not what the name of the file tells."""


class Catalogue:
    """The entries of a folder, streamed in a fixed order, each with its split.

    Raises DatasetError `no_images`, `bad_truth` or `bad_index`.
    """

    def __init__(self, images: Path, *, shares: Mapping[str, float], seed: int, keep: Sequence[str] = ()) -> None:
        """`keep`: patterns of names that must not leave the machine, whatever is allowed for the others."""
        self.root = images
        self._keep = tuple(keep)
        self.warnings: list[str] = []
        self.count, named = 0, False
        labels: dict[str, str] = {}
        told: dict[str, Counter[str]] = {}
        self._given: dict[str, str] = {}
        """Splits of the groups for which the index gives one."""
        self._blocks = False
        for entry in self._entries():
            self.count += 1
            if entry.split is None:
                labels.setdefault(entry.group, entry.label or "")
            else:
                told.setdefault(entry.group, Counter())[entry.split] += 1
                named |= entry.named_group
        if not self.count:
            raise DatasetError("no_images", f"{images} holds no micrographs. Name a folder with images in it.")
        self._given = {group: max(SPLITS, key=splits.__getitem__) for group, splits in told.items()}
        self._warn_of_torn([group for group, splits in told.items() if len(splits) > 1], named=named)
        labels = {group: label for group, label in labels.items() if group not in self._given}
        if 0 < len(labels) < len(SPLITS) and self.count >= len(SPLITS):
            # Groups of neighbouring files, for want of better: the splits may then share a sample.
            self._blocks = True
            self.warnings.append(
                "The files show fewer than three groups, so neighbouring files were taken as groups; the splits may "
                f"share a sample. Write an {INDEX} with a group column to split by sample."
            )
            labels = {entry.group: entry.label or "" for entry in self._entries() if entry.group not in self._given}
        self._splits = assign_splits(labels, shares=shares, seed=seed) | self._given

    def __iter__(self) -> Iterator[tuple[CatalogueEntry, str]]:
        """Every entry with its split: that of its group, where the index names groups or leaves the split open."""
        for entry in self._entries():
            by_image = None if entry.named_group else entry.split
            yield entry, by_image or self._splits[entry.group]

    def _warn_of_torn(self, groups: Sequence[str], *, named: bool) -> None:
        """Tell of groups that the index puts into several splits: one sample belongs to one."""
        if groups and named:
            self.warnings.append(
                f"{INDEX} puts {len(groups)} of its groups ({groups[0]}) into several splits; each went whole to the "
                "split that most of its files name."
            )
        elif groups:
            self.warnings.append(
                f"{INDEX} splits files that are of one sample by their names ({groups[0]}); scores on such splits are "
                "too good. Add a group column."
            )

    def _entries(self) -> Iterator[CatalogueEntry]:
        if (self.root / TRUTH).is_file():
            entries = _from_truth(self.root)
        elif (self.root / INDEX).is_file():
            entries = _from_index(self.root)
        else:
            entries = _from_folders(self.root)
        for entry in entries:
            if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in self._keep):
                entry = replace(entry, stays=True)
            if self._blocks and entry.group not in self._given:
                entry = replace(entry, group=f"{entry.group}#{entry.position // _BLOCK}")
            yield entry


def assign_splits(labels: Mapping[str, str], *, shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for every group (group -> label): per label the groups are ordered by hash and dealt out by share.

    A label with three groups or more has at least one in every split whose share is not 0; with two, one is tested.
    """
    by_label: dict[str, list[str]] = {}
    for group, label in labels.items():
        by_label.setdefault(label, []).append(group)
    splits: dict[str, str] = {}
    for groups in by_label.values():
        groups.sort(key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
        tested = _quota(len(groups), shares["test"], least=2)
        validated = _quota(len(groups), shares["validation"], least=3)
        for place, group in enumerate(groups):
            held_out = "test" if place < tested else "validation" if place < tested + validated else "train"
            splits[group] = held_out
    return splits


Taught = Sequence[tuple[int, str, str | None]]
"""Position, split and label of pictures."""


def in_pair_order(taught: Taught, *, seed: int) -> list[tuple[int, str, str | None]]:
    """The pictures split by split, shuffled: the order in which neighbours are paired, asked about and written.

    Partners stand near each other in it, so that both are stored once though two pictures of a row share no sample.
    """
    order: list[tuple[int, str, str | None]] = []
    for split in SPLITS:
        part = [entry for entry in taught if entry[1] == split]
        chance(seed, split, "pairs").shuffle(part)
        order += part
    return order


def pair_up(taught: Taught, *, seed: int) -> dict[int, int]:
    """A partner for every picture: of its split, the next of its own class as often as the next of another."""
    pairs: dict[int, int] = {}
    for split in SPLITS:
        order = [(position, label) for position, where, label in taught if where == split]
        by_label: dict[str | None, list[int]] = {}
        for position, label in order:
            by_label.setdefault(label, []).append(position)
        place = {position: i for row in by_label.values() for i, position in enumerate(row)}
        for i, (position, label) in enumerate(order):
            mates = by_label[label]
            alike = mates[(place[position] + 1) % len(mates)]
            others = (
                other
                for other, name in itertools.islice(itertools.cycle(order), i + 1, i + len(order))
                if name != label
            )
            want_alike = chance(seed, position, "pair").random() < 0.5
            partner = alike if want_alike or len(by_label) == 1 else next(others, alike)
            if partner != position:
                pairs[position] = partner
    return pairs


def _quota(count: int, share: float, *, least: int) -> int:
    if count < least or share == 0:
        return 0
    return max(1, int(count * share + 0.5))


def _from_truth(root: Path) -> Iterator[CatalogueEntry]:
    with (root / TRUTH).open(encoding="utf-8") as stream:
        for position, line in enumerate(stream):
            try:
                row = json.loads(line)
                entry = CatalogueEntry(
                    position,
                    row["path"],
                    row["label"],
                    row["group"],
                    "synthetic",
                    None,
                    row["truth"],
                    row["nm_per_pixel"],
                )
                _check_inside(root, entry.name)
            except (ValueError, KeyError, TypeError):
                raise DatasetError(
                    "bad_truth", f"{root / TRUTH}, line {position + 1} is damaged. Write the images again."
                ) from None
            yield entry


def _from_index(root: Path) -> Iterator[CatalogueEntry]:
    from assistant.micrograph import group_of_name

    with (root / INDEX).open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream)
        if "path" not in (rows.fieldnames or ()):
            raise DatasetError("bad_index", f"{root / INDEX} has no column 'path'. Name its columns in the first line.")
        for position, row in enumerate(rows):
            name, split = row["path"] or "", row.get("split") or ""
            try:
                _check_inside(root, name)
                given = _SPLIT_NAMES[split.lower()] if split else None
            except (ValueError, KeyError):
                raise DatasetError(
                    "bad_index",
                    f"{root / INDEX}, line {position + 2}: path {name!r} or split {split!r} is not usable. Correct it.",
                ) from None
            group, stays = row.get("group") or "", (row.get("egress") or "").strip().lower() in _NO
            yield CatalogueEntry(
                position,
                name,
                row.get("label") or None,
                group or group_of_name(name),
                row.get("source") or name,
                given,
                stays=stays,
                named_group=bool(group),
            )


def _from_folders(root: Path) -> Iterator[CatalogueEntry]:
    from assistant.micrograph import find_micrographs, group_of_name

    names = [path.relative_to(root).as_posix() for path in find_micrographs(root)]
    folders = {Path(name).parent.as_posix() for name in names}
    labelled = len(folders - {"."}) > 1
    for position, name in enumerate(names):
        folder = Path(name).parent
        label = folder.name if labelled and folder.name else None
        yield CatalogueEntry(position, name, label, group_of_name(name), name)


def _check_inside(root: Path, name: str) -> None:
    if not name or not (root / name).resolve().is_relative_to(root.resolve()):
        raise ValueError(name)
