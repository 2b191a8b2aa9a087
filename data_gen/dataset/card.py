"""The data set card: what is in it, what was left out and why, what it cost, examples, and its known biases.

A `Tally` counts rows as they are written, so the card needs no second look at them. Knows nothing about how rows are
made or stored.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from assistant.disk import replacing
from data_gen.questions.filters import BLIND_ROWS, is_yes_or_no

EXAMPLES = "examples"
EXAMPLE_ROWS = 8
EXAMPLE_PX = 320
UNBALANCED = 5
"""Ratio of the commonest to the rarest class from which the card warns."""
GREY_FACTS = ("mean_grey", "contrast", "noise")
"""What a picture's exposure gives away about its session."""
_MEANING = {
    "unreadable": "not a micrograph that can be read",
    "near_duplicate": "nearly the same picture as an earlier one",
    "blind_answerable": "answered as well without the picture",
    "numbers_disagree": "a number that is neither measured nor in the metadata",
    "facts_disagree": "contradicts what is known",
    "samples_disagree": "asked several times, the teacher answered differently",
    "wordings_disagree": "its wordings contradict each other",
    "refusal": "the teacher declined",
    "filtered": "the provider's filter stopped the reply",
    "truncated": "the reply was cut off",
    "no_room": "the model thought until nothing was left for an answer",
    "hedge": "a guess, not an observation",
    "markup": "markup, a link, a formula or hidden characters",
    "empty": "no answer",
    "too_long": "longer than an answer may be",
    "reviewer": "rejected by a person",
}
_HEAD = """
# Questions and answers about electron micrographs

{images} images, {rows} rows; teacher: {teacher}; cost: {cost}. Splits are by group (sample, lot, field of view), never
by image.

{splits}

A row: `images` (PNG, 8 bit, without the info bar), `messages` (conversational vision format; several turns in the facet
`conversation`), `aux` (instrument metadata and measured facts in one line), `references` (all wordings of the last
answer, the target first), `provenance`, `measured` and `instrument` (JSON; a list where a row shows several pictures).
The class of the sample stands in `label` and in answers, never in `aux`, and in a question only where it stands among
other classes (facet `candidates`). Numbers in answers are plain text; `assistant.measure.quoted` turns them into
references to the facts (`{{count}}`).

Visible qualities come from ground truth where there is any, quantities from measurement, the rest from the teacher.
Agreement with these answers is agreement with the teacher, not accuracy. The pictures keep the licence of their source.
"""


