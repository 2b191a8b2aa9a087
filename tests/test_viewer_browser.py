"""The viewer as a person meets it: headless Chromium opens it from a conversation, zooms, measures, compares."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from browser import Browser, browser, missing
from measuring import KnowingAssistant, discs, write_tiff
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from serving import running

from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.http.guard import App
from serve.page.app import build_app

pytestmark = [pytest.mark.browser, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    async def build() -> App:
        return build_app(Desk(KnowingAssistant(), Gate(), lambda text: len(text.split())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        with running(asyncio.run(build())) as base:
            yield base


@pytest.fixture(scope="module")
def visitor(url: str) -> Iterator[Browser]:
    with browser() as visitor:
        yield visitor


def open_viewer(visitor: Browser, url: str, *files: Path, link: str = "Open viewer") -> None:
    """Drop pictures into the chat and follow a link of their cards into the viewer's frame."""
    visitor.driver.switch_to.default_content()
    visitor.open(url)
    visitor.drop(*files)
    visitor.one(".maemi-view", link).click()
    visitor.driver.switch_to.frame(visitor.one(".maemi-viewer iframe"))
    visitor.until(lambda: len(visitor.all(".scale", " ")) == 1 + (link != "Open viewer"), "a scale bar")
    visitor.until(lambda: not visitor.all("[aria-busy]"), "the picture")


def stage(visitor: Browser, number: int = 1) -> Any:
    return visitor.driver.find_element(By.CSS_SELECTOR, f"#stage{number} .view")


def edges(view: Any, width: int, height: int) -> tuple[int, int]:
    """Where the left and the right edge of a fitted picture are, from the middle of the stage [px of the screen]."""
    half = min(view.size["width"] / width, view.size["height"] / height) * width / 2
    return round(-half), round(half)


def nm(words: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+) (nm|µm)", words.strip()).groups()  # type: ignore[union-attr]
    return float(number) * {"nm": 1, "µm": 1000}[unit]


def bar(visitor: Browser, number: int = 1) -> float:
    """What the scale bar says of one pixel of the screen [nm]."""
    plate = visitor.driver.find_element(By.CSS_SELECTOR, f"#stage{number} .scale")
    line = plate.find_element(By.TAG_NAME, "i").rect["width"]
    return nm(plate.text) / line


def shown(visitor: Browser, layer: str) -> int:
    """Pixels of a canvas that are not empty."""
    script = """
        const canvas = document.querySelector(arguments[0]);
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        let count = 0;
        for (let at = 3; at < data.length; at += 4) count += data[at] > 0;
        return count;
    """
    return int(visitor.driver.execute_script(script, layer))


