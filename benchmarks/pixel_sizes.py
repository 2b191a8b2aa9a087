"""The pixel size of every micrograph under a folder: from its metadata and, apart from them, from its scale bar.

    python benchmarks/pixel_sizes.py FOLDER > sizes.md

One row per kind of file: files whose folder, size, metadata and bar are alike share one. The bar is read from the
pixels alone, as if the file had neither tags nor side-car; needs the extra `ocr`.
"""

import io
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from assistant.errors import MicrographError
from assistant.micrograph import Micrograph, find_micrographs, read_micrograph


@dataclass(frozen=True)
class Row:
    """What two files must have in common to share a row."""

    folder: str
    size: str
    depth: str
    vendor: str
    banner: str
    metadata: str
    bar: str
    apart: str


def main(root: Path) -> None:
    rows: Counter[Row] = Counter()
    for path in find_micrographs(root):
        try:
            rows[row_of(path, root)] += 1
        except MicrographError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
    print("| files | folder | size | depth | vendor | info bar | metadata [nm] | scale bar [nm] | apart |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row, count in rows.items():
        cells = (count, row.folder, row.size, row.depth, row.vendor, row.banner, row.metadata, row.bar, row.apart)
        print("| " + " | ".join(map(str, cells)) + " |")
    print(
        f"\n{sum(rows.values())} files; {sum(n for r, n in rows.items() if r.apart.startswith('!'))} apart by over 2 %."
    )


def row_of(path: Path, root: Path) -> Row:
    m = read_micrograph(path, read_bar=False)
    stated, bar = m.calibration, bar_alone(m)
    apart = None if stated is None or bar is None else bar / stated.nm_per_pixel - 1
    return Row(
        folder=str(path.parent.relative_to(root)),
        size=f"{m.pixels.shape[1]} x {m.pixels.shape[0]}",
        depth=str(m.pixels.dtype),
        vendor=m.instrument.vendor or "-",
        banner=f"{m.banner[1] - m.banner[0]} rows" if m.banner else "-",
        metadata=f"{stated.nm_per_pixel:.5g} ({stated.source})" if stated else "-",
        bar=f"{bar:.4g}" if bar else "-",
        apart="-" if apart is None else f"{'!' if abs(apart) > 0.02 else ''}{100 * apart:+.1f} %",
    )


def bar_alone(m: Micrograph) -> float | None:
    """The pixel size [nm] that the picture's own scale bar gives."""
    if m.banner is None or m.pixels.dtype.itemsize > 2:
        return None
    buffer = io.BytesIO()
    Image.fromarray(m.pixels).save(buffer, "PNG")
    found = read_micrograph(buffer.getvalue()).calibration
    return None if found is None else found.nm_per_pixel


if __name__ == "__main__":
    main(Path(sys.argv[1]))
