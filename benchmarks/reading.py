"""What the reader says of every micrograph under a folder, file by file, from the pixels and metadata that are there.

    python benchmarks/reading.py FOLDER > reading.md

"Display" is the pixel size times the width in pixels times the magnification that was read: a maker's software keeps it
at one width, 120 mm (JEOL) or 127 mm (Hitachi), so a scale or a magnification that was read wrongly stands out.
Knows no truth: masks and outlines are left out.
"""

import sys
from pathlib import Path

from assistant.errors import MicrographError
from assistant.micrograph import Micrograph, find_micrographs, read_micrograph

HEADS = (
    "file",
    "info bar",
    "scale [nm]",
    "from",
    "kV",
    "WD [mm]",
    "magnification",
    "display [mm]",
    "detector",
    "sample",
    "told",
)


def main(root: Path) -> None:
    print("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
    for path in find_micrographs(root):
        if "MASK" in path.name:
            continue
        try:
            cells = row_of(read_micrograph(path))
        except MicrographError as error:
            cells = [error.code]
        print(f"| {path.relative_to(root)} | " + " | ".join(cells) + " |", flush=True)


def row_of(m: Micrograph) -> list[str]:
    scale, i = m.calibration, m.instrument
    display = scale and i.magnification and scale.nm_per_pixel * m.pixels.shape[1] * i.magnification / 1e6
    known = (
        m.banner and f"{m.banner[0]} to {m.banner[1]}", scale and f"{scale.nm_per_pixel:.5g}",
        scale and f"{scale.source}, {scale.confidence:g}", i.hv_kv and f"{i.hv_kv:g}", i.wd_mm and f"{i.wd_mm:.4g}",
        i.magnification and f"{i.magnification:g}", display and f"{display:.1f}", i.detector,
        f"{100 * m.sample_fraction:.1f} %", " ".join(m.warnings),
    )  # fmt: skip
    return [str(cell or "-") for cell in known]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
