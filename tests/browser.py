"""Headless Chromium for tests of the page: clicks, words, files, and a log of every host it spoke to."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

T = TypeVar("T")
PATIENCE_S = 60


def missing() -> str | None:
    """Why there can be no browser here; None where there can."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else None


class Browser:
    """One visitor with cookies of their own."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.one(".maemi-box textarea")

    def all(self, selector: str, text: str = "") -> list[WebElement]:
        return [e for e in self.driver.find_elements(By.CSS_SELECTOR, selector) if text in e.text and e.is_displayed()]

    def one(self, selector: str, text: str = "") -> WebElement:
        """The first element that can be seen, with a text in it; waits for it."""
        return self.until(lambda: next(iter(self.all(selector, text)), None), f"{selector} {text!r}")

    def gone(self, selector: str, text: str = "") -> None:
        self.until(lambda: not self.all(selector, text), f"no {selector} {text!r}")

    def until(self, found: Callable[[], T | None], what: str) -> T:
        wait = WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.1)
        ignored = (StaleElementReferenceException,)
        wait._ignored_exceptions += ignored
        result: T = wait.until(lambda _: found(), f"{what} on a page that says {self.words('body')!r}")
        return result

    def words(self, selector: str) -> str:
        return "\n".join(element.text for element in self.all(selector))

    def drop(self, *files: Path) -> None:
        field = self.driver.find_element(By.CSS_SELECTOR, ".maemi-box input[type=file]")
        self.driver.execute_script("arguments[0].value = ''", field)  # else the files of the last drop come again
        field.send_keys("\n".join(map(str, files)))

    def type(self, selector: str, words: str) -> None:
        field = self.one(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(words, Keys.ENTER)

    def asks(self, question: str) -> None:
        """Ask, and wait until the answer is whole."""
        before = len(self.all(".maemi-by"))
        self.type(".maemi-box textarea", question)
        self.until(lambda: len(self.all(".maemi-by")) > before, f"an answer to {question!r}")

    def hosts(self) -> set[str]:
        """Whom every request since the last call went to, web sockets too."""
        found = set()
        for line in self.driver.get_log("performance"):
            told = json.loads(line["message"])["message"]
            if told["method"] == "Network.requestWillBeSent":
                url = told["params"]["request"]["url"]
            elif told["method"] == "Network.webSocketCreated":
                url = told["params"]["url"]
            else:
                continue
            if urlsplit(url).scheme not in ("data", "blob", "about"):
                found.add(str(urlsplit(url).hostname))
        return found


@contextmanager
def browser(width: int = 1280, height: int = 800, *, dark: bool = False, login: str | None = None) -> Iterator[Browser]:
    """A fresh browser; `login` is `user:password`, sent with every request."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    # Nothing that Chromium itself does over the network may stand in the log.
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    if dark:
        feature = {"name": "prefers-color-scheme", "value": "dark"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    if login:
        header = f"Basic {base64.b64encode(login.encode()).decode()}"
        driver.execute_cdp_cmd("Network.enable", {})
        driver.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": {"Authorization": header}})
    try:
        yield Browser(driver)
    finally:
        driver.quit()