def test_a_length_is_measured_a_scale_bar_follows_the_zoom_and_marks_lie_over_the_picture(
    visitor: Browser, url: str, tmp_path: Path
) -> None:
    open_viewer(visitor, url, write_tiff(tmp_path / "discs.tif"))
    view = stage(visitor)
    left, right = edges(view, 128, 96)
    fitted = bar(visitor)
    assert fitted == pytest.approx(128 * 4.2 / (right - left), rel=0.02)

    visitor.one("#line").click()
    drag = ActionChains(visitor.driver).move_to_element_with_offset(view, left, 0).click_and_hold()
    drag.move_to_element_with_offset(view, 0, 0).move_to_element_with_offset(view, right, 0).release().perform()
    assert nm(visitor.one(".measured b").text) == pytest.approx(128 * 4.2, rel=0.005)
    assert nm(visitor.driver.find_element(By.CSS_SELECTOR, ".ruler text").text) == pytest.approx(128 * 4.2, rel=0.005)

    visitor.one("#angle").click()
    for x, y in ((left, 0), (0, 0), (0, -left // 2)):
        ActionChains(visitor.driver).move_to_element_with_offset(view, x, y).click().perform()
    assert visitor.all(".measured b")[1].text == "90.0°"

    visitor.one("#in").click()
    visitor.until(lambda: bar(visitor) == pytest.approx(fitted / 1.5, rel=0.02), "a scale bar of the new zoom")
    assert nm(visitor.one(".measured b").text) == pytest.approx(128 * 4.2, rel=0.005)

    assert shown(visitor, "canvas.marks") == 0
    visitor.one(".switch", "Objects").click()
    assert shown(visitor, "canvas.marks") > 200
    visitor.one(".switch", "Objects").click()
    assert shown(visitor, "canvas.marks") == 0

    visitor.one("summary", "Evidence").click()
    visitor.until(lambda: "blurred" in visitor.words("details .soft"), "what the class rests on")
    assert shown(visitor, "canvas.marks") > 200
    visitor.one("summary", "Evidence").click()
    visitor.until(lambda: shown(visitor, "canvas.marks") == 0, "the picture alone")

    visitor.one("#fit").click()
    visitor.until(lambda: bar(visitor) == pytest.approx(fitted, rel=0.01), "the whole picture")
    disc = (left // 2, left * 24 // 64)  # the first one, whose centre is at a quarter of width and height
    ActionChains(visitor.driver).move_to_element_with_offset(view, *disc).click().perform()
    chosen = visitor.one("tr[aria-selected=true]").text
    assert nm(" ".join(chosen.split()[1:3])) == pytest.approx(16 * 4.2, rel=0.12)
    assert shown(visitor, "canvas.marks") > 200
    assert visitor.hosts() == {"127.0.0.1"}
    said = [line["message"] for line in visitor.driver.get_log("browser") if line["level"] == "SEVERE"]
    assert [message for message in said if "/viewer" in message] == []


def test_a_line_is_laid_and_moved_with_the_keyboard_alone(visitor: Browser, url: str, tmp_path: Path) -> None:
    open_viewer(visitor, url, write_tiff(tmp_path / "discs.tif"))
    visitor.one("#line").send_keys(Keys.ENTER)
    before = nm(visitor.one(".measured b").text)
    end = visitor.driver.switch_to.active_element
    assert "point 1" in str(end.get_attribute("aria-label"))
    for _ in range(3):
        end.send_keys(Keys.SHIFT, Keys.ARROW_LEFT)
    visitor.until(lambda: nm(visitor.one(".measured b").text) > before * 1.05, "a longer line")
    visitor.driver.switch_to.active_element.send_keys(Keys.DELETE)
    visitor.gone(".measured b")


def test_the_window_is_asked_of_the_server_and_a_stack_is_turned(visitor: Browser, url: str, tmp_path: Path) -> None:
    stack = tmp_path / "stack.tif"
    tifffile.imwrite(stack, np.stack([discs(seed) for seed in range(3)]), photometric="minisblack")
    open_viewer(visitor, url, stack)
    assert visitor.one(".scale").text.endswith(" px")  # not calibrated
    visitor.one(".contrast [aria-label='White at, grey value']").send_keys(Keys.CONTROL, "a")
    visitor.one(".contrast [aria-label='White at, grey value']").send_keys("30000", Keys.ENTER)
    asked = "return performance.getEntriesByType('resource').map(e => e.name).filter(n => n.includes('high=30000'))"
    visitor.until(lambda: visitor.driver.execute_script(asked), "tiles of the new window")
    visitor.one("[aria-label='Next page']").click()
    visitor.until(lambda: visitor.one(".pages input").get_attribute("value") == "2", "the second page")
    paged = asked.replace("high=30000", "page=1")
    visitor.until(lambda: visitor.driver.execute_script(paged), "tiles of the second page")


def test_two_pictures_keep_one_scale(visitor: Browser, url: str, tmp_path: Path) -> None:
    """One has pixels of twice the size: what is equally long in both is equally long on the screen."""
    fine, coarse = write_tiff(tmp_path / "fine.tif"), write_tiff(tmp_path / "coarse.tif", seed=1, nm=8.4)
    open_viewer(visitor, url, fine, coarse, link="Compare with")
    assert bar(visitor, 1) == pytest.approx(bar(visitor, 2), rel=0.01)
    before = bar(visitor, 1)
    ActionChains(visitor.driver).move_to_element(stage(visitor, 2)).double_click().perform()
    visitor.until(lambda: bar(visitor, 1) < 0.7 * before, "the other picture to follow")
    visitor.until(lambda: bar(visitor, 1) == pytest.approx(bar(visitor, 2), rel=0.01), "one scale")
    row = visitor.one(".compared tr", "mean diameter").text
    first, second, difference = map(float, re.findall(r"([\d.]+) nm", row))
    assert second == pytest.approx(2 * first, rel=0.1)
    assert difference == pytest.approx(second - first, abs=2)
