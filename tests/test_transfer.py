"""Public sets in the folders they are published in: classes, samples and what is not of them."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assistant.errors import DatasetError
from data_gen.catalogue import Catalogue
from data_gen.transfer import LAYOUTS, write_index

SHARES = {"validation": 0.2, "test": 0.3}
PUBLISHED = {
    "neu": (
        [f"{code}_{n}.bmp" for code in ("Cr", "In", "Pa", "PS", "RS", "Sc") for n in range(1, 7)] + ["Thumbs_a.bmp"],
        {"crazing": 6, "inclusion": 6, "patches": 6, "pitted_surface": 6, "rolled-in_scale": 6, "scratches": 6},
        36,
    ),
    "kth-tips": (
        [f"KTH_TIPS/{m}/15-scale_{s}_im_{n}_grey.png" for m in ("sponge", "linen")
         for s in range(1, 6) for n in (1, 2)],
        {"linen": 10, "sponge": 10},
        10,
    ),
    "cmi": ([f"train/{rating}/panel{n}.png" for rating in range(5, 10) for n in range(3)] + ["4/odd.png"],
            {f"rating_{rating}": 3 for rating in range(5, 10)}, 15),
    "nffa": (
        [f"{name}/L{s}_0a{s}_{n}.jpg" for name in ("Porous_Sponge", "Tips", "MEMS_devices_and_electrodes")
         for s in range(4) for n in (1, 2)],
        {"mems_devices_electrodes": 8, "porous_sponge": 8, "tips": 8},
        12,
    ),
}  # fmt: skip


def published(layout: str, folder: Path) -> Path:
    for n, name in enumerate(PUBLISHED[layout][0]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(n).integers(0, 255, (20, 20), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_folder_is_indexed_and_no_sample_lies_in_two_splits(layout: str, tmp_path: Path) -> None:
    folder, (_, classes, groups) = published(layout, tmp_path), PUBLISHED[layout]
    assert write_index(layout, folder) == classes
    catalogue = Catalogue(folder, shares=SHARES, seed=0)
    entries = list(catalogue)
    assert Counter(entry.label for entry, _ in entries) == classes
    splits: dict[str, set[str]] = {}
    for entry, split in entries:
        splits.setdefault(entry.group, set()).add(split)
    assert len(splits) == groups
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "validation", "test"}


def test_samples_of_kth_tips2_are_its_folders(tmp_path: Path) -> None:
    for material in ("cork", "wool"):
        for sample in "abcd":
            file = tmp_path / material / f"sample_{sample}" / "22a-scale_2_im_1_col.png"
            file.parent.mkdir(parents=True)
            Image.new("RGB", (9, 9), (9, 9, 9)).save(file)
    assert write_index("kth-tips", tmp_path) == {"cork": 4, "wool": 4}
    assert "cork-sample_a" in (tmp_path / "index.csv").read_text()


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"bad_layout: .* does not look like neu: Files like Cr_1\.bmp"):
        write_index("neu", published("cmi", tmp_path))
    command = (sys.executable, "-m", "data_gen.transfer", "nffa", str(tmp_path))
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: bad_layout: ")
    assert not (tmp_path / "index.csv").exists()
