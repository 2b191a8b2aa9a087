"""Procedural electron micrographs of ten classes with exact ground truth. Knows nothing about models or teachers.

`render` draws one field of view; `write_synthetic` writes a folder of vendor files with a `truth.jsonl`. Seeds 4k
to 4k + 3 of a label are four fields of view of one sample on one instrument (a group). The same arguments give the
same bytes, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from assistant.disk import disk_errors, write_file
from assistant.errors import DatasetError
from data_gen.drawing.scenes import CLASSES, UNTAUGHT, generator_of

__all__ = ["CLASSES", "STYLES", "Synthetic", "render", "render_array", "write_synthetic"]

STYLES = ("house", "site")
VIEWS_PER_GROUP = 4
SEEDS_PER_RUN = 1 << 20
_SMALLEST = 32
FEWEST_FOR_POOL = 8
"""images below which starting processes costs more than it saves"""
Truth: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Synthetic:
    """One field of view: digitised pixels without an info bar, and everything that is known about them."""

    pixels: np.ndarray
    """[H, W] uint8 or uint16, as the instrument's file format stores them"""
    truth: Truth
    """Fact names to numbers (lengths in nm) and facets to words"""
    nm_per_pixel: float
    instrument: dict[str, Any]
    label: str
    seed: int
    group: str
    format: str
    """key of the vendor file format this group is written in"""
    labels: np.ndarray | None
    """[H, W] int32 label map of the drawn objects as they are seen, or None where the class has none"""
    feature: np.ndarray
    """[H, W] bool, what coverage or porosity and polarity speak about"""


def _streams(label: str, seed: int, style: str) -> tuple[np.random.Generator, ...]:
    """Independent generators: specimen, field of view, instrument (shared by the group), and noise."""
    key = [zlib.crc32(label.encode()), STYLES.index(style)]
    group = seed // VIEWS_PER_GROUP
    return (
        np.random.default_rng([*key, group, 1]),
        np.random.default_rng([*key, seed, 2]),
        np.random.default_rng([*key, group, 3]),
        np.random.default_rng([*key, seed, 4]),
    )


def _check(label: str, size: tuple[int, int], style: str) -> None:
    if label not in CLASSES + UNTAUGHT:
        raise DatasetError("unknown_class", f"There is no class {label!r}. Choose from {', '.join(CLASSES)}.")
    if style not in STYLES:
        raise DatasetError("unknown_style", f"There is no style {style!r}. Choose from {', '.join(STYLES)}.")
    if min(size) < _SMALLEST:
        raise DatasetError(
            "too_small", f"A size of {size} is too small to draw. Use at least {_SMALLEST} x {_SMALLEST}."
        )


def render(label: str, *, seed: int, size: tuple[int, int] = (480, 640), style: str = "house") -> Synthetic:
    """Draw and image one field of view; `size` is rows, columns.

    Raises:
        DatasetError: unknown class or style, or a size too small to draw.
    """
    return render_at_doses(label, [None], seed=seed, size=size, style=style)[0]


def render_at_doses(
    label: str, doses: Sequence[float | None], *, seed: int, size: tuple[int, int] = (480, 640), style: str = "house"
) -> list[Synthetic]:
    """One scene at several levels of noise: each dose [electrons per pixel at white] replaces the instrument's own.

    Raises:
        DatasetError: unknown class or style, or a size too small to draw.
    """
    _check(label, size, style)
    from data_gen.drawing.scenes import imaging, truths
    from data_gen.drawing.vendor_files import bits_of, format_of, instrument_of

    sample, view, machine, _ = _streams(label, seed, style)
    scene = generator_of(label)(sample, view, size)
    optics = imaging.draw_optics(machine, style=style)
    group = seed // VIEWS_PER_GROUP
    kind = format_of(group + 3 * (CLASSES + UNTAUGHT).index(label), style)
    signal = imaging.emission(scene, optics)
    feature, labels = scene.feature, scene.labels
    if scene.tilt_deg and not scene.projected:
        signal, feature, labels = imaging.project(scene, signal, rows=size[0])
    signal = imaging.normalise(signal)
    truth = truths.truth_of(scene, feature, labels, polarity=imaging.polarity(signal, feature))
    instrument = instrument_of(
        kind, machine, width=size[1], nm_per_pixel=scene.nm_per_pixel, backscattered=optics.backscattered
    )

    def imaged(dose: float | None) -> Synthetic:
        set_to = optics if dose is None else replace(optics, dose=dose)
        picture = imaging.detect(signal, set_to, _streams(label, seed, style)[3])
        deep = bits_of(kind) == 16
        pixels = np.round(picture * 0.85 * 65535 + 600 if deep else picture * 255)
        return Synthetic(
            pixels.astype(np.uint16 if deep else np.uint8), truth, scene.nm_per_pixel, instrument, label, seed,
            f"{style}-{label}-{group:06d}", kind, labels, feature,
        )  # fmt: skip

    return [imaged(dose) for dose in doses]


