"""A data set directory that somebody else had a hand in: damaged, poisoned, or not one at all."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_micrographs import draw_tiny

from assistant.config import TeachConfig
from assistant.errors import DatasetError
from data_gen.dataset.exports import export_dataset
from data_gen.dataset.reader import split_files
from data_gen.pipeline import teach
from serve.page.review import Book
from training.data import load_split

ROOT = Path(__file__).parents[1]
TORN = "train-00001-of-00002.parquet"


class Payload:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data_set")
    teach(draw_tiny(folder / "images", 12, per_sample=2), folder / "out", config=TeachConfig(), workers=1)
    return folder / "out"


@pytest.fixture
def copy(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "out"))


def exported(directory: Path) -> None:
    export_dataset(directory, "llava")


def reviewed(directory: Path) -> list[dict[str, Any]]:
    book = Book(directory)
    return [book.row(place) for place in book.places]


def loaded(directory: Path) -> list[Any]:
    return [example for split in split_files(directory) for example in load_split(directory, split)]


READERS = [exported, reviewed, loaded]


def pickled(mark: Path) -> bytes:
    return pickle.dumps(Payload(mark))


def extension_type(mark: Path) -> bytes:
    """A sound parquet file whose schema asks for its type to be unpickled (CVE-2023-47248)."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    asks = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled(mark)}
    schema = pa.schema([pa.field("id", pa.string(), metadata=asks)])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table({"id": ["a"]}, schema=schema), sink)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "content",
    [lambda mark: b"", lambda mark: b"PAR1", lambda mark: b"not a parquet file", pickled, extension_type],
    ids=["empty", "torn", "text", "pickle", "extension type"],
)
def test_what_is_not_a_data_set_is_named(
    copy: Path, tmp_path: Path, content: Callable[[Path], bytes], read: Callable[[Path], Any]
) -> None:
    """One sentence with the file; nothing in it is run."""
    (copy / "data" / TORN).write_bytes(content(tmp_path / "mark"))
    with pytest.raises(DatasetError, match=r"damaged_dataset: .*Teach it again") as caught:
        read(copy)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "mark").exists()


def test_code_beside_the_rows_is_never_run(copy: Path, tmp_path: Path) -> None:
    """Pickles, a loading script and a module that shadows others: every reader, and the command line, pass them by."""
    mark = tmp_path / "mark"
    code = f"import os\nos.system('touch {mark}')\n"
    for folder in (copy, copy / "data"):
        for name in ("train.pkl", "train.pt", "state.bin", "dataset_info.pickle", "train-00000.npy"):
            (folder / name).write_bytes(pickled(mark))
        for name in (f"{copy.name}.py", "data.py", "json.py", "sitecustomize.py", "__init__.py"):
            (folder / name).write_text(code)
        (folder / "evil.pth").write_text(f"import os; os.system('touch {mark}')\n")
    for read in READERS:
        read(copy)
    script = f"import sys; sys.path.append({str(ROOT)!r}); from serve.cli import main; main()"
    command = [sys.executable, "-P", "-c", script, "teach", "--out", str(copy), "--export", "llava"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script = "from datasets import load_dataset; import sys; print(load_dataset(sys.argv[1])['train'].num_rows)"
    command = [sys.executable, "-P", "-c", script, str(copy)]
    env = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    refused = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    assert "scripts are no longer supported" in refused.stderr
    (copy / f"{copy.name}.py").unlink()
    opened = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=True)
    assert int(opened.stdout) == len(load_split(copy, "train"))
    assert not mark.exists()
    pickle.loads(pickled(mark))
    assert mark.exists()  # the payload works


def test_reading_a_split_leaves_no_copy_of_it(copy: Path, tmp_path: Path) -> None:
    """A cache in the home directory once held sixty gigabytes of other people's pictures."""
    home = tmp_path / "home"
    home.mkdir()
    script = "import sys, pathlib; from training.data import load_split; load_split(pathlib.Path(sys.argv[1]), 'train')"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    command = [sys.executable, "-c", script, str(copy)]
    subprocess.run(command, cwd=ROOT, env=env | {"HOME": str(home)}, check=True, timeout=300)
    assert [path for path in home.rglob("*") if path.is_file()] == []


def flips(path: Path, count: int) -> Iterator[None]:
    """The file with one byte changed, at one place after another; whole again at the end."""
    whole, rng = path.read_bytes(), random.Random(0)
    for place in sorted(rng.sample(range(len(whole)), min(count, len(whole)))):
        torn = bytearray(whole)
        torn[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(torn))
        yield
    path.write_bytes(whole)


def flipped_bytes_are_found(copy: Path, read: Callable[[Path], Any], count: int) -> None:
    whole, ends = read(copy), Counter[str]()
    for _ in flips(copy / "data" / "test-00000-of-00001.parquet", count):
        try:
            ends["same" if read(copy) == whole else "other rows"] += 1
        except DatasetError as error:
            ends[error.code] += 1
    assert ends.keys() <= {"same", "damaged_dataset"}
    assert ends["damaged_dataset"] > count / 2


@pytest.mark.parametrize("read", [reviewed, loaded])
def test_a_flipped_byte_is_found_or_changes_nothing(copy: Path, read: Callable[[Path], Any]) -> None:
    """At places all over the file: never another row, never an error without a name."""
    flipped_bytes_are_found(copy, read, 20)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("read", [reviewed, loaded])
def test_a_thousand_flipped_bytes_are_found(copy: Path, read: Callable[[Path], Any]) -> None:
    """As above."""
    flipped_bytes_are_found(copy, read, 1000)