@dataclass
class RowCounts:
    """What is in the rows of a data set, counted row by row."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    """Per split, rows by task."""
    facets: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By task and facet."""
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    """Per split, pictures by label."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """Yes and no."""
    uncalibrated: int = 0
    conditions: dict[str, set[str]] = field(default_factory=dict)
    """Per label, instruments with their voltage; empty where a file does not tell."""
    greys: list[tuple[str, str, list[float]]] = field(default_factory=list)
    """Split, label and GREY_FACTS of every picture."""
    reviewed: Counter[str] = field(default_factory=Counter)
    examples: dict[tuple[str, str], tuple[dict[str, Any], list[bytes]]] = field(default_factory=dict)
    """A training row of every task and facet, with its pictures, about as many pictures as there are."""
    _last: str = ""

    def add(self, split: str, row: Mapping[str, Any], pictures: list[bytes]) -> None:
        """Count a row (its columns but `images`); rows about the same picture come one after the other."""
        provenance = json.loads(row["provenance"])
        self.rows.setdefault(split, Counter())[row["task"]] += 1
        self.facets[row["task"], row["facet"]] += 1
        if verdict := is_yes_or_no(row["references"][0]):
            self.verdicts[verdict] += 1
        if review := provenance.get("review"):
            self.reviewed[f"{review['verdict']} by {review['by']}"] += 1
        if split == "train":
            # The first row of its facet, or a later one about a picture that no other example shows.
            shown = Counter(example["source"] for example, _ in self.examples.values())
            known = self.examples.get((row["task"], row["facet"]))
            if known is None or (shown[known[0]["source"]] > 1 and not shown[row["source"]]):
                self.examples[row["task"], row["facet"]] = (dict(row), pictures)
        if len(pictures) == 1 and provenance["sha256"][0] != self._last:
            self._last = provenance["sha256"][0]
            label = row["label"] or "(none)"
            self.labels.setdefault(split, Counter())[label] += 1
            self.uncalibrated += "not calibrated" in row["aux"]
            entries = row["aux"].split("; ")
            self.conditions.setdefault(label, set()).add("; ".join(entries[:2]) if "kV" in row["aux"] else "")
            measured = {fact["name"]: fact["value"] for fact in json.loads(row["measured"])["items"]}
            self.greys.append((split, label, [float(measured.get(name) or 0.0) for name in GREY_FACTS]))


def write_examples(out: Path, tally: RowCounts) -> list[tuple[dict[str, Any], list[str]]]:
    """Small JPEGs of one row of each of a few facets under `out/examples`; gives the rows with the names of theirs."""
    from PIL import Image

    folder = out / EXAMPLES
    folder.mkdir(exist_ok=True)
    shown, names, keys = [], set(), sorted(tally.examples)
    step = max(1.0, len(keys) / EXAMPLE_ROWS)  # spread over all facets
    for number, key in enumerate(keys[int(i * step)] for i in range(min(EXAMPLE_ROWS, len(keys)))):
        row, pictures = tally.examples[key]
        files = [f"{EXAMPLES}/{number + 1}{letter}.jpg" for letter, _ in zip("ab", pictures, strict=False)]
        for name, png in zip(files, pictures, strict=True):
            with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
                image.thumbnail((EXAMPLE_PX, EXAMPLE_PX))
                with replacing(out / name) as partial:
                    image.convert("L").save(partial, "JPEG", quality=80)
        names.update(files)
        shown.append((row, files))
    for leftover in folder.iterdir():
        if f"{EXAMPLES}/{leftover.name}" not in names:
            leftover.unlink()
    return shown


def dataset_card(
    tally: RowCounts,
    *,
    images: int,
    teacher: str,
    rejected: Mapping[str, int],
    checksums: Mapping[str, str],
    warnings: Sequence[str] = (),
    cost_usd: float = 0.0,
    blind: Mapping[str, tuple[int, int]] | None = None,
    examples: Sequence[tuple[Mapping[str, Any], Sequence[str]]] = (),
) -> str:
    """The card as Markdown; its head tells `datasets.load_dataset` where the splits are.

    `blind`: per facet, training rows and how many of them the commonest answer to the same question gets right.
    """
    total = sum(sum(tasks.values()) for tasks in tally.rows.values())
    cost = f"{cost_usd:.4f} USD" if cost_usd else "nothing"
    body = _HEAD.format(images=images, rows=total, teacher=teacher, cost=cost, splits=_splits(tally, checksums))
    left_out = [
        f"* {count} {reason}{f': {_MEANING[reason]}' if reason in _MEANING else ''}"
        for reason, count in sorted(rejected.items())
    ]
    reviewed = [f"* {count} {_text(name)}" for name, count in sorted(tally.reviewed.items())]
    parts = [
        _front_matter(tally.rows, checksums),
        body.strip(),
        "## Tasks and facets",
        _facets(tally, blind or {}),
        "## Classes",
        _classes(tally),
        "## Left out",
        "`rejected.jsonl` names every one of them; `ledger.sqlite` holds every request, reply, cost and verdict.",
        "\n".join(left_out) or "Nothing.",
        *(["## Reviewed by people", "\n".join(reviewed)] if reviewed else []),
        *(["## Examples", *(_example(row, files) for row, files in examples)] if examples else []),
        "## Known biases",
        "\n".join(f"* {line}" for line in biases(tally)),
        *(["## Warnings", *warnings] if warnings else []),
    ]
    return "\n\n".join(parts) + "\n"


def biases(tally: RowCounts) -> list[str]:
    """What a user should know before trusting scores on this data, from the counts alone."""
    found = ["The teacher writes short plain sentences of a small vocabulary; it is blind to what it has no word for."]
    pictures = sum((labels for labels in tally.labels.values()), Counter[str]())
    named = [count for label, count in pictures.items() if label != "(none)"]
    if named and max(named) >= UNBALANCED * min(named):
        ratio = max(named) / min(named)
        found.append(f"Classes are unbalanced: the commonest has {ratio:.0f} times the pictures of the rarest.")
    single = sorted(label for label, known in tally.conditions.items() if len(known) == 1 and "" not in known)
    if single and len(tally.conditions) > 1:
        names = _text(", ".join(single))
        found.append(f"One instrument at one voltage for all pictures of {names}: metadata can give the class away.")
    if grey := grey_accuracy(tally.greys):
        right, majority = grey
        found.append(
            f"Mean grey, contrast and noise alone name the class of {right:.0%} of the held-out pictures (always the "
            f"commonest class: {majority:.0%}). Only what a classifier scores above that, it owes to structure."
        )
    if pictures and tally.uncalibrated:
        share = tally.uncalibrated / sum(pictures.values())
        found.append(f"{share:.0%} of the pictures are not calibrated; their lengths are in pixels.")
    if answered := sum(tally.verdicts.values()):
        share = tally.verdicts["yes"] / answered
        found.append(f"Of {answered} answers that begin with yes or no, {share:.0%} say yes.")
    if limits := sum(count for (_, facet), count in tally.facets.items() if facet == "limits"):
        found.append(f"{limits} rows (facet `limits`) ask what no micrograph tells; they need no picture on purpose.")
    return found


def grey_accuracy(pictures: Iterable[tuple[str, str, Sequence[float]]]) -> tuple[float, float] | None:
    """How often the nearest class mean of exposure statistics is right on held-out pictures, and the commonest class.

    Statistics are scaled by their spread within the training split; None without two classes in both parts.
    """
    known = list(pictures)
    train = [(label, np.array(values)) for split, label, values in known if split == "train" and label != "(none)"]
    held = [(label, np.array(values)) for split, label, values in known if split != "train" and label != "(none)"]
    labels = sorted({label for label, _ in train})
    if len(labels) < 2 or len({label for label, _ in held}) < 2:
        return None
    scale = np.std([values for _, values in train], axis=0) + 1e-9
    means = np.stack([np.mean([values for name, values in train if name == label], axis=0) for label in labels])
    right = [labels[int(np.argmin((((means - values) / scale) ** 2).sum(axis=1)))] == label for label, values in held]
    commonest = Counter(label for label, _ in train).most_common(1)[0][0]
    return float(np.mean(right)), float(np.mean([label == commonest for label, _ in held]))


def _front_matter(rows: Mapping[str, Mapping[str, int]], checksums: Mapping[str, str]) -> str:
    # The cache of `load_dataset` tells folders apart by path and version only: new content needs a new version.
    content = hashlib.sha256("".join(checksums[split] for split in sorted(checksums)).encode()).hexdigest()
    head = ["---", "configs:", "- config_name: default", f"  version: 0.0.{int(content[:8], 16)}", "  data_files:"]
    for split in rows:
        head += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    head += ["task_categories:", "- image-text-to-text", "- visual-question-answering", "language:", "- en", "---"]
    return "\n".join(head)


def _splits(tally: RowCounts, checksums: Mapping[str, str]) -> str:
    tasks = sorted({task for counts in tally.rows.values() for task in counts})
    table = _table(
        ["split", *tasks], [[split, *(counts[task] for task in tasks)] for split, counts in tally.rows.items()]
    )
    return "\n".join([table, "", *(f"* sha256 of {split}: `{checksums[split]}`" for split in tally.rows)])


def _facets(tally: RowCounts, blind: Mapping[str, tuple[int, int]]) -> str:
    lines = []
    for (task, facet), count in sorted(tally.facets.items()):
        asked, right = blind.get(facet, (0, 0))
        lines.append([task, facet, count, f"{right / asked:.0%}" if asked >= BLIND_ROWS else ""])
    table = _table(["task", "facet", "rows", "blind"], lines)
    return f"{table}\n\n*Blind*: share of the training rows that the commonest answer to the same question gets right."


def _classes(tally: RowCounts) -> str:
    splits = list(tally.labels)
    labels = sorted({label for counts in tally.labels.values() for label in counts})
    return _table(
        ["pictures of", *splits], [[label, *(tally.labels[split][label] for split in splits)] for label in labels]
    )


def _example(row: Mapping[str, Any], files: Sequence[str]) -> str:
    pictures = " ".join(f"![{row['task']}]({name})" for name in files)
    said = []
    for message in row["messages"]:
        words = " ".join(part["text"] for part in message["content"] if part["text"])
        said.append(f"> **{'Question' if message['role'] == 'user' else 'Answer'}:** {_text(words)}")
    return f"{pictures}\n\n" + "\n>\n".join(said)


def _table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    rows = [[_text(str(cell)) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def _text(text: str) -> str:
    """Words from files or teachers as Markdown that says only them."""
    escaped = html.escape(text, quote=False)
    return "".join(f"\\{letter}" if letter in "|*_[]`\\" else letter for letter in escaped)