def render_array(
    label: str, *, seed: int, size: tuple[int, int] = (480, 640), style: str = "house"
) -> tuple[np.ndarray, Truth]:  # fmt: skip
    """The pixels and truth of `render`, for callers that need no instrument."""
    image = render(label, seed=seed, size=size, style=style)
    return image.pixels, image.truth


def _write_one(task: tuple[str, str, int, tuple[int, int], str]) -> dict[str, Any]:
    """Render one image, write its file and side-car, and return its truth row."""
    from data_gen.drawing.vendor_files import write_vendor

    out, label, seed, size, style = task
    image = render(label, seed=seed, size=size, style=style)
    stem = f"{label}/{label}-{seed:08d}"
    written = write_vendor(
        Path(out) / stem, image.pixels, kind=image.format, nm_per_pixel=image.nm_per_pixel,
        instrument=image.instrument, tilt_deg=float(image.truth["tilt_deg"]),
    )  # fmt: skip
    return {
        "path": written.path.relative_to(out).as_posix(),
        "sha256": hashlib.sha256(written.path.read_bytes()).hexdigest(),
        "label": label,
        "seed": seed,
        "group": image.group,
        "nm_per_pixel": image.nm_per_pixel,
        "calibrated": written.calibrated,
        "format": image.format,
        "instrument": image.instrument,
        "banner": list(written.banner) if written.banner else None,
        "truth": image.truth,
    }


def write_synthetic(
    out: Path, *, classes: Sequence[str] = CLASSES, per_class: int, seed: int = 0, size: tuple[int, int] = (480, 640),
    style: str = "house", workers: int | None = None,
) -> Path:  # fmt: skip
    """Write `per_class` micrographs of each class under `out`; return the path of `truth.jsonl`, which is written last.

    Raises:
        DatasetError: unknown class or style, a bad size or count, or an `out` that cannot be written.
    """
    for label in classes:
        _check(label, size, style)
    if not 1 <= per_class <= SEEDS_PER_RUN or seed < 0:
        raise DatasetError(
            "bad_count", f"per_class={per_class}, seed={seed} is out of range. Use per_class >= 1, seed >= 0."
        )
    first = seed * SEEDS_PER_RUN
    tasks = [(str(out), label, first + k, size, style) for label in classes for k in range(per_class)]
    target = out / "truth.jsonl"
    with disk_errors(out, DatasetError):
        for label in classes:
            (out / label).mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        rows = _rows(tasks, workers or os.cpu_count() or 1)
        write_file(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return target


def _rows(tasks: list[tuple[str, str, int, tuple[int, int], str]], workers: int) -> list[dict[str, Any]]:
    if workers <= 1 or len(tasks) < FEWEST_FOR_POOL:
        return [_write_one(task) for task in tasks]
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=get_context("spawn"))
    try:
        return list(pool.map(_write_one, tasks, chunksize=4))
    except BrokenProcessPool as error:
        message = "A worker process ended before its work was done. Use workers=1, or guard the script's main module."
        raise DatasetError("worker_died", message) from error
    finally:
        pool.shutdown(cancel_futures=True)
