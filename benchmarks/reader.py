"""Speed and memory of reading: `read_micrograph` + `to_model_input` against RosettaSciIO and Pillow on the same files.

    python benchmarks/reader.py [FOLDER]

The files are drawn here (TIFF of 8 and 16 bit with vendor tags or side-cars, BMP, PNG, JPEG; 1280 x 960), or those of
FOLDER are taken. Each reader runs in a process of its own and does what a pipeline needs: decode, resize to 224 x 224.
The peers neither find the info bar nor read side-cars; RosettaSciIO is left out where it is not installed. A file a
reader cannot take is counted and left out of its speed: images per second of processor time, best of three rounds.

`maemi info` then reads 100 such files in one run, beside a program that only decodes them with tifffile and Pillow:
processor time and peak memory of the whole process, its start included.
"""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SIZE, ROUNDS, PER_KIND = 224, 3, 6
INFO_FILES = 100
KINDS = ("thermo8", "thermo16", "zeiss", "tescan16", "jeol_bmp", "jeol_tif", "sec_jpeg", "plain_png", "hitachi")


def draw(folder: Path, per_kind: int = PER_KIND) -> None:
    from data_gen.drawing.vendor_files import bits_of, instrument_of, write_vendor

    rng = np.random.default_rng(0)
    for number in range(per_kind):
        for kind in KINDS:
            grey = rng.normal(0.5, 0.12, (960, 1280)).clip(0, 1)
            pixels = (
                np.rint(grey * 65535).astype(np.uint16) if bits_of(kind) == 16 else np.rint(grey * 255).astype(np.uint8)
            )
            info = instrument_of(kind, rng, width=1280, nm_per_pixel=4.0, backscattered=False)
            write_vendor(folder / f"{kind}_{number}", pixels, kind=kind, nm_per_pixel=4.0, instrument=info)


def ours(path: Path) -> None:
    from assistant.micrograph import read_micrograph, to_model_input

    to_model_input(read_micrograph(path, read_bar=False), SIZE)


def pillow(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        grey = image.convert("F") if image.mode.startswith("I") else image.convert("L")
        np.asarray(grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32)


def rosettasciio(path: Path) -> None:
    from PIL import Image

    reader = importlib.import_module({".tif": "rsciio.tiff"}.get(path.suffix, "rsciio.image"))
    (signal,) = reader.file_reader(str(path))
    data = np.asarray(signal["data"], np.float32)
    data = data if data.ndim == 2 else data[..., 0]
    np.asarray(Image.fromarray(data).resize((SIZE, SIZE), Image.Resampling.BILINEAR))


READERS: dict[str, Callable[[Path], None]] = {"maemi": ours, "pillow": pillow, "rosettasciio": rosettasciio}


def measure(name: str, folder: Path) -> dict[str, float | int]:
    """In this process: images per second of the files that can be read, and the peak memory [MiB]."""
    read, paths, failed = READERS[name], pictures(folder), set()
    for path in paths[: len(KINDS)]:  # imports and first calls
        attempt(read, path)
    before, best = status("VmRSS"), float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        failed |= {path for path in paths if not attempt(read, path)}
        best = min(best, time.process_time() - start)
    peak = status("VmHWM")
    return {
        "files": len(paths), "failed": len(failed), "images_per_s": round((len(paths) - len(failed)) / best, 1),
        "peak_mib": round(peak / 1024, 1), "grown_mib": round((peak - before) / 1024, 1),
    }  # fmt: skip


def decode(folder: Path) -> None:
    """Every file's pixels and tags by tifffile, else Pillow."""
    import tifffile
    from PIL import Image

    for path in pictures(folder):
        if path.suffix == ".tif":
            with tifffile.TiffFile(path) as file:
                np.asarray(file.pages[0].asarray()), {tag.name: tag.value for tag in file.pages[0].tags}
        else:
            with Image.open(path) as image:
                np.asarray(image), dict(image.getexif())


def pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix not in (".txt", ".hdr"))


def info(folder: Path) -> dict[str, dict[str, float]]:
    """What `maemi info` of all files costs, and what only decoding them does."""
    files = [str(path) for path in pictures(folder)]
    maemi = [sys.executable, "-m", "serve.cli", "info", "--json", *files]
    commands = {
        "maemi info": maemi,
        "maemi info --no-read-bar": [*maemi, "--no-read-bar"],
        "tifffile and Pillow": [sys.executable, __file__, "--decode", str(folder)],
    }
    return {name: cost(command) for name, command in commands.items()}


def cost(command: list[str]) -> dict[str, float]:
    """Processor and wall time [s] and peak memory [MiB] of a command."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(child.pid, 0)
    if code:
        raise SystemExit(f"{command[:5]} ended with {code}")
    return {
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_s": round(time.perf_counter() - start, 1),
        "peak_mib": round(usage.ru_maxrss / 1024, 1),
    }


def status(field: str) -> int:
    """A field of this process in KiB; unlike getrusage it forgets the parent."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def attempt(read: Callable[[Path], None], path: Path) -> bool:
    try:
        read(path)
    except Exception:  # peers raise what they like
        return False
    return True


def main(folder: Path) -> None:
    results: dict[str, Any] = {"machine": {"processor": platform.machine(), "cores": os.cpu_count()}}
    peers = [name for name in READERS if name != "rosettasciio" or importlib.util.find_spec("rsciio")]
    for name in peers:
        done = subprocess.run(
            [sys.executable, __file__, "--measure", name, str(folder)], capture_output=True, text=True, check=True
        )
        results[name] = json.loads(done.stdout.splitlines()[-1])
    speed = {name: results[name]["images_per_s"] for name in peers}
    results["ratio"] = {f"to_{name}": round(speed["maemi"] / speed[name], 2) for name in peers[1:]}
    with tempfile.TemporaryDirectory() as drawn:
        draw(Path(drawn), per_kind=-(-INFO_FILES // len(KINDS)))
        for path in pictures(Path(drawn))[INFO_FILES:]:
            path.unlink()
        results["info"] = {"files": INFO_FILES} | info(Path(drawn))
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
    elif sys.argv[1:2] == ["--decode"]:
        decode(Path(sys.argv[2]))
    elif len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as drawn:
            draw(Path(drawn))
            main(Path(drawn))
