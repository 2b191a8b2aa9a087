"""Captions and Classify as a person meets them: headless Chromium clicks through both tabs on a real server."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Browser, browser, missing
from measuring import MeasuringAssistant, write_tiff
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from serving import page_running

from serve.batch.background import Batches
from serve.batch.roots import Roots
from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.desk.sortings import Sortings
from serve.http.guard import App
from serve.page.app import build_app

pytestmark = [pytest.mark.browser, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


class Held(MeasuringAssistant):
    """Captions as many pictures as it is let."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = threading.Semaphore(steps)

    def caption(self, images: Sequence[Any]) -> list[str]:
        self.steps.acquire(timeout=60)
        return super().caption(images)


@contextmanager
def served(state: Path, assistant: MeasuringAssistant, *folders: Path) -> Iterator[str]:
    """A server whose batches and sorted pictures lie in a folder, as long as it is needed."""
    state.mkdir(exist_ok=True)
    kept, batches = Sortings(state / "sorted.sqlite", state / "sorted"), Batches(state / "batches")

    def build() -> App:
        desk = Desk(assistant, Gate(), lambda text: len(text.split()), sortings=kept)
        return build_app(desk, batches=batches, roots=Roots.of(folders))

    with page_running(build, state / "uploads") as url:
        yield url
    batches.close()
    kept.close()


@pytest.fixture
def visitor() -> Iterator[Browser]:
    with browser() as visitor:
        yield visitor


def opened(visitor: Browser, url: str, tab: str) -> None:
    visitor.open(url)
    visitor.one("button[role=tab]", tab).click()


def field(visitor: Browser, label: str) -> WebElement:
    """The text field with a label that can be seen."""

    def found() -> WebElement | None:
        fields = (
            e for block in visitor.all(".block", label) for e in block.find_elements(By.CSS_SELECTOR, "input, textarea")
        )
        return next((e for e in fields if e.is_displayed() and e.get_attribute("type") != "file"), None)

    return visitor.until(found, label)


def add(visitor: Browser, label: str, *files: Path) -> None:
    """Add files to the field with a label."""
    block = visitor.one(".block:has(input[type=file])", label)
    block.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys("\n".join(map(str, files)))
    for file in files:
        visitor.one(".block", file.stem)


def names(visitor: Browser) -> list[str]:
    return [element.text for element in visitor.all(".maemi-file")]


def test_a_folder_is_stopped_continued_after_a_restart_filtered_sorted_and_downloaded(
    visitor: Browser, tmp_path: Path
) -> None:
    lot = tmp_path / "sem" / "lot"
    lot.mkdir(parents=True)
    for n in range(3):
        write_tiff(lot / f"{n}.tif", seed=n, nm=(2 - n) * 4.2 or None)
    (lot / "torn.tif").write_bytes(b"II*\0torn")
    with served(tmp_path / "state", first := Held(1), tmp_path / "sem") as url:
        opened(visitor, url, "Captions")
        field(visitor, "Or a folder on the server").send_keys("../..")
        visitor.one("button", "Write captions").click()
        visitor.one(".toast-wrap", "is no folder in")
        line = field(visitor, "Or a folder on the server")
        line.send_keys(Keys.CONTROL, "a")
        line.send_keys("lot")
        visitor.one("button", "Write captions").click()
        visitor.one(".maemi-batch", "1 of 4 captioned")
        visitor.one("button", "Stop").click()
        first.steps.release()
        visitor.one(".maemi-batch", "Stopped at 2 of 4")
        assert names(visitor) == ["0.tif", "1.tif"]
    with served(tmp_path / "state", Held(9), tmp_path / "sem") as url:
        opened(visitor, url, "Captions")
        visitor.one(".maemi-batch", "Stopped at 2 of 4")
        visitor.one("button", "Continue").click()
        visitor.one(".maemi-batch", "4 done, 1 failed")
        assert len(visitor.all(".maemi-thumb img")) == 3
        visitor.one("th button", "pixel size").click()
        visitor.one("th[aria-sort=ascending]", "pixel size")
        visitor.until(lambda: names(visitor) == ["1.tif", "0.tif", "2.tif", "torn.tif"], "the finest first")
        visitor.one("th button", "pixel size").click()
        visitor.until(lambda: names(visitor) == ["0.tif", "1.tif", "2.tif", "torn.tif"], "the coarsest first")
        field(visitor, "Filter").send_keys("torn")
        visitor.until(lambda: names(visitor) == ["torn.tif"], "one row")
        link = visitor.one("a.maemi-view", "JSONL").get_attribute("href")
        cookies = {cookie["name"]: cookie["value"] for cookie in visitor.driver.get_cookies()}
        rows = [json.loads(row) for row in httpx.get(str(link), cookies=cookies).text.splitlines()]
        assert [row["count"] for row in rows] == [9.0, 9.0, 9.0, None]
        visitor.one("button", "Delete this table").click()
        visitor.driver.switch_to.alert.accept()
        visitor.one(".maemi-empty", "No captions yet")
        assert not list((tmp_path / "state" / "batches").rglob("*.journal"))
    assert len(list(lot.iterdir())) == 4
    assert visitor.hosts() == {"127.0.0.1"}


