"""How far the kind of a picture can be trusted, on pictures that the measurement was not tuned on.

    python benchmarks/kinds.py --real DIR [--rows FILE] [--fit] [--per-class 40] [--out benchmarks/kinds.json]

DIR holds `open_sem` and `more_sem`, each with an index of labels and splits by acquisition group. Beside them stand
drawn micrographs of ten classes, plain shapes and flat sections with curtaining. What a person would call each is in
`KINDS_OF`; several kinds are right where people would differ. `--fit` writes `assistant/measurements/kinds.json` from
the train part (drawn: other seeds), the report is of both parts. `--rows` keeps the pictures' evidence.
"""

from __future__ import annotations

import argparse
import csv
import json
import pickle
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from assistant.measure import SURE_OF_KIND
from assistant.measurements import kinds
from assistant.measurements.findings import TESTS, find
from assistant.measurements.kinds import Signs, sign_vector
from assistant.measurements.picture import Picture, grey_window, picture_of
from assistant.micrograph import read_micrograph
from data_gen.drawing.synth import CLASSES, render_at_doses

KINDS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ncm333_pristine", "ncm333_formation", "ncm333_cycled", "ncm523_pristine"), ("particles",)),
    "powder": ("particles",),
    "nanocomposite": ("texture", "particles"),
    "superalloy": ("texture", "particles"),
    "ebc_coating": ("texture", "pores"),
    "melt_pool": ("texture",),
    "porous_shale": ("texture", "pores", "uniform"),
    "patterned_silicon": ("texture", "particles"),
    "plant_section": ("pores",),
    **dict.fromkeys(("nanowire", "electrospun_fibre", "cellulose_fibre", "drawn fibres"), ("fibres",)),
    "drawn nanowires": ("fibres",),
    "drawn particles": ("particles",),
    "drawn particles, rod-like": ("particles", "fibres"),
    "drawn powder": ("particles",),
    "drawn porous_sponge": ("pores",),
    "drawn patterned_surface, lines": ("lines",),
    "drawn patterned_surface, pillars": ("particles",),
    "drawn patterned_surface, holes": ("pores",),
    "drawn patterned_surface, grid": ("lines", "pores", "texture"),
    "drawn films_coated_surface": ("texture", "particles", "pores"),
    "drawn biological": ("particles", "pores", "texture"),
    "drawn mems_devices_electrodes": ("texture", "lines", "particles"),
    "drawn tips": ("texture", "particles", "lines"),
    **{f"plain {kind}": (kind,) for kind in ("fibres", "particles", "pores", "lines", "texture", "curtaining")},
}
TEST_FIBRES = ("20%_gelatin_fibers.tif", "K2.jpg")
"""Of the few real mats, which the index does not split, those that are held apart."""
DOSES = (400.0, 80.0, 20.0)
FIRST_SEED = {"train": (90 << 20) + 16000, "test": (91 << 20) + 16000}
PLAIN_PICTURES = {"train": 360, "test": 180}
REAL_FIBRES, FEW = ("nanowire", "electrospun_fibre", "cellulose_fibre"), 5.0
LARGE = 0.3
"""Share of the plain pictures that the measurement looks at reduced."""
MOST_PER_LABEL = 40.0
"""Pictures of a label count as so many at most."""
PENALTY = 1.0
ROUNDS = 6
BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.01)


@dataclass
class Row:
    """One picture: what it is, what speaks for each kind, and what it was called."""

    label: str
    part: str
    pixels: np.ndarray
    window: tuple[float, float]
    evidence: dict[str, float]
    kind: str = ""
    test: str = ""
    confidence: float = 0.0
    likelihood: float = 0.0

    @property
    def picture(self) -> Picture:
        picture = picture_of(self.pixels, *self.window)
        assert picture is not None
        return picture

    @property
    def right(self) -> bool:
        return self.kind in KINDS_OF[self.label]


# ---------------------------------------------------------------------------------- pictures


Shown = tuple[str, str, np.ndarray, tuple[float, float]]
"""Label, part, pixels and window of a picture."""


