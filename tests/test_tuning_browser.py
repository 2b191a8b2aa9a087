"""Fine-tuning and review as a person does them on the page: headless Chromium on a real server with real training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import browser as headless
import pytest
from browser import Browser, browser, missing
from instruction_data import write_dataset
from measuring import MeasuringAssistant, write_tiff
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from serving import page_running

from data_gen.dataset.decisions import decisions_about
from serve.desk.conversations import Conversations
from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.desk.workbench import Workbench
from serve.http.guard import App, read_credentials
from serve.page.app import build_app
from training.data import load_split

pytestmark = [pytest.mark.browser, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@contextmanager
def served(folder: Path, *, trains: bool = True, logins: Path | None = None) -> Iterator[str]:
    """A server whose data sets and runs lie in `lots`, as long as it is needed."""
    kept = Conversations(folder / "conversations.sqlite", folder / "pictures")

    def build() -> App:
        desk = Desk(MeasuringAssistant(), Gate(), lambda text: len(text.split()), conversations=kept)
        credentials = read_credentials(logins) if logins else None
        return build_app(desk, credentials=credentials, bench=Workbench(folder / "lots") if trains else None)

    with page_running(build, folder / "uploads") as url:
        yield url
    kept.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "lots" / "lot")
    return tmp_path


@pytest.fixture
def visitor() -> Iterator[Browser]:
    with browser() as visitor:
        yield visitor


def to_tab(visitor: Browser, name: str) -> None:
    visitor.one("button[role=tab]", name).click()
    visitor.one("button[role=tab][aria-selected=true]", name)


def fill(visitor: Browser, label: str, words: str) -> None:
    field = visitor.driver.find_element(By.CSS_SELECTOR, f"[aria-label='{label}'], label:has(> span) input")
    for found in visitor.all("label"):
        if found.text.startswith(label):
            field = found.find_element(By.CSS_SELECTOR, "input, textarea")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(words, Keys.TAB)


@pytest.mark.slow
def test_a_training_outlives_reload_and_restart(
    visitor: Browser, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked, started, watched, stopped, resumed and scored by clicks; the page finds it again each time."""
    monkeypatch.setattr(headless, "PATIENCE_S", 300)
    with served(folder) as url:
        visitor.open(url)
        to_tab(visitor, "Fine-tune")
        visitor.one(".maemi-sum", "GiB")
        fill(visitor, "Steps", "40")
        fill(visitor, "Batch size", "2")
        visitor.one("button", "Check").click()
        visitor.one(".maemi-badge", "Can be trained")
        assert "validation split" in visitor.words(".maemi-cautions")
        assert visitor.all(".maemi-loss mark")
        visitor.one("button", "Start fine-tuning").click()
        visitor.one(".maemi-badge", "Training")
        visitor.one(".maemi-curve")
        visitor.driver.refresh()
        to_tab(visitor, "Fine-tune")
        visitor.one(".maemi-badge", "Training")
        visitor.one("button", "Stop and save").click()
        visitor.one(".maemi-badge", "Stopped, can go on")
        visitor.one("button:not([disabled])", "Resume").click()
        visitor.one(".maemi-badge", "Training")
    with served(folder) as url:
        visitor.open(url)
        to_tab(visitor, "Fine-tune")
        visitor.one(".maemi-badge", "Finished")
        assert "Step 40 of 40" in visitor.words(".maemi-progress")
        visitor.one("button:not([disabled])", "Score before and after").click()
        visitor.one(".maemi-badge", "Scoring")
        visitor.one(".maemi-numbers th", "statements, false")
    assert (folder / "lots" / "run-1" / "model").is_dir()
    assert visitor.hosts() == {"127.0.0.1"}


def test_rows_are_reviewed_and_own_corrections_become_training_rows(tmp_path: Path, folder: Path) -> None:
    """From a thumb down in the chat to the training split in one application; nobody takes up another's words."""
    logins = tmp_path / "logins.txt"
    logins.write_text("ada:correct horse\nbob:battery staple\n")
    adas, bobs = logins.read_text().splitlines()
    with served(folder, logins=logins) as url, browser(login=adas) as ada, browser(login=bobs) as bob:
        ada.open(url)
        ada.drop(write_tiff(tmp_path / "discs.tif"))
        ada.one(".maemi-card dd", "px")
        ada.asks("How many?")
        ada.one(".maemi-chat button[title=Dislike]").click()
        words = ada.one(".maemi-correction textarea")
        words.send_keys(Keys.CONTROL, "a")
        words.send_keys("There are nine discs.")
        ada.one("button", "Keep the correction").click()
        ada.one(".maemi-corrected", "There are nine discs.")
        bob.open(url)
        to_tab(bob, "Review")
        bob.one(".review-head h3")
        assert "Corrected" not in bob.words(".review-head")
        bob.one("button", "Corrected answers of the chat").click()
        bob.one("button", "Take up mine").click()
        bob.one(".maemi-progress", "0 corrected answers wait")
        to_tab(ada, "Review")
        ada.one(".review-head h3")
        ada.one("button", "Corrected answers of the chat").click()
        ada.one("button", "Take up mine").click()
        ada.one(".maemi-progress", "1 corrected answers wait")
        ada.one(".review-head h3", "vqa / correction")
        ada.one("button", "Accept").click()
        ada.gone(".review-head h3", "vqa / correction")
        ada.one("button", "Write reviewed ones").click()
        ada.one(".maemi-progress", "1 reviewed corrections are in the training split")
    (decision,) = decisions_about(folder / "lots" / "lot").values()
    assert (decision.verdict, decision.reviewer) == ("accepted", "ada")
    answers = [example.answer for example in load_split(folder / "lots" / "lot", "train")]
    assert "There are nine discs." in answers


def test_without_a_folder_nobody_trains(visitor: Browser, folder: Path) -> None:
    with served(folder, trains=False) as url:
        visitor.open(url)
        assert [tab.text for tab in visitor.all("button[role=tab]")] == ["Chat", "Captions", "Classify"]