def test_a_zip_is_captioned_and_says_what_it_left_out(visitor: Browser, tmp_path: Path) -> None:
    picture = write_tiff(tmp_path / "a.tif")
    with zipfile.ZipFile(tmp_path / "lot.zip", "w") as archive:
        for name in ("in/a.tif", "in/b.tif", "../out.tif", "notes.doc"):
            archive.write(picture, name)
    with served(tmp_path / "state", MeasuringAssistant()) as url:
        opened(visitor, url, "Captions")
        assert not field(visitor, "Or a folder on the server").is_enabled()
        add(visitor, "Micrographs, or a zip", tmp_path / "lot.zip")
        visitor.one("button", "Write captions").click()
        visitor.one(".maemi-batch", "2 done")
        assert names(visitor) == ["lot/in/a.tif", "lot/in/b.tif"]
        assert "out.tif" in visitor.words(".maemi-cautions")
        assert "notes.doc" in visitor.words(".maemi-cautions")


def test_pictures_are_sorted_corrected_and_nothing_is_lost_by_a_restart(visitor: Browser, tmp_path: Path) -> None:
    bright = [write_tiff(tmp_path / f"bright{n}.tif", seed=n, level=45000) for n in range(3)]
    dark = [write_tiff(tmp_path / f"dark{n}.tif", seed=n, level=5000) for n in range(3)]
    with served(tmp_path / "state", MeasuringAssistant()) as url:
        opened(visitor, url, "Classify")
        visitor.one("button", "Examples (few-shot)").click()
        for label, file in (("light", bright[2]), ("dim", dark[2])):
            words = visitor.until(
                lambda: next((f for f in (visitor.all("input[maxlength='200'], textarea[maxlength='200']"))), None),
                "Label",
            )
            words.send_keys(Keys.CONTROL, "a")
            words.send_keys(label)
            add(visitor, "Pictures of this label", file)
            visitor.one("button", "Add examples").click()
            visitor.gone(".block:has(input[type=file])", file.stem)
        field(visitor, "Labels, separated by commas").send_keys("light, dim")
        add(visitor, "Micrographs", *bright[:2], *dark[:2])
        visitor.one("button.primary", "Classify").click()
        visitor.one(".maemi-progress", "4 done")
        assert [badge.text for badge in visitor.all(".maemi-labels .maemi-badge")] == ["light", "light", "dim", "dim"]
        assert len(visitor.all(".maemi-thumb img")) == 4
        visitor.one("button", "Right").click()
        visitor.one(".maemi-counted", "1 of 1")
        visitor.all("input[data-tells=correction]")[2].send_keys("light", Keys.TAB)
        visitor.one(".maemi-counted", "1 of 2")
        assert len(visitor.all(".maemi-wrong")) == 1
    with served(tmp_path / "state", MeasuringAssistant()) as url:
        opened(visitor, url, "Classify")
        visitor.one(".maemi-counted", "1 of 2")
        assert field(visitor, "Labels, separated by commas").get_attribute("value") == "light, dim"
        visitor.one("button", "Label these next").click()
        visitor.one(".maemi-next li", "bright1.tif")
        assert len(visitor.all(".maemi-next li")) == 2  # those that nobody looked at
        visitor.one("button.primary", "Classify").click()  # anew, by the same examples
        visitor.one(".maemi-progress", "4 done")
        visitor.one(".maemi-counted", "1 of 2")
        visitor.one("button", "Clear all").click()
        visitor.driver.switch_to.alert.accept()
        visitor.one(".maemi-empty", "No classes yet")
        assert not [path for path in (tmp_path / "state" / "sorted").rglob("*") if path.is_file()]
    assert visitor.hosts() == {"127.0.0.1"}
