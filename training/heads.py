"""Train the heads that travel with MAEMI: drawn pictures with exact truth, real ones, and pictures of something else.

    maemi synth --out drawn --per-class 60 --seed 72
    python -m training.heads --drawn drawn --real ../shared/data/open_sem ../shared/data/more_sem \\
        --cache cache --into assistant/weights

Only training groups of real pictures are read. Each picture counts as it is and in a few further recordings of the same
sample: turned, tilted, closer, noisier, charged, compressed. Knows nothing about how a verdict is worded.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assistant.config import TOWER_SIDE
from assistant.disk import MANIFEST, fingerprint, verify_directory, write_directory
from assistant.heads import Array, Heads, LabelledFeatures, fit_heads, write_heads

_HEADS = ("class", "shape", "surface", "arrangement")
COPIES = 3
"""Further recordings of each picture."""
_MOST = 30
"""Real pictures of a label, and a little more."""
_LEAST = 8
"""Pictures that a user's class needs to teach a head."""
_UNTAUGHT = 0.2
"""Share of a user's pictures that is taken to be of none of the classes that the user taught."""
FOREIGN_EACH, FOREIGN_BESIDE = 40, 10
"""Pictures of each kind that are no micrographs: for the bundled heads, and beside a user's own."""
CLASS_OF: Mapping[str, str] = {
    "ncm333_pristine": "battery cathode",
    "ncm333_formation": "battery cathode",
    "ncm333_cycled": "battery cathode",
    "ncm523_pristine": "battery cathode",
    "superalloy": "superalloy",
    "ebc_coating": "coating in cross-section",
    "melt_pool": "melt pools",
    "porous_shale": "porous shale",
    "patterned_silicon": "patterned surface",
    "nanowire": "nanowires",
    "powder": "powder",
    "nanocomposite": "nanocomposite",
    "plant_section": "biological sample",
    "cellulose_fibre": "fibres",
    "electrospun_fibre": "fibres",
    "biological": "biological sample",
    "films_coated_surface": "film or coated surface",
    "mems_devices_electrodes": "MEMS device",
}
"""What a picture's label is called: the family where several sources share one, in words that a sentence takes."""
SEEN_IN: Mapping[str, Mapping[str, str]] = {
    "ncm333_pristine": {"shape": "spherical", "surface": "rough", "arrangement": "random"},
    "ncm333_formation": {"shape": "spherical", "surface": "rough", "arrangement": "random"},
    "ncm333_cycled": {"shape": "spherical", "surface": "rough", "arrangement": "random"},
    "ncm523_pristine": {"shape": "spherical", "surface": "rough", "arrangement": "random"},
    "ebc_coating": {"arrangement": "layered"},
    "melt_pool": {"arrangement": "layered"},
    "patterned_silicon": {"shape": "irregular", "surface": "smooth"},
    "nanowire": {"shape": "straight", "arrangement": "random", "surface": "smooth"},
    "powder": {"shape": "spherical", "arrangement": "random"},
    "plant_section": {"arrangement": "network"},
    "cellulose_fibre": {"shape": "curved", "arrangement": "network", "surface": "smooth"},
    "electrospun_fibre": {"arrangement": "random", "surface": "smooth"},
    "superalloy": {"shape": "irregular"},
}
"""Words that hold for every picture of a label, as a person judged them; where they differ nothing is said."""


@dataclass(frozen=True)
class TaughtPicture:
    """One picture as the tower sees it, [S, S] uint8, with what is known of it."""

    pixels: Array
    name: str
    group: str
    source: str
    words: Mapping[str, str]
    foreign: bool = False


def own_heads(pictures: Sequence[tuple[bytes, str, str]], *, seed: int) -> Heads | None:
    """Heads for a user's own classes from pictures (PNG, label, group), minutes at most.

    None where fewer than two classes have enough pictures, or no tower is installed.
    """
    from assistant.micrograph import read_micrograph, to_model_input
    from assistant.towers import load_tower

    counts = Counter(label for _, label, _ in pictures)
    taught = [(png, label, group) for png, label, group in pictures if counts[label] >= _LEAST]
    if len({label for _, label, _ in taught}) < 2 or load_tower() is None:
        return None
    specimens = [
        TaughtPicture(
            np.round(to_model_input(read_micrograph(png), TOWER_SIDE)[0] * 255).astype(np.uint8),
            f"{number}",
            group,
            "own",
            {"class": label.replace("_", " ")},
        )
        for number, (png, label, group) in enumerate(taught)
    ]
    data = labelled([*specimens, *foreign(seed, each=FOREIGN_BESIDE)], seed=seed, copies=1)
    return fit_heads(replace(data, words={"class": data.words["class"]}), origin="run", untaught=_UNTAUGHT)


def drawn(folder: Path, cache: Path) -> list[TaughtPicture]:
    """The pictures of `maemi synth`. Raises MicrographError."""
    rows = [json.loads(line) for line in (folder / "truth.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        TaughtPicture(
            _model_input(folder / row["path"], cache),
            row["path"],
            row["group"],
            "",
            {"class": CLASS_OF.get(row["label"], row["label"].replace("_", " "))}
            | {n: row["truth"][n] for n in _HEADS[1:] if n in row["truth"]},
        )
        for row in rows
    ]


