"""Every tab and the viewer for those who do not see them or have no pointer: axe-core, and the keyboard alone."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser, missing
from instruction_data import write_dataset
from measuring import MeasuringAssistant, write_tiff
from selenium.webdriver.common.keys import Keys
from serving import page_running

from serve.desk.conversations import Conversations
from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.desk.workbench import DEFAULTS, Workbench
from serve.http.guard import App
from serve.page.app import build_app

pytestmark = [pytest.mark.browser, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

AXE = "axe-core@4.14.1"
TABS = ("Chat", "Captions", "Classify", "Fine-tune", "Review")
GRAVE = {"serious", "critical"}


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checker, as its package registry gives it; none of it lies here."""
    place = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which fetches axe-core")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(place), AXE]
    if subprocess.run(command, capture_output=True, timeout=120).returncode:
        pytest.skip(f"npm cannot fetch {AXE}")
    return (place / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with data to review, a run that was trained, and an archive."""
    home = tmp_path_factory.mktemp("home")
    write_dataset(home / "lots" / "lot")
    run = home / "lots" / "first"
    (run / "model").mkdir(parents=True)
    job = {"data": "lot", "file": DEFAULTS, "overrides": ["training.steps=20"], "steps": 20, "began_at": "2026-11-01"}
    (run / "job.json").write_text(json.dumps(job))
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": 3 / n}) + "\n" for n in (10, 20)))
    scores = {"caption": {"bleu2": 0.1, "bleu2_blind": 0.05}, "statements": {"true": 3, "false": 1}}
    for when in ("before", "after"):
        (run / f"scores-{when}.json").write_text(json.dumps(scores))
    (home / "archive").mkdir()
    write_tiff(home / "archive" / "lot1.tif", seed=1)
    kept = Conversations(home / "conversations.sqlite", home / "pictures")

    def build() -> App:
        desk = Desk(MeasuringAssistant(), Gate(), lambda text: len(text.split()), conversations=kept)
        return build_app(desk, bench=Workbench(home / "lots"), archive=home / "archive")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        with page_running(build, home / "uploads") as base:
            yield base
    kept.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(url: str, axe: str, tmp_path: Path, dark: bool) -> None:
    with browser(dark=dark) as visitor:
        visitor.open(url)
        found = {"empty chat": serious(visitor, axe)}
        visitor.drop(write_tiff(tmp_path / "discs.tif"))
        visitor.one(".maemi-card dd", "px")
        visitor.asks("How many?")
        visitor.one("button", "Similar pictures").click()
        visitor.one(".maemi-similar img")
        for name in TABS:
            to_tab(visitor, name)
            found[name] = serious(visitor, axe)
        to_tab(visitor, "Chat")
        visitor.one("a.maemi-view").click()
        found["viewer over the page"] = serious(visitor, axe)
        visitor.driver.get(str(visitor.one("a.maemi-view").get_attribute("href")))
        visitor.one("canvas")
        found["viewer"] = serious(visitor, axe)
    told = {place: findings for place, findings in found.items() if findings}
    assert not told, json.dumps(told, indent=1)


def test_the_keyboard_alone_gets_everywhere(url: str, tmp_path: Path) -> None:
    """A question and a tab by Enter, buttons by Space; what has the focus can be seen."""
    with browser() as visitor:
        visitor.open(url)
        visitor.drop(write_tiff(tmp_path / "discs.tif"))
        visitor.one(".maemi-card dd", "px")
        visitor.asks("How many?")
        walk(visitor, lambda: focused(visitor, "textContent").strip() == "Similar pictures")
        press(visitor, Keys.SPACE)
        visitor.one(".maemi-similar b", "lot1.tif")
        visitor.driver.execute_script("document.querySelector('button[role=tab][aria-selected=true]').focus()")
        walk(visitor, lambda: focused(visitor, "textContent").strip() == "Review")
        press(visitor, Keys.ENTER)
        visitor.one(".review-head h3")
        before = visitor.words(".maemi-progress")
        walk(visitor, lambda: focused(visitor, "textContent").strip() == "Accept")
        press(visitor, Keys.SPACE)
        visitor.until(lambda: visitor.words(".maemi-progress") != before, "another count of decisions")
        assert "1 accepted" in visitor.words(".maemi-progress")


def to_tab(visitor: Browser, name: str) -> None:
    visitor.one("button[role=tab]", name).click()
    visitor.one("button[role=tab][aria-selected=true]", name)
    if name == "Review":
        visitor.one(".review-head h3")
    if name == "Fine-tune":
        visitor.one(".maemi-curve")


def serious(visitor: Browser, axe: str) -> list[str]:
    """What is serious or critical: rule, then the elements it is about."""
    visitor.driver.execute_script(axe)
    told: list[dict[str, Any]] = visitor.driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']}).then(found => done(found.violations));"
    )
    return [
        f"{one['id']} ({one['impact']}): {node['target']} {node['html'][:160]}"
        for one in told
        if one["impact"] in GRAVE
        for node in one["nodes"]
    ]


def walk(visitor: Browser, there: Any) -> None:
    """Press Tab until something has the focus; whatever has it on the way can be seen to."""
    met = []
    for _ in range(120):
        press(visitor, Keys.TAB)
        if there():
            assert visitor.driver.execute_script(SEEN)
            return
        met.append(focused(visitor, "outerHTML")[:80])
    raise AssertionError("the keyboard does not get there:\n" + "\n".join(met))


def press(visitor: Browser, key: str) -> None:
    visitor.driver.switch_to.active_element.send_keys(key)


def focused(visitor: Browser, what: str) -> str:
    return str(visitor.driver.execute_script(f"return document.activeElement.{what} ?? ''"))


SEEN = """
const style = getComputedStyle(document.activeElement);
return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0 || style.boxShadow !== 'none';
"""
