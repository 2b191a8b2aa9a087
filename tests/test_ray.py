"""Captioning on a Ray cluster of two nodes on this machine, one of which is lost: the rows are those of one process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from measuring import MeasuringAssistant, write_tiff

from assistant.errors import ConfigError, MaemiError, RunError
from serve.batch.journal import caption_folder

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray's own
TESTS = Path(__file__).parent
IMAGES = 24


class Marking(MeasuringAssistant):
    """Leaves a file per batch, named by its process, and waits for `go` before it captions."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def caption(self, images: Sequence[Any]) -> list[str]:
        (self.folder / f"{os.getpid()}-{images[0].source.stem}").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.02)
        return super().caption(images)


def dies_on(name: str) -> MeasuringAssistant:
    class Dies(MeasuringAssistant):
        def caption(self, images: Sequence[Any]) -> list[str]:
            if any(image.source.name == name for image in images):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().caption(images)

    return Dies()


def cannot_load() -> MeasuringAssistant:
    raise RunError("no_run", "There is no run here. Name one.")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without a CPU of its own, and two nodes of one."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{TESTS.parent}:{TESTS}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
    made.workers = [made.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        write_tiff(folder / f"{number:02d}.tif", seed=number)
    return folder


def alone(images: Path, out: Path) -> bytes:
    caption_folder(images, out, load=MeasuringAssistant)
    return out.read_bytes()


def when(happened: Callable[[], bool], then: Callable[[], None]) -> Any:
    """A thread that does a thing once another has happened."""
    import threading

    def wait() -> None:
        while not happened():
            time.sleep(0.05)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def workers(folder: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in folder.iterdir() if "-" in path.name}


def assert_rows_survive(lose: Callable[[Path], None], cluster: Any, images: Path, folder: Path) -> None:
    """Once both workers are at work something is taken away; every row is that of one process."""
    marks = folder / "marks"
    marks.mkdir()

    def then() -> None:
        lose(marks)
        (marks / "go").touch()

    thread = when(lambda: len(workers(marks)) == 2, then)
    summary = caption_folder(images, folder / "out.jsonl", load=partial(Marking, marks), ray=cluster.address, at_once=3)
    thread.join()
    assert (summary.captioned, summary.failures) == (IMAGES, [])
    assert (folder / "out.jsonl").read_bytes() == alone(images, folder / "alone.jsonl")


def test_a_node_that_is_lost_midway_costs_nothing(cluster: Any, images: Path, tmp_path: Path) -> None:
    """Both are at work when one is taken away; the other does the rest, and every row is that of one process."""

    def lose(marks: Path) -> None:
        cluster.remove_node(cluster.workers[1], allow_graceful=False)

    assert_rows_survive(lose, cluster, images, tmp_path)


def test_a_worker_that_is_killed_is_replaced(cluster: Any, images: Path, tmp_path: Path) -> None:
    def kill(marks: Path) -> None:
        os.kill(int(min(workers(marks))), signal.SIGKILL)

    assert_rows_survive(kill, cluster, images, tmp_path)


def test_an_image_that_kills_its_worker_is_one_failed_row(cluster: Any, images: Path, tmp_path: Path) -> None:
    summary = caption_folder(
        images, tmp_path / "out.jsonl", load=partial(dies_on, "07.tif"), ray=cluster.address, at_once=3
    )
    assert summary.captioned == IMAGES - 1
    assert [(Path(path).name, error.split(":")[0]) for path, error in summary.failures] == [("07.tif", "worker_died")]


def test_what_cannot_be_loaded_is_told_as_it_is(cluster: Any, images: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no_run: There is no run here"):
        caption_folder(images, tmp_path / "out.jsonl", load=cannot_load, ray=cluster.address, at_once=3)


def test_where_no_cluster_answers(images: Path, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, MaemiError), match="no_ray"):
        caption_folder(images, tmp_path / "out.jsonl", load=MeasuringAssistant, ray="127.0.0.1:1")