def pictures(real: Path, per_class: int) -> Iterator[Shown]:
    yield from _real(real)
    for part, first in FIRST_SEED.items():
        for label in CLASSES:
            for k in range(per_class if part == "train" else per_class // 2):
                image = render_at_doses(label, [DOSES[k % 3]], seed=first + 4 * k)[0]
                name = _drawn_label(label, str(image.truth["shape"]))
                yield name, part, image.pixels, grey_window(image.pixels)
        for k in range(PLAIN_PICTURES[part]):
            kind, pixels = plain(np.random.default_rng([first, k]))
            yield f"plain {kind}", part, pixels, grey_window(pixels)


def _real(root: Path) -> Iterator[Shown]:
    for folder in ("open_sem", "more_sem"):
        for row in csv.DictReader((root / folder / "index.csv").open()):
            m = read_micrograph(root / folder / row["path"], read_bar=False)
            held = Path(row["path"]).name in TEST_FIBRES or row["split"] != "train"
            yield row["label"], "test" if held else "train", m.content, (m.window().low, m.window().high)


def _drawn_label(label: str, shape: str) -> str:
    detailed = f"drawn {label}, {shape}"
    return detailed if detailed in KINDS_OF else f"drawn {label}"


def plain(rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """A picture of plain shapes with blur and noise, of any size: its kind and its pixels."""
    size = (int(rng.integers(200, 481)), int(rng.integers(220, 641)))
    size = (2 * size[0], 2 * size[1]) if rng.random() < LARGE else size
    kind = str(rng.choice(["fibres", "particles", "pores", "lines", "texture", "curtaining"]))
    ideal = {
        "fibres": _mat if rng.random() < 0.4 else _rods,
        "particles": _discs,
        "pores": _holes,
        "lines": _grating,
        "texture": _field,
        "curtaining": _curtains,
    }[kind](rng, size)
    noise = rng.uniform(0.005, 0.03) if kind in ("texture", "curtaining") else rng.uniform(0.01, 0.12)
    image = ndimage.gaussian_filter(ideal, 0.7) + noise * rng.standard_normal(size)
    return kind, np.clip(20 + 200 * image, 0, 255).astype(np.uint8)


def _rods(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Parallel, crossed or strewn."""
    lead, count, width = rng.uniform(0, 180), int(rng.integers(6, 24)), rng.uniform(4, 12)
    turns = (rng.normal(0, 3, count), 90.0 * rng.integers(0, 2, count), rng.uniform(0, 180, count))
    out = np.zeros(size)
    for angle in lead + turns[int(rng.integers(3))]:
        along, across = _turned(size, angle, (rng.uniform(0, size[1]), rng.uniform(0, size[0])))
        out[(np.abs(along) < rng.uniform(0.25, 0.7) * min(size)) & (np.abs(across) < width / 2)] = 1
    return out


def _mat(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Fibres on fibres, the upper ones brighter, sparse or many layers deep."""
    width, out = float(np.exp(rng.uniform(np.log(4), np.log(40)))), np.zeros(size)
    count = int(rng.uniform(0.8, 4) * min(size) / width)
    for k in range(count):
        centre = (rng.uniform(0, size[1]), rng.uniform(0, size[0]))
        _, across = _turned(size, rng.uniform(0, 180), centre)
        out[np.abs(across) < width * rng.uniform(0.8, 1.2) / 2] = 0.3 + 0.6 * k / count
    return out


def _turned(size: tuple[int, int], angle: float, centre: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each pixel from a centre along a direction [deg, counter-clockwise] and across it."""
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return (x - centre[0]) * c - (y - centre[1]) * s, (x - centre[0]) * s + (y - centre[1]) * c


def _discs(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """On a lattice, or strewn and apart."""
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    if rng.random() < 0.5:
        pitch = rng.uniform(20, 60)
        dx, dy = (x % pitch) - pitch / 2, (y % pitch) - pitch / 2
        return (np.hypot(dx, dy) < pitch * rng.uniform(0.2, 0.42)).astype(float)
    out, free = np.zeros(size), np.ones(size, np.bool_)
    for _ in range(int(rng.integers(8, 50))):
        cx, cy, radius = rng.uniform(0, size[1]), rng.uniform(0, size[0]), rng.uniform(2, 14)
        away = np.hypot(x - cx, y - cy)
        if free[away < radius + 4].all():
            out[away < radius] = 1
            free[away < radius + 4] = False
    return out


def _holes(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    return 1 - _discs(rng, size)


def _grating(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    pitch, angle = rng.uniform(10, 40), rng.uniform(0, 180)
    _, across = _turned(size, angle, (0.0, 0.0))
    return ((across % pitch) < pitch * rng.uniform(0.3, 0.6)).astype(float)


def _field(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A random field, in which dark and bright are alike."""
    field = ndimage.gaussian_filter(rng.standard_normal(size), rng.uniform(1.5, 12))
    return 0.5 + 0.15 * field / field.std()


def _curtains(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Stripes of an ion beam over a flat section, over soft contrast or over two phases."""
    angle = float(rng.choice([90.0, 90.0, 90.0, rng.uniform(0, 180)])) + rng.normal(0, 2)
    along, across = _turned(size, angle, (0.0, 0.0))
    stripes = ndimage.gaussian_filter1d(rng.standard_normal((2, 4000)), rng.uniform(1, 5), axis=1)
    stripes /= stripes.std(axis=1, keepdims=True)
    place, fade = np.rint(across).astype(int) + 2000, rng.uniform(0, 0.5) * (along - along.min()) / np.ptp(along)
    ground = np.zeros(size) if rng.random() < 0.4 else _field(rng, size) - 0.5
    ground = np.sign(ground) * 0.15 if rng.random() < 0.3 else ground
    return 0.5 + rng.uniform(0.2, 0.6) * ground + 0.08 * (stripes[0][place] * (1 - fade) + stripes[1][place] * fade)


# ---------------------------------------------------------------------------------- fitting


def fit(train: list[Row]) -> None:
    """Write the likelihoods of the kinds, then how far each test is to be trusted beside them."""
    from sklearn.linear_model import LogisticRegression

    weights, bias, names = _likelihoods(train)
    stored: dict[str, Any] = {
        "bias": dict(zip(names, bias, strict=True)),
        "weights": {name: dict(zip(names, weights[:, k], strict=True)) for k, name in enumerate(train[0].evidence)},
        "tests": {test.name: 0.0 for test in TESTS}, "slope": 1.0,
    }  # fmt: skip
    _write(stored)
    for row in train:
        call(row)
    tests = sorted({row.test for row in train})
    odds = np.array([np.log(row.likelihood / (1 - row.likelihood)) for row in train])
    told = np.column_stack([odds, [[row.test == test for test in tests] for row in train]])
    model = LogisticRegression(C=PENALTY, max_iter=5000, fit_intercept=False)
    model.fit(told, [row.right for row in train], _balance(train))
    stored["slope"] = model.coef_[0, 0]
    stored["tests"] |= dict(zip(tests, model.coef_[0, 1:], strict=True))
    _write(stored)


def _likelihoods(train: list[Row]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Multinomial logistic model; where several kinds are right, each round takes the likeliest."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    right = [[kind for kind in KINDS_OF[row.label] if kind != "uniform"] for row in train]
    numbers = np.array([list(row.evidence.values()) for row in train])
    scaler = StandardScaler().fit(numbers)
    told, chosen = scaler.transform(numbers), [some[0] for some in right]
    for _ in range(ROUNDS):
        model = LogisticRegression(C=PENALTY, max_iter=5000).fit(told, chosen, _balance(train))
        order, likely = list(model.classes_), model.predict_proba(told)
        chosen = [max(some, key=lambda kind: one[order.index(kind)]) for some, one in zip(right, likely, strict=True)]
    weights = model.coef_ / scaler.scale_
    return weights, model.intercept_ - weights @ scaler.mean_, order


def _balance(rows: list[Row]) -> np.ndarray:
    """Labels of many pictures do not outweigh the others; the few real fibres count more."""
    many = Counter(row.label for row in rows)
    return np.array([min(FEW, MOST_PER_LABEL / many[row.label]) if row.label in REAL_FIBRES
                     else min(1.0, MOST_PER_LABEL / many[row.label]) for row in rows])  # fmt: skip


def _write(stored: dict[str, Any]) -> None:
    path = Path(kinds.__file__).with_suffix(".json")
    path.write_text(json.dumps(stored, indent=1, default=lambda v: round(float(v), 4)) + "\n")
    kinds._model.cache_clear()


def call(row: Row) -> None:
    """What the measurement calls a picture; the second time only its confidence has changed."""
    if not row.test:
        found = find(row.picture)
        row.kind, row.test, row.confidence = found.kind, found.test, found.confidence
        row.likelihood = float(np.clip(found.likelihood, 1e-4, 1 - 1e-4))
    elif row.test != "uniform":
        row.confidence = kinds.confidence(row.likelihood, row.test)


# ---------------------------------------------------------------------------------- report


def reliability(rows: list[Row]) -> list[dict[str, float]]:
    """Of the pictures whose kind is said with some confidence: how many, the mean said, the share that is right."""
    out = []
    for low, high in pairwise(BINS):
        some = [row for row in rows if low <= row.confidence < high]
        if some:
            said, right = (float(np.mean([getattr(row, name) for row in some])) for name in ("confidence", "right"))
            out.append({"from": low, "pictures": len(some), "said": round(said, 3), "right": round(right, 3)})
    return out


def table(rows: list[Row]) -> dict[str, dict[str, int]]:
    """How often pictures of a label were called what; "unknown" where the kind is not sure."""
    called: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        called[row.label][row.kind if row.confidence >= SURE_OF_KIND else f"unknown ({row.kind})"] += 1
    return {label: dict(called[label].most_common()) for label in KINDS_OF if label in called}


def main() -> None:
    """Look, fit if asked, report."""
    parser = argparse.ArgumentParser(description="How far the kind of a picture can be trusted.")
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.rows is not None and args.rows.exists():
        rows = [Row(*one) for one in pickle.loads(args.rows.read_bytes())]
    else:
        shown = (one for one in pictures(args.real, args.per_class) if picture_of(one[2], *one[3]) is not None)
        rows = [Row(*one, sign_vector(Signs(picture_of(one[2], *one[3])))) for one in shown]
        if args.rows is not None:
            kept = [(row.label, row.part, row.pixels, row.window, row.evidence) for row in rows]
            args.rows.write_bytes(pickle.dumps(kept))
    if args.fit:
        fit([row for row in rows if row.part == "train"])
    for row in rows:
        call(row)
    result = {
        part: {"reliability": reliability(some), "called": table(some)}
        for part in ("train", "test")
        if (some := [row for row in rows if row.part == part])
    }
    print(json.dumps(result, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
