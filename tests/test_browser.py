"""The page as a person meets it: headless Chromium clicks through it on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import Browser, browser, missing
from measuring import MeasuringAssistant, write_tiff
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from serving import page_running

from serve.desk.conversations import BAD, Conversations
from serve.desk.desk import Desk
from serve.desk.gate import Gate
from serve.http.guard import App, read_credentials
from serve.page.app import build_app

pytestmark = [pytest.mark.browser, pytest.mark.skipif(missing() is not None, reason=str(missing()))]


@contextmanager
def served(folder: Path, logins: Path | None = None) -> Iterator[str]:
    """A server whose conversations lie in a folder, as long as it is needed."""
    kept = Conversations(folder / "conversations.sqlite", folder / "pictures")

    def build() -> App:
        desk = Desk(MeasuringAssistant(), Gate(), lambda text: len(text.split()), conversations=kept, false_rate=0.05)
        return build_app(desk, credentials=read_credentials(logins) if logins else None)

    with page_running(build, folder / "uploads") as url:
        yield url
    kept.close()


@pytest.fixture
def visitor() -> Iterator[Browser]:
    with browser() as visitor:
        yield visitor


def test_a_conversation_outlives_reload_and_restart_until_it_is_deleted(visitor: Browser, tmp_path: Path) -> None:
    picture, kept = write_tiff(tmp_path / "discs.tif"), tmp_path / "state"
    with served(kept) as url:
        visitor.open(url)
        visitor.drop(picture)
        visitor.one(".maemi-card dd", "px")  # before anything was asked
        assert "4.2 nm/px" in visitor.words(".maemi-card")
        visitor.asks("How many?")
        visitor.asks("How large?")
        visitor.driver.refresh()
        visitor.one(".maemi-chat .bot", "Turn 2")
        assert "5.0% of its statements were false" in visitor.words(".maemi-by")
        assert len(visitor.all(".maemi-chat img")) == 1
        visitor.one(".maemi-open input")
        visitor.type(".maemi-open input", "Lot 17")
        visitor.one(".maemi-headings label", "Lot 17")
    with served(kept) as url:
        visitor.open(url)
        visitor.one(".maemi-chat .bot", "Turn 2")
        visitor.one(".maemi-headings label", "Lot 17")
        assert "4.2 nm/px" in visitor.words(".maemi-card")
        visitor.asks("And now?")  # the picture is read again from what was kept
        assert "Turn 3, 1 image(s)" in visitor.words(".maemi-chat")
        visitor.one("button", "New conversation").click()
        visitor.gone(".maemi-chat .bot")
        visitor.driver.refresh()
        visitor.one(".maemi-headings label", "Lot 17")
        assert not visitor.all(".maemi-chat .bot")
        visitor.one(".maemi-headings label", "Lot 17").click()
        visitor.one(".maemi-chat .bot", "Turn 3")
        visitor.one("button", "Delete this conversation").click()
        visitor.driver.switch_to.alert.accept()
        visitor.gone(".maemi-chat .bot")
        visitor.gone(".maemi-headings label")
        assert not [path for path in (kept / "pictures").rglob("*") if path.is_file()]
    assert visitor.hosts() == {"127.0.0.1"}


def test_a_question_is_changed_an_answer_drawn_anew_rated_and_corrected(visitor: Browser, tmp_path: Path) -> None:
    with served(tmp_path / "state") as url:
        visitor.open(url)
        visitor.drop(write_tiff(tmp_path / "discs.tif"))
        visitor.one(".maemi-card dd", "px")
        visitor.asks("Hwo many?")
        visitor.one(".maemi-chat button[title=Edit]").click()
        words = visitor.one(".maemi-chat textarea")
        words.send_keys(Keys.CONTROL, "a")
        words.send_keys("How many?")
        visitor.one(".maemi-chat button[title=Submit]").click()
        visitor.one(".maemi-chat .user", "How many?")
        visitor.one(".maemi-by", "measuring")
        visitor.gone(".maemi-chat .user", "Hwo many?")
        visitor.one(".maemi-chat button[title=Retry]").click()
        visitor.one(".maemi-by", "measuring")
        visitor.one(".maemi-chat button[title=Dislike]").click()
        visitor.one(".maemi-correction textarea")
        visitor.driver.find_element(By.CSS_SELECTOR, ".maemi-correction textarea").send_keys(Keys.CONTROL, "a")
        visitor.driver.find_element(By.CSS_SELECTOR, ".maemi-correction textarea").send_keys("There are nine discs.")
        visitor.one("button", "Keep the correction").click()
        visitor.one(".maemi-corrected", "There are nine discs.")
        visitor.driver.refresh()
        visitor.one(".maemi-corrected", "There are nine discs.")
    store = Conversations(tmp_path / "state" / "conversations.sqlite", tmp_path / "state" / "pictures")
    ((exchange,),) = [conversation.exchanges for conversation in store.corrected()]
    assert (exchange.question, exchange.rating, exchange.correction) == ("How many?", BAD, "There are nine discs.")
    assert exchange.tries == 3
    store.close()


def test_every_statement_shows_its_fact_to_pointer_and_keyboard(visitor: Browser, tmp_path: Path) -> None:
    with served(tmp_path / "state") as url:
        visitor.open(url)
        visitor.drop(write_tiff(tmp_path / "discs.tif"))
        visitor.one(".maemi-card dd", "px")
        visitor.asks("How many?")
        marks = visitor.all(".maemi-fact:not(.maemi-unknown)")
        assert marks
        assert not visitor.all(".maemi-tip")
        marks[0].click()
        assert "measured" in visitor.one(".maemi-tip").text
        assert "% sure" in visitor.words(".maemi-tip")
        assert "measured" in str(marks[0].get_attribute("aria-label"))
        marks[0].send_keys(Keys.ESCAPE)
        visitor.gone(".maemi-tip")
        visitor.driver.execute_script("document.activeElement.blur(); arguments[0].focus()", marks[-1])
        visitor.one(".maemi-tip")


def test_two_logins_see_nothing_of_each_other(tmp_path: Path) -> None:
    logins = tmp_path / "logins.txt"
    logins.write_text("ada:correct horse\nbob:battery staple\n")
    adas, bobs = logins.read_text().splitlines()
    with served(tmp_path / "state", logins) as url, browser(login=adas) as ada, browser(login=bobs) as bob:
        ada.open(url)
        bob.open(url)
        ada.drop(write_tiff(tmp_path / "discs.tif"))
        ada.one(".maemi-card dd", "px")
        ada.asks("Ada's question?")
        link = str(ada.one(".maemi-links a").get_attribute("href"))
        bob.driver.refresh()
        bob.one(".maemi-box textarea")
        assert "Ada" not in bob.words("body")
        assert not bob.all(".maemi-headings label")
        bob.driver.get(link)
        assert "not there" in bob.words("body")
        with browser(login=adas) as other:  # another browser of the same login finds what the first one kept
            other.open(url)
            other.one(".maemi-chat .user", "Ada's question?")
        assert ada.hosts() == bob.hosts() == {"127.0.0.1"}


def test_an_error_covers_nothing_and_a_phone_has_room(tmp_path: Path) -> None:
    with served(tmp_path / "state") as url, browser(390, 844) as phone:
        phone.open(url)
        phone.type(".maemi-box textarea", "What?")
        phone.one(".toast-body", "Add a micrograph first")
        assert not phone.all(".maemi-chat span.error")
        (chat,) = phone.all(".maemi-chat")
        (toast,) = phone.all(".toast-body")
        assert chat.size["width"] >= 350
        assert toast.rect["y"] > 420
        assert phone.driver.execute_script("return document.documentElement.scrollWidth") <= 390
        assert not phone.all(".maemi-headings")
