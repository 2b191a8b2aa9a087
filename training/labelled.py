"""A user's own labels: a folder per class, or a CSV; what each column is, and what is wrong with it, found by itself.

Knows nothing about models. Columns are told apart by their names and by what they hold; what was found is said before
anything is trained.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from assistant.disk import fingerprint
from assistant.errors import ConfigError, DatasetError
from assistant.micrograph import find_micrographs, group_of_name

ROLES = {
    "picture": ("path", "image", "picture", "file", "filename", "micrograph"),
    "group": ("group", "lot", "wafer", "batch", "specimen", "sample"),
    "split": ("split",),
    "formula": ("formula", "composition"),
    "crystal": ("cif", "crystal", "structure"),
}
"""Columns whose name tells what they are."""
_SPLITS = {"train": "train", "training": "train", "val": "calibration", "valid": "calibration"}
_SPLITS |= {"validation": "calibration", "calibration": "calibration", "test": "test"}
WORDS_OF_TEXT = 4.0
"""A column whose cells have this many words in the mean is a text."""
MOST_CATEGORIES = 50
FEWEST_ROWS = 8
SUSPICIOUS = 0.98
"""A column that alone tells so much of a target is suspected of being it."""
_TARGET = re.compile(r"\s*(?P<name>[^\[\]]+?)\s*(?:\[(?P<unit>[^\[\]]*)\])?\s*")
_MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "-", "?"})

TrueValue = float | str | None


@dataclass
class LabelledRow:
    """One row of a user's table: its inputs by modality, its targets, the group it belongs to."""

    name: str
    picture: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    truth: dict[str, TrueValue] = field(default_factory=dict)
    group: str = ""
    split: str | None = None


@dataclass
class LabelledSet:
    """All rows, what each column was taken for, and what a person should know before anything is trained."""

    rows: list[LabelledRow]
    units: dict[str, str]
    """Targets with their units, in order; "" for a class or a bare number."""
    classes: dict[str, tuple[str, ...]]
    """The classes of targets that are no numbers."""
    roles: dict[str, str]
    findings: list[str]
    warnings: list[str]


def parse_target(text: str) -> tuple[str, str]:
    """Name and unit of a target: "yield strength[MPa]". Raises ConfigError `bad_target`."""
    match = _TARGET.fullmatch(text)
    if match is None:
        raise ConfigError("bad_target", f"{text!r} is no target. Write NAME or NAME[unit], such as strength[MPa].")
    return match["name"], (match["unit"] or "").strip()


def read_labelled(
    source: Path, targets: Sequence[str] = (), *, ignore: Sequence[str] = (), group: str | None = None
) -> LabelledSet:
    """Read a folder per class, or a CSV, and say what was found.

    Raises ConfigError `bad_target` or `no_target`, DatasetError `no_table`, `no_column`, `too_few` or `one_class`.
    """
    wanted = dict(map(parse_target, targets))
    if source.is_dir():
        if len(wanted) > 1:
            raise ConfigError("no_target", f"{source} is a folder per class: it has one target. Write a CSV for more.")
        rows, roles = _from_folders(source, next(iter(wanted), "class")), {"folder": "class"}
        wanted = wanted or {"class": ""}
    else:
        if not wanted:
            raise ConfigError("no_target", f"Nothing of {source} was named as a target. Add --target NAME[unit].")
        header, cells = read_cells(source)
        absent = [name for name in (*wanted, *ignore, *((group,) if group else ())) if name not in header]
        if absent:
            raise DatasetError("no_column", f"{source} has no column {absent[0]!r}. It has {', '.join(header)}.")
        roles = column_roles(header, cells, targets=wanted, ignore=ignore, group=group)
        rows = list(rows_of(source, header, cells, roles))
        for row, cell in zip(rows, cells, strict=True):
            held = {name: cell[name] for name in wanted if cell[name].lower() not in _MISSING}
            numbers = {name: _number(text) for name, text in held.items()}
            row.truth = {name: held.get(name) if numbers.get(name) is None else numbers[name] for name in wanted}
    labelled = LabelledSet(rows, wanted, {}, roles, [], [])
    for name in wanted:
        _settle(labelled, name)
    labelled.rows = [row for row in labelled.rows if any(value is not None for value in row.truth.values())]
    if len(labelled.rows) < FEWEST_ROWS:
        raise DatasetError("too_few", f"{source} has {len(labelled.rows)} labelled rows. Label {FEWEST_ROWS} at least.")
    _find_groups(labelled)
    _find_copies(labelled)
    find_leaks(labelled, "table")
    return labelled


