"""Public sets of labelled pictures, in the folders they are published in, as an `index.csv` that teaching reads.

    python -m data_gen.transfer neu NEU-CLS/

Each layout says where the class of a picture stands and which pictures belong to one sample, so that no sample lies in
two splits. Downloads nothing, and knows nothing about what is in a picture.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from assistant.disk import write_file
from assistant.errors import DatasetError, MaemiError

_INDEX = "index.csv"
_PICTURES = frozenset({".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff"})
NEU = {
    "cr": "crazing", "in": "inclusion", "pa": "patches", "ps": "pitted_surface", "rs": "rolled-in_scale",
    "sc": "scratches",
}  # fmt: skip
KTH = (
    "aluminium_foil", "brown_bread", "corduroy", "cork", "cotton", "cracker", "lettuce_leaf", "linen", "orange_peel",
    "sandpaper", "sponge", "styrofoam", "white_bread", "wood", "wool",
)  # fmt: skip
NFFA = {
    "biological": "biological",
    "fibres": "fibres",
    "fibers": "fibres",
    "films_coated_surface": "films_coated_surface",
    "mems_devices_and_electrodes": "mems_devices_electrodes",
    "nanowires": "nanowires",
    "particles": "particles",
    "patterned_surface": "patterned_surface",
    "porous_sponge": "porous_sponge",
    "powder": "powder",
    "tips": "tips",
}
RATINGS = ("5", "6", "7", "8", "9")
Named = tuple[str, str]
"""Class and group of a picture."""


def write_index(layout: str, folder: Path) -> dict[str, int]:
    """Write `index.csv` into a folder of that layout; how many pictures of each class it lists.

    Pictures that are not of the layout are left out. Raises DatasetError `unknown_layout`, or `bad_layout` where there
    are fewer than two classes.
    """
    if layout not in LAYOUTS:
        raise DatasetError("unknown_layout", f"{layout} is no layout. Name one of {', '.join(LAYOUTS)}.")
    rows: list[dict[str, str]] = []
    counts: dict[str, int] = {}
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES):
        name = PurePosixPath(file.relative_to(folder))
        if (named := LAYOUTS[layout](name)) is not None:
            rows.append({"path": str(name), "label": named[0], "group": named[1], "source": f"{layout}/{name.name}"})
            counts[named[0]] = counts.get(named[0], 0) + 1
    if len(counts) < 2:
        raise DatasetError("bad_layout", f"{folder} does not look like {layout}: {LAYOUTS[layout].__doc__}")
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, ("path", "label", "group", "source"))
    table.writeheader()
    table.writerows(rows)
    write_file(folder / _INDEX, text.getvalue())
    return dict(sorted(counts.items()))


def _neu(name: PurePosixPath) -> Named | None:
    """Files like Cr_1.bmp (NEU-CLS) or crazing_1.jpg (NEU-DET), in any folder; every picture is a sample of its own."""
    word, _, number = name.stem.rpartition("_")
    label = NEU.get(word.lower()) or (word.lower() if word.lower() in NEU.values() else None)
    return (label, f"{label}-{number}") if label and number.isdigit() else None


def _kth_tips(name: PurePosixPath) -> Named | None:
    """A folder per material; in KTH-TIPS2 folders sample_a to sample_d within, which are the samples.

    KTH-TIPS has one sample of each material, so its scales stand for samples: nine pictures of one distance.
    """
    label = next((part.lower() for part in name.parts if part.lower() in KTH), None)
    sample = next((part for part in name.parts if re.fullmatch(r"sample_[a-d]", part.lower())), None)
    scale = re.search(r"scale_(\d+)", name.stem)
    if label is None or not (sample or scale):
        return None
    return label, f"{label}-{sample.lower() if sample else f'scale_{scale[1]}' if scale else ''}"


def _cmi(name: PurePosixPath) -> Named | None:
    """A folder per expert rating, 5 to 9 (or named like rating_5); every panel is a sample of its own."""
    folder = re.fullmatch(r"(?:rating|class|label)?[ _-]?([5-9])", name.parent.name.lower())
    return (f"rating_{folder[1]}", str(name)) if folder and folder[1] in RATINGS else None


def _nffa(name: PurePosixPath) -> Named | None:
    """A folder per class, such as Porous_Sponge; pictures that share the code before the last _ are one sample."""
    label = next((NFFA[part.lower()] for part in name.parts[:-1] if part.lower() in NFFA), None)
    return (label, f"{label}-{name.stem.rpartition('_')[0] or name.stem}") if label else None


LAYOUTS: Mapping[str, Callable[[PurePosixPath], Named | None]] = {
    "neu": _neu,
    "kth-tips": _kth_tips,
    "cmi": _cmi,
    "nffa": _nffa,
}


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m data_gen.transfer", description=__doc__)
    parser.add_argument("layout", choices=LAYOUTS)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    try:
        counts = write_index(given.layout, given.folder)
    except MaemiError as error:
        sys.exit(f"error: {error}")
    listed = ", ".join(f"{label} {count}" for label, count in counts.items())
    sys.stdout.write(f"{given.folder / _INDEX}: {sum(counts.values())} pictures: {listed}\n")


if __name__ == "__main__":
    main()
