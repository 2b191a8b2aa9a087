"""A tiny instruction data set on disk, in the format the teacher writes."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from assistant.measure import Fact


def write_dataset(directory: Path, *, per_class: int = 4, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Two classes that differ in stripes: three questions per image, one image per group."""
    from datasets import Dataset, Features, Image, List, Value

    part = {"type": Value("string"), "text": Value("string")}
    features = Features(
        {
            "images": List(Image()),
            "messages": List({"role": Value("string"), "content": List(part)}),
            "references": List(Value("string")),
            **{
                name: Value("string")
                for name in (
                    "id",
                    "task",
                    "facet",
                    "label",
                    "source",
                    "group",
                    "teacher",
                    "provenance",
                    "measured",
                    "instrument",
                    "aux",
                )
            },
        }
    )
    (directory / "data").mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(splits):
        rows = [row for i in range(2 * per_class) for row in image_rows(i, seed=1000 * number + i, split=split)]
        table = Dataset.from_list(rows, features=features)
        table.to_parquet(str(directory / "data" / f"{split}-00000-of-00001.parquet"))
    return directory


def image_rows(index: int, *, seed: int, split: str) -> list[dict[str, object]]:
    label = ("nanowires", "powder")[index % 2]
    png = stripes(seed, vertical=index % 2 == 0)
    return [
        {
            "images": [{"bytes": png, "path": None}],
            "messages": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ],
            "references": [answer],
            "id": f"{split}-{seed}-{task}",
            "task": task,
            "facet": facet,
            "label": label,
            "source": f"{split}-{seed}.png",
            "group": f"{split}-{seed}",
            "teacher": "test",
            "provenance": json.dumps({"sha256": [hashlib.sha256(png).hexdigest()]}),
            "measured": json.dumps({"kind": "particles", "items": [vars(Fact("count", 12.0, "", "test", 0.9))]}),
            "instrument": json.dumps({"hv_kv": 5.0}),
            "aux": "5 kV; count 12",
        }
        for task, facet, question, answer in (
            ("classification", "class", "Which class does this micrograph belong to?", f"It shows {label}."),
            ("caption", "caption", "Describe this micrograph.", f"It shows {label}. Rough."),
            ("vqa", "surface", "And the surface?", "Yes, it is rough."),
        )
    ]


def stripes(seed: int, *, vertical: bool) -> bytes:
    random = np.random.default_rng(seed)
    wave = 127 + 100 * np.sin(np.arange(48) / random.uniform(2, 4) + random.uniform(0, 6))
    image = np.tile(wave, (48, 1)) + random.normal(0, 10, (48, 48))
    file = io.BytesIO()
    Picture.fromarray(np.clip(image if vertical else image.T, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
