"""Memory and speed of the teacher pipeline as the number of images grows.

    python benchmarks/teaching_memory.py [--sizes 1000 5000 20000] [--workers 2] [--out benchmarks/teaching_memory.json]

Every size is taught offline in a process of its own, from small procedural pictures of scattered discs; the peak of the
resident memory is sampled from outside, of that process and of the workers it started (the largest of them). Memory is
flat where the peak at the last size is within 5 % of the peak at the first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

SIDE_PX = 64
PER_SAMPLE = 8
CLASSES = 4
EVERY_S = 0.05
GOAL = 1.05
TEACH = """
import json, sys
from pathlib import Path
from assistant.config import TeachConfig
from data_gen.pipeline import teach

if __name__ == "__main__":
    report = teach(Path(sys.argv[1]), Path(sys.argv[2]), config=TeachConfig(), workers=int(sys.argv[3]))
    print(json.dumps(report.as_dict()))
"""


def draw(folder: Path, count: int) -> None:
    """Write `count` pictures of discs under noise, by class and sample; picture i is the same at every count."""
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    for number in range(count):
        rng = np.random.default_rng(number)
        grey = np.full((SIDE_PX, SIDE_PX), 60.0)
        for cx, cy, radius in zip(*rng.uniform(6, 58, (2, 7)), rng.uniform(2.5, 6, 7), strict=True):
            grey[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = 170
        grey += rng.normal(0, 6, grey.shape)
        sample, view = divmod(number // CLASSES, PER_SAMPLE)
        path = folder / f"class{number % CLASSES}" / f"s{sample:05d}_{view}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)


def watched(command: list[str]) -> tuple[dict[str, Any], float, float]:
    """Run `teach`; gives its report and the peak resident memory of the process and of its largest worker [MiB]."""
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(command, stdout=told)
        parent, peaks = psutil.Process(process.pid), [0.0, 0.0]
        while process.poll() is None:
            for who, alive in ((0, [parent]), (1, parent.children())):
                for one in alive:
                    try:
                        peaks[who] = max(peaks[who], one.memory_info().rss / 2**20)
                    except psutil.NoSuchProcess:
                        continue
            time.sleep(EVERY_S)
        if process.returncode:
            raise SystemExit(f"error: teach ended with {process.returncode}")
        told.seek(0)
        return json.loads(told.read().splitlines()[-1]), *peaks


def row(count: int, workers: int) -> dict[str, Any]:
    """Teach `count` pictures and measure."""
    with tempfile.TemporaryDirectory() as place:
        images, out, script = Path(place) / "images", Path(place) / "out", Path(place) / "run.py"
        draw(images, count)
        script.write_text(TEACH)
        report, parent, worker = watched([sys.executable, str(script), str(images), str(out), str(workers)])
        pictures = sum(path.stat().st_size for path in images.rglob("*.png"))
        stored = sum(path.stat().st_size for path in out.glob("data/*.parquet"))
    return {
        "images": count,
        "rows": report["total"],
        "seconds": round(report["seconds"], 1),
        "images_per_s": round(count / report["seconds"], 1),
        "parent_peak_mib": round(parent, 1),
        "worker_peak_mib": round(worker, 1),
        "pictures_mib": round(pictures / 2**20, 2),
        "parquet_mib": round(stored / 2**20, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 5_000, 20_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = []
    for count in options.sizes:
        rows.append(row(count, options.workers))
        print(json.dumps(rows[-1]), flush=True)
    first, last = rows[0], rows[-1]
    growth = {
        f"{who} (goal <= {GOAL:g})": round(last[f"{who}_peak_mib"] / first[f"{who}_peak_mib"], 3)
        for who in ("parent", "worker")
    }
    report = {"side_px": SIDE_PX, "workers": options.workers, "cpus": os.cpu_count(), "rows": rows}
    report[f"peak at {last['images']} over {first['images']} images"] = growth
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