def read_cells(source: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a CSV; an unnamed column is left out. Raises DatasetError `no_table`."""
    csv.field_size_limit(2**24)  # a CIF file is one cell
    try:
        with source.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError("no_table", f"{source} is no table that can be read ({error}). Name a CSV file.") from None
    header = [name for name in (rows[0] if rows else {}) if name]
    if not header:
        raise DatasetError("no_table", f"{source} has no rows. Name its columns in the first line.")
    return header, [{name: (row[name] or "").strip() for name in header} for row in rows]


def column_roles(
    header: Sequence[str],
    cells: Sequence[Mapping[str, str]],
    *,
    targets: Iterable[str] = (),
    ignore: Sequence[str] = (),
    group: str | None = None,
) -> dict[str, str]:
    """What each column is: picture, group, split, formula, crystal, text, number, category, target or ignored."""
    roles: dict[str, str] = dict.fromkeys(targets, "target") | dict.fromkeys(ignore, "ignored")
    if group:
        roles[group] = "group"
    for role, names in ROLES.items():
        for name in header:
            if role not in roles.values() and name not in roles and name.strip().lower() in names:
                roles[name] = role
    for name in header:
        if name not in roles:
            roles[name] = _guess(name, [row[name] for row in cells if row[name].lower() not in _MISSING])
    return {name: roles[name] for name in header}


def rows_of(
    source: Path, header: Sequence[str], cells: Sequence[Mapping[str, str]], roles: Mapping[str, str]
) -> Iterator[LabelledRow]:
    """Rows of a CSV by the roles of its columns; a path is relative to the CSV."""
    by_role: dict[str, list[str]] = defaultdict(list)
    for name in header:
        by_role[roles.get(name, "ignored")].append(name)
    for place, cell in enumerate(cells):
        held = {name: text for name, text in cell.items() if text.lower() not in _MISSING}

        def first(role: str, held: Mapping[str, str] = held) -> str | None:
            return next((held[name] for name in by_role[role] if name in held), None)

        path = first("picture")
        row = LabelledRow(path or f"row {place + 2}", source.parent / path if path else None)
        columns: dict[str, Any] = {name: _number(held[name]) for name in by_role["number"] if name in held}
        columns |= {name: held[name] for name in by_role["category"] if name in held}
        texts = [held[name] for name in by_role["text"] if name in held]
        crystal = first("crystal")
        if crystal is not None and "\n" not in crystal:
            crystal_value: Any = source.parent / crystal
        else:
            crystal_value = crystal
        values = {
            "table": {name: value for name, value in columns.items() if value is not None} or None,
            "text": " ".join(texts) or None,
            "composition": first("formula"),
            "crystal": crystal_value,
        }
        row.values = {name: value for name, value in values.items() if value is not None}
        row.group = first("group") or ""
        split = first("split")
        if split is not None and split.lower() not in _SPLITS:
            raise DatasetError("bad_split", f"{source}, line {place + 2}: {split!r} is no split. Write train or test.")
        row.split = _SPLITS[split.lower()] if split else None
        yield row


def _from_folders(root: Path, target: str) -> list[LabelledRow]:
    rows = []
    for path in find_micrographs(root):
        label = path.relative_to(root).parts[0]
        if path.parent != root:
            rows.append(LabelledRow(path.relative_to(root).as_posix(), path, {}, {target: label}))
    if not rows:
        raise DatasetError("no_table", f"{root} has no folders with micrographs. Make one folder per class.")
    return rows


def _guess(name: str, held: Sequence[str]) -> str:
    """What a column without a telling name is, by what it holds."""
    if not held:
        return "ignored"
    different = len(set(held))
    numbers = [_number(text) for text in held]
    if all(number is not None for number in numbers):
        counts_up = different == len(held) and all(float(n).is_integer() for n in numbers if n is not None)
        named = re.search(r"(?:^|[_\s])(?:id|no|nr|index)$", name.strip().lower())
        return "ignored" if counts_up and (named or not name.strip()) else "number"
    if sum(len(text.split()) for text in held) / len(held) >= WORDS_OF_TEXT:
        return "text"
    return "category" if different <= min(MOST_CATEGORIES, len(held) // 2) else "ignored"


def _settle(labelled: LabelledSet, name: str) -> None:
    """Decide whether a target is a number or a class, and say how it is spread."""
    held = [row.truth[name] for row in labelled.rows if row.truth[name] is not None]
    missing = len(labelled.rows) - len(held)
    gap = f"; {missing} missing" if missing else ""
    unit = labelled.units[name]
    if held and all(isinstance(value, float) for value in held):
        numbers = [float(value) for value in held if value is not None]
        low, middle, high = min(numbers), median(numbers), max(numbers)
        spread = f"{low:.4g} to {high:.4g}, median {middle:.4g}"
        labelled.findings.append(f"target {name}{f' [{unit}]' if unit else ''}: {len(held)} numbers, {spread}{gap}")
        if low == high:
            raise DatasetError("one_class", f"Every {name} is {low:.4g}: there is nothing to learn. Name another.")
        return
    if unit:
        raise DatasetError("no_number", f"{name} [{unit}] holds words ({held[0]!r}). Drop the unit, or the words.")
    for row in labelled.rows:
        word = row.truth[name]
        row.truth[name] = f"{word:g}" if isinstance(word, float) else word
    counts = Counter(str(row.truth[name]) for row in labelled.rows if row.truth[name] is not None)
    if len(counts) < 2:
        raise DatasetError("one_class", f"{name} has {len(counts)} class(es): nothing to tell apart. Add another.")
    labelled.classes[name] = tuple(sorted(counts))
    shown = ", ".join(f"{label} {count}" for label, count in counts.most_common(12)) + (
        ", ..." if len(counts) > 12 else ""
    )
    labelled.findings.append(f"target {name}: {len(counts)} classes ({shown}){gap}")
    rarest, commonest = counts.most_common()[-1], counts.most_common(1)[0]
    if commonest[1] >= 10 * rarest[1]:
        labelled.warnings.append(f"{name}: {commonest[0]} has {commonest[1]} rows, {rarest[0]} {rarest[1]}.")


def _find_groups(labelled: LabelledSet) -> None:
    """Give every row a group: of its column, by its file's name, or for want of better its own."""
    rows = labelled.rows
    how = "by their column"
    if not any(row.group for row in rows):
        how = "by the names of the files" if any(row.picture for row in rows) else "each row its own"
        for row in rows:
            row.group = group_of_name(row.picture) if row.picture else row.name
    for place, row in enumerate(rows):
        row.group = row.group or f"row {place}"
    groups = {row.group for row in rows}
    if len(groups) < 4:
        labelled.warnings.append(
            f"The rows show {len(groups)} group(s), too few to split by; every row was taken as its own, and scores "
            "are too good where rows are of one sample. Add a group column."
        )
        for place, row in enumerate(rows):
            row.group = f"row {place}"
    elif how != "by their column" and len(groups) == len(rows) and any(row.picture for row in rows):
        labelled.warnings.append("No two rows were found to be of one sample. Where some are, add a group column.")
    labelled.findings.append(f"{len(rows)} rows in {len({row.group for row in rows})} groups ({how})")
    kinds = Counter(role for role in labelled.roles.values() if role != "target")
    columns = ", ".join(f"{name} ({role})" for name, role in labelled.roles.items() if role != "target")
    if kinds:
        labelled.findings.append(f"columns: {columns}")
    for name, role in labelled.roles.items():
        if role in ("number", "category"):
            gaps = sum(name not in row.values.get("table", {}) for row in rows)
            if gaps:
                labelled.findings.append(f"{name}: {gaps} missing, which is learned as such")


def _find_copies(labelled: LabelledSet) -> None:
    """Tell of rows with the same inputs, and put them into one group, so that no copy is trained on and tested."""
    same: dict[str, list[LabelledRow]] = defaultdict(list)
    for row in labelled.rows:
        seen = repr(sorted((k, str(v)) for k, v in row.values.items()))
        if row.picture is not None:
            seen += fingerprint(row.picture) if row.picture.is_file() else row.name
        same[hashlib.sha256(seen.encode()).hexdigest()].append(row)
    copies = [rows for rows in same.values() if len(rows) > 1]
    if not copies:
        return
    root = {row.group: row.group for row in labelled.rows}

    def top(group: str) -> str:
        while root[group] != group:
            group = root[group]
        return group

    for rows in copies:
        for row in rows[1:]:
            root[top(row.group)] = top(rows[0].group)
    for row in labelled.rows:
        row.group = top(row.group)
    count = sum(len(rows) - 1 for rows in copies)
    labelled.warnings.append(f"{count} row(s) repeat the inputs of another; they stay in its split.")
    torn = sum(len({repr(row.truth) for row in rows}) > 1 for rows in copies)
    if torn:
        labelled.warnings.append(f"Of these, {torn} case(s) have different labels for the same inputs.")


def find_leaks(labelled: LabelledSet, modality: str) -> None:
    """Tell of columns of a modality that alone tell a target: a number computed from it would, or a session's date."""
    names = dict.fromkeys(name for row in labelled.rows for name in row.values.get(modality) or ())
    for target in labelled.units:
        known = [(row.values.get(modality) or {}, row.truth[target]) for row in labelled.rows]
        known = [(cells, true) for cells, true in known if true is not None]
        for name in names:
            held = [(cells[name], true) for cells, true in known if name in cells]
            if len(held) < len(known) / 2 or len({cell for cell, _ in held}) < 2:
                continue
            told = (_told if target in labelled.classes else _monotone)(held)
            if told >= SUSPICIOUS:
                labelled.warnings.append(
                    f"{name} alone tells {target} ({told:.2f}): where it is not known at use, or stands for the "
                    f"session, add --ignore {(name if modality == 'table' else modality)!r}."
                )


def _monotone(held: Sequence[tuple[Any, TrueValue]]) -> float:
    """How far the ranks of a column are those of a target, 0 to 1."""
    from scipy.stats import spearmanr

    if any(isinstance(cell, str) for cell, _ in held):
        return 0.0
    pairs = np.array(held, dtype=float)
    return abs(float(np.nan_to_num(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)))


def _told(held: Sequence[tuple[Any, TrueValue]]) -> float:
    """Share of rows whose class is the commonest one of their cell, as far as cells repeat."""
    by_cell: dict[Any, Counter[TrueValue]] = defaultdict(Counter)
    for cell, label in held:
        by_cell[cell][label] += 1
    repeated = [counts for counts in by_cell.values() if counts.total() > 1]
    rows = sum(counts.total() for counts in repeated)
    if rows < len(held) / 2:
        return 0.0
    return sum(max(counts.values()) for counts in repeated) / rows


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