def real(folder: Path, cache: Path, *, splits: Sequence[str] = ("train",)) -> list[TaughtPicture]:
    """Pictures of a folder with an index.csv. Raises MicrographError."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as table:
        index = [row for row in csv.DictReader(table) if row["split"] in splits and row["label"] in CLASS_OF]
    rows = []
    for label in dict.fromkeys(row["label"] for row in index):
        own = [row for row in index if row["label"] == label]
        rows += own[:: max(1, len(own) // _MOST)]  # so that no run of a hundred tiles outweighs the rest
    return [
        TaughtPicture(
            _model_input(folder / row["path"], cache),
            row["path"],
            row["group"],
            row["source"],
            {"class": CLASS_OF[row["label"]], **SEEN_IN.get(row["label"], {})},
        )
        for row in rows
    ]


def foreign(seed: int, *, each: int = FOREIGN_EACH) -> list[TaughtPicture]:
    """Pages of text, charts, noise, shapes, gradients and boards: what people show by mistake, and no micrograph."""
    specimens = []
    for kind, draw in STRANGE.items():
        rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
        for number in range(each):
            pixels = _grey(draw(rng))
            specimens.append(TaughtPicture(pixels, f"{kind} {number}", f"{kind} {number}", kind, {}, foreign=True))
    return specimens


def labelled(specimens: Sequence[TaughtPicture], *, seed: int, copies: int = COPIES) -> LabelledFeatures:
    """Features of every picture and of `copies` further recordings of each that is a micrograph."""
    from assistant.towers import see

    pictures, of = [], []
    for specimen in specimens:
        rng = np.random.default_rng([seed, zlib.crc32(specimen.name.encode())])
        plain = specimen.pixels.astype(np.float32) / 255
        extra = [] if specimen.foreign else [recorded_again(plain, rng) for _ in range(copies)]
        pictures += [plain, *extra]
        of += [specimen] * (1 + len(extra))
    words = {name: tuple(s.words.get(name) for s in of) for name in _HEADS}
    groups, sources = tuple(s.group for s in of), tuple(s.source for s in of)
    return LabelledFeatures(see(pictures), groups, sources, words, tuple(s.foreign for s in of))


def recorded_again(pixels: Array, rng: np.random.Generator) -> Array:
    """[S, S] in 0..1 -> another recording of the same sample: closer, tilted, turned, in other light and noise."""
    from PIL import Image
    from scipy import ndimage

    side = len(pixels)
    width = side * rng.uniform(0.55, 1)
    height = width * rng.uniform(0.7, 1)
    left, top = rng.uniform(0, side - width), rng.uniform(0, side - height)
    closer = Image.fromarray(pixels).resize(
        (side, side), Image.Resampling.BILINEAR, box=(left, top, left + width, top + height)
    )
    x = np.rot90(np.asarray(closer), int(rng.integers(4)))
    if rng.integers(2):
        x = x[:, ::-1]
    x = np.clip(x, 0, 1) ** np.exp(rng.normal(0, 0.35))
    if rng.random() < 0.4:
        x = ndimage.gaussian_filter(x, rng.uniform(0.3, 1.6))
    if rng.random() < 0.4:
        down, right = rng.normal(0, 0.25, 2)
        rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        x = x + down * rows + right * columns
    if rng.random() < 0.25:  # charging: streaks along the scan
        streaks = ndimage.gaussian_filter1d(rng.normal(0, 1, side), rng.uniform(1, 6))
        x = x + (streaks / streaks.std() * rng.uniform(0.02, 0.1))[:, None]
    if rng.random() < 0.6:
        x = x + rng.normal(0, rng.uniform(0.01, 0.12), x.shape)
    grey = _grey(x)
    if rng.random() < 0.4:
        stored = io.BytesIO()
        Image.fromarray(grey).save(stored, "JPEG", quality=int(rng.integers(30, 90)))
        grey = np.asarray(Image.open(stored))
    return grey.astype(np.float32) / 255


def _model_input(path: Path, cache: Path) -> Array:
    """The picture as the tower sees it, read once per content of the file."""
    from assistant.micrograph import read_micrograph, to_model_input

    kept = cache / f"{fingerprint(path)}-{TOWER_SIDE}.npy"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(kept, np.round(to_model_input(read_micrograph(path), TOWER_SIDE)[0] * 255).astype(np.uint8))
    pixels: Array = np.load(kept)
    return pixels


def _grey(x: Array) -> Array:
    """Any picture as uint8, windowed as micrographs are."""
    low, high = np.percentile(x, [0.1, 99.9])
    grey: Array = np.round(np.clip((x - low) / (high - low + 1e-6), 0, 1) * 255).astype(np.uint8)
    return grey


def _page(rng: np.random.Generator) -> Array:
    from PIL import Image, ImageDraw, ImageFont

    page, size = Image.new("L", (TOWER_SIDE, TOWER_SIDE), 255), int(rng.integers(8, 22))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for top in range(int(rng.integers(0, 12)), TOWER_SIDE, int(size * 1.35)):
        words = ["".join(chr(97 + letter) for letter in rng.integers(0, 26, rng.integers(2, 10))) for _ in range(20)]
        if rng.random() < 0.9:
            pen.text((int(rng.integers(2, 12)), top), " ".join(words), fill=0, font=font)
    return np.asarray(page) if rng.random() < 0.7 else 255 - np.asarray(page)


def _chart(rng: np.random.Generator) -> Array:
    from PIL import Image, ImageDraw, ImageFont

    side = TOWER_SIDE
    sheet, font = Image.new("L", (side, side), 255), ImageFont.load_default(10)
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((25, 12, side - 12, side - 25), outline=0)
    for tick in range(5):
        pen.text((4, 20 + tick * 38), str(rng.integers(100)), fill=0, font=font)
        pen.text((30 + tick * 38, side - 20), str(rng.integers(100)), fill=0, font=font)
    for _ in range(rng.integers(1, 5)):
        shade = int(rng.integers(0, 200))
        if rng.random() < 0.5:
            across = np.linspace(28, side - 14, rng.integers(8, 60))
            up = np.clip(np.cumsum(rng.normal(0, 12, len(across))) + side / 2, 14, side - 27)
            pen.line(list(zip(across.tolist(), up.tolist(), strict=True)), fill=shade, width=int(rng.integers(1, 4)))
        else:
            bars = int(rng.integers(4, 10))
            width = (side - 40) / bars
            for bar in range(bars):
                left = 28 + bar * width
                pen.rectangle((left, rng.uniform(20, side - 40), left + width * 0.7, side - 26), fill=shade)
    return np.asarray(sheet)


def _noise(rng: np.random.Generator) -> Array:
    from scipy import ndimage

    side, kind = TOWER_SIDE, rng.integers(3)
    x: Array = rng.normal(0, 1, (side, side))
    if kind == 1:
        x = ndimage.gaussian_filter(x, rng.uniform(1, 4))
    if kind == 2:
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
        frequency[0, 0] = 1
        x = np.fft.ifft2(np.fft.fft2(x) / frequency ** rng.uniform(0.5, 2)).real
    return x


def _shapes(rng: np.random.Generator) -> Array:
    from PIL import Image, ImageDraw

    sheet = Image.new("L", (TOWER_SIDE, TOWER_SIDE), int(rng.integers(0, 256)))
    pen = ImageDraw.Draw(sheet)
    for _ in range(rng.integers(3, 25)):
        corners = rng.uniform(0, TOWER_SIDE, (int(rng.integers(3, 7)), 2))
        shade = int(rng.integers(0, 256))
        if rng.random() < 0.5:
            pen.polygon([(float(x), float(y)) for x, y in corners], fill=shade)
        else:
            pen.ellipse((*corners[:2].min(axis=0).tolist(), *corners[:2].max(axis=0).tolist()), fill=shade)
    return np.asarray(sheet)


def _gradient(rng: np.random.Generator) -> Array:
    side, angle = TOWER_SIDE, rng.uniform(0, 2 * np.pi)
    down, right = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    x: Array = np.cos(angle) * right + np.sin(angle) * down
    if rng.random() < 0.5:
        x = np.hypot(right - rng.random(), down - rng.random())
    return x + rng.normal(0, 0.01, x.shape) * rng.integers(2)


def _board(rng: np.random.Generator) -> Array:
    from scipy import ndimage

    field = np.arange(TOWER_SIDE) // (TOWER_SIDE // int(rng.integers(2, 12)))
    board = (np.add.outer(field, field) % 2).astype(float)
    turned: Array = ndimage.rotate(board, rng.uniform(0, 45), reshape=False, mode="reflect", order=1)
    return turned


STRANGE: Mapping[str, Callable[[np.random.Generator], Array]] = {
    "page": _page,
    "chart": _chart,
    "noise": _noise,
    "shapes": _shapes,
    "gradient": _gradient,
    "board": _board,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m training.heads", description=__doc__)
    parser.add_argument("--drawn", type=Path, nargs="+", required=True)
    parser.add_argument("--real", type=Path, nargs="*", default=[])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True, help="model directory that gets the heads")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    specimens = [s for folder in asked.drawn for s in drawn(folder, asked.cache)]
    specimens += [s for folder in asked.real for s in real(folder, asked.cache)]
    data = labelled([*specimens, *foreign(asked.seed)], seed=asked.seed)
    put_heads(fit_heads(data, origin="bundled"), asked.into, about={"seed": asked.seed, "pictures": len(specimens)})


def put_heads(heads: Heads, model: Path, *, about: Mapping[str, Any]) -> None:
    """Give a model directory these heads instead of those it has; it stays whole. Raises RunError."""
    verify_directory(model)

    def write(staging: Path) -> None:
        shutil.copytree(model, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, "heads"))
        (staging / "heads").mkdir()
        write_heads(heads, staging / "heads", about=about)

    write_directory(model, write)


if __name__ == "__main__":
    main()
