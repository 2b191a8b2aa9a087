"""What is read of real micrographs: info bar, scale, instrument; held against a person's eye where there is one.

    python -m benchmarks.bars FOLDER... [--eye benchmarks/bars_by_eye.csv] [--out benchmarks/bars.json]

The scale is read twice: as a user reads the file, and off the scale bar alone, from the pixels as if the file had
neither tags nor side-car. "Display" is pixel size x width x magnification: a maker's software keeps it at one width,
120 mm (JEOL) or 127 mm (Hitachi), so a scale or a magnification that was read wrongly stands out. In the table, files
that are alike share a row.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from assistant.errors import MicrographError
from assistant.micrograph import Micrograph, find_micrographs, read_micrograph

ALIKE = 0.02
"""How far apart two readings of a scale may be."""
BY_EYE = ("kV", "WD [mm]", "magnification", "detector", "scale [nm]")
SHARED = ("folder", "size", "dtype", "vendor", "info bar", "scale [nm]", "from", "bar alone [nm]", "apart", "kV",
          "magnification", "display [mm]", "detector")  # fmt: skip


def row_of(path: Path, root: Path) -> dict[str, Any]:
    """What is read of one file."""
    m = read_micrograph(path)
    i, scale, alone = m.instrument, m.calibration, bar_alone(m)
    apart = None if scale is None or alone is None or scale.source == "banner" else alone / scale.nm_per_pixel - 1
    display = None if scale is None or i.magnification is None else scale.nm_per_pixel * m.pixels.shape[1] / 1e6
    return {
        "file": path.relative_to(root).as_posix(),
        "folder": Path(root.name, path.parent.relative_to(root)).as_posix(),
        "size": f"{m.pixels.shape[1]} x {m.pixels.shape[0]}",
        "dtype": str(m.pixels.dtype),
        "vendor": i.vendor,
        "info bar": None if m.banner is None else f"rows {m.banner[0]} to {m.banner[1]}",
        "scale [nm]": None if scale is None else float(f"{scale.nm_per_pixel:.5g}"),
        "from": None if scale is None else f"{scale.source}, {scale.confidence:g}",
        "bar alone [nm]": None if alone is None else float(f"{alone:.4g}"),
        "apart": None if apart is None else f"{100 * apart:+.1f} %",
        "kV": i.hv_kv,
        "WD [mm]": i.wd_mm,
        "magnification": i.magnification,
        "display [mm]": None if display is None or i.magnification is None else round(display * i.magnification, 1),
        "detector": i.detector,
    }


def bar_alone(m: Micrograph) -> float | None:
    """The pixel size [nm] that the picture's own scale bar gives."""
    if m.banner is None or m.pixels.dtype.itemsize > 2:
        return None
    buffer = io.BytesIO()
    Image.fromarray(m.pixels).save(buffer, "PNG")
    found = read_micrograph(buffer.getvalue()).calibration
    return None if found is None else found.nm_per_pixel


def by_eye(rows: list[dict[str, Any]], seen: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """For every file that a person looked at: how each field was read."""
    out = {}
    for row in rows:
        path = f"{row['folder']}/{Path(row['file']).name}"
        if path in seen:
            eye = seen[path]
            eye = eye | {"scale [nm]": str(float(eye["label [nm]"]) / float(eye["bar [px]"]))}
            out[path] = {"info bar": "missing" if row["info bar"] is None else "right"}
            out[path] |= {name: verdict(name, row[name], eye[name]) for name in BY_EYE if eye[name] or row[name]}
    return out


def verdict(name: str, read: float | str | None, seen: str) -> str:
    """ "right" to the last digit that is printed (a scale: to 2 %), "wrong", "missing", or "not printed"."""
    if read is None or not seen:
        return "missing" if read is None else "not printed"
    if isinstance(read, str):
        return "right" if read == seen else "wrong"
    half_digit = 0.5 * 10.0 ** -len(seen.partition(".")[2])
    slack = ALIKE * float(seen) if name == "scale [nm]" else half_digit * (1 + 1e-9)
    return "right" if abs(read - float(seen)) <= slack else "wrong"


def alike(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without their files, with the number of files that share one."""
    many = Counter(tuple(row[name] for name in SHARED) for row in rows)
    return [{"files": count} | dict(zip(SHARED, cells, strict=True)) for cells, count in many.items()]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [["-" if cell is None else str(cell) for cell in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Read, compare, write."""
    parser = argparse.ArgumentParser(description="What is read of real micrographs.")
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--eye", type=Path, default=Path(__file__).with_name("bars_by_eye.csv"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seen = {row["path"]: row for row in csv.DictReader(args.eye.open(encoding="utf-8"))}
    rows, start = [], time.process_time()
    for root in args.folders:
        for path in find_micrographs(root):
            try:
                rows.append(row_of(path, root))
            except MicrographError as error:
                print(f"{path}: {error}", file=sys.stderr)
    apart = sum(row["apart"] is not None and abs(float(row["apart"].split()[0])) > 100 * ALIKE for row in rows)
    read = by_eye(rows, seen)
    names = ("info bar", *BY_EYE)
    result = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "cpu_s": round(time.process_time() - start, 1),
        "files": len(rows),
        "info bars": sum(row["info bar"] is not None for row in rows),
        "scales": sum(row["scale [nm]"] is not None for row in rows),
        "apart by over 2 %": apart,
        "by eye": {name: dict(Counter(of[name] for of in read.values() if name in of)) for name in names},
        "not right": {path: of for path, of in read.items() if set(of.values()) - {"right", "not printed"}},
        "rows": alike(rows),
    }
    print(table(alike(rows)))
    print(json.dumps({name: value for name, value in result.items() if name != "rows"}, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
