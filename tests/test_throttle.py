"""Guessing: no faster than 10 a minute whoever guesses, and nobody is locked out by it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serving import running
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serve.http import throttle
from serve.http.guard import Guard, read_credentials
from serve.http.throttle import Throttle, account_of

KEY = "key-of-a-program-1234"
HOME, AWAY = ("10.0.0.1",), ("6.6.6.6",)
STRANGERS = [(f"7.7.7.{n}",) for n in range(100)]


@pytest.fixture
def now() -> list[float]:
    return [1000.0]


@pytest.fixture
def guard(now: list[float]) -> Throttle:
    return Throttle({"user ada"}, clock=lambda: now[0])


def guesses(guard: Throttle, places: tuple[str, ...], account: str = "user ada", tries: int = 50) -> int:
    """How many of so many wrong passwords are really checked."""
    checked = 0
    for _ in range(tries):
        if guard.admits(account, places):
            guard.failed(account, places)
            checked += 1
    return checked


# --------------------------------------------------------------------------------------- the budget


def test_many_addresses_guess_no_faster_than_one(guard: Throttle) -> None:
    assert sum(guesses(guard, stranger) for stranger in STRANGERS) <= 10


def test_who_shares_an_address_with_the_owner_has_ten_a_minute_in_all(guard: Throttle, now: list[float]) -> None:
    guard.succeeded("user ada", HOME)
    for _ in range(5):
        assert 5 <= sum(guesses(guard, place) for place in (*STRANGERS, HOME, AWAY)) <= 10
        now[0] += 60.1


def test_the_budget_slides(guard: Throttle, now: list[float]) -> None:
    """No 60 seconds hold more than ten, wherever they begin."""
    guard.succeeded("user ada", HOME)
    checked = []
    for _ in range(600):
        for place in (*STRANGERS[:5], HOME):
            checked += [now[0]] * guesses(guard, place, tries=2)
        now[0] += 0.5
    assert max(sum(at <= other < at + 60 for other in checked) for at in checked) <= 10
    assert len(checked) > 40


def test_made_up_names_wash_nothing_away(guard: Throttle) -> None:
    """A table that forgets the oldest forgets failures at a real account once enough others are tried."""
    checked = 0
    for number in range(3 * throttle.STRANGERS):
        guard.failed(f"user nobody-{number}", AWAY)
        if number % 1000 == 0:
            checked += guesses(guard, AWAY)
    assert checked <= 10
    assert len(guard._others) <= throttle.STRANGERS


# --------------------------------------------------------------------------------------- the owner


def test_strangers_lock_nobody_out_at_home(guard: Throttle) -> None:
    guard.succeeded("user ada", HOME)
    for stranger in STRANGERS:
        guesses(guard, stranger)
    assert guard.admits("user ada", HOME)


def test_one_stranger_keeps_nobody_from_a_new_place(guard: Throttle) -> None:
    guesses(guard, AWAY)
    assert guard.admits("user ada", HOME)


def test_a_browser_that_is_known_is_not_its_neighbour(guard: Throttle) -> None:
    """Behind a proxy that nobody named, all have one address."""
    browser = (*HOME, "device 1")
    guard.succeeded("user ada", browser)
    assert guesses(guard, HOME) == guesses(guard, (*HOME, "device 2"), tries=50) + 5
    assert guard.admits("user ada", browser)


def test_other_accounts_are_not_touched(guard: Throttle) -> None:
    guesses(guard, AWAY)
    assert guard.admits("user bob", AWAY)


def test_places_are_bounded(guard: Throttle) -> None:
    for number in range(10 * throttle.PLACES):
        guard.succeeded("user ada", (f"10.0.{number}",))
    assert len(guard._real["user ada"].homes) == throttle.PLACES


def test_a_key_stands_by_its_first_half() -> None:
    assert account_of(KEY) == account_of(KEY[:10] + "x" * 11)
    assert account_of(KEY) != account_of("x" + KEY[1:])
    assert account_of("ada:1") == account_of("ada:2:3")
    assert account_of("\ud800")


# --------------------------------------------------------------------------------------- through the door


@pytest.fixture
def locked(tmp_path: Path) -> Guard:
    (tmp_path / "logins.txt").write_text(f"ada:correct horse\nbob:battery staple\n{KEY}\n")

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.user)

    app = Starlette(routes=[Route("/v1/models", hello), Route("/", hello)])
    return Guard(app, credentials=read_credentials(tmp_path / "logins.txt"))


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def basic(pair: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def status(url: str, headers: dict[str, str], source: str = "127.0.0.1") -> int:
    with httpx.Client(transport=httpx.HTTPTransport(local_address=source)) as http:
        return http.get(f"{url}/v1/models", headers=headers).status_code


@pytest.mark.parametrize(
    "guess",
    [
        lambda n: bearer(f"ada:guess number {n}"),
        lambda n: basic(f"ada:guess number {n}"),
        lambda n: basic(f"x{n}:ada:guess number {n}"),
        lambda n: bearer("ada:guess") if n % 2 else basic("ada:guess"),
    ],
    ids=["bearer", "basic", "account as password", "both"],
)
def test_an_account_is_guessed_slowly_however_it_is_named(locked: Guard, guess: object) -> None:
    """Old: 100 a minute through Bearer, and without end as the password of made-up users."""
    assert callable(guess)
    checked: list[str] = []
    known = locked._credentials
    assert known is not None

    class Counting:
        accounts = known.accounts

        def owner(self, secret: str) -> str | None:
            checked.append(secret)
            return known.owner(secret)

    locked._credentials = Counting()  # type: ignore[assignment]
    with running(locked) as url:
        wrong = [status(url, guess(number)) for number in range(40)]
        assert sum(secret.startswith("ada:") for secret in checked) <= 10
        assert status(url, basic("bob:battery staple")) == 200
        assert status(url, basic("ada:correct horse"), "127.0.0.2") == 200
    assert set(wrong) <= {401, 429}


def test_a_wrong_key_slows_down_its_address_and_a_right_one_gets_in(locked: Guard) -> None:
    with running(locked) as url:
        wrong = [status(url, bearer(f"{number:021d}")) for number in range(40)]
        assert wrong.count(401) <= 10
        assert wrong.count(429) >= 30
        assert status(url, bearer(KEY)) == 200
        assert status(url, basic(f"x:{KEY}")) == 200


def test_half_a_key_is_guessed_slowly(locked: Guard) -> None:
    checked: list[str] = []
    known = locked._credentials
    assert known is not None
    object.__setattr__(known, "digests", _Counted(known.digests, checked))
    with running(locked) as url:
        for number in range(40):
            status(url, bearer(f"{KEY[:10]}{number:011d}"))
    assert len(checked) <= 10


class _Counted(tuple):  # type: ignore[type-arg]
    """Digests that note every look at them."""

    def __new__(cls, digests: tuple[tuple[str, bytes], ...], looks: list[str]) -> _Counted:
        self = super().__new__(cls, digests)
        self.looks = looks  # type: ignore[attr-defined]
        return self

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        self.looks.append("look")  # type: ignore[attr-defined]
        return super().__iter__()


def test_a_browser_is_given_a_cookie_and_keeps_its_way_in(locked: Guard) -> None:
    with running(locked) as url, httpx.Client(base_url=url, headers=basic("ada:correct horse")) as browser:
        reply = browser.get("/")
        assert {"HttpOnly", "SameSite=Lax"} <= {part.strip() for part in reply.headers["set-cookie"].split(";")}
        assert "set-cookie" not in browser.get("/").headers
        assert [status(url, basic("ada:guess")) for _ in range(20)].count(429) == 15
        assert browser.get("/").status_code == 200
        assert "set-cookie" not in httpx.get(f"{url}/v1/models", headers=basic("bob:battery staple")).headers


def test_behind_a_proxy_that_is_named_addresses_are_told_apart(locked: Guard) -> None:
    """The last address that is not the proxy's; what a client wrote before it counts for nothing."""

    def through(url: str, client: str, pair: str) -> int:
        headers = basic(pair) | {"x-forwarded-for": f"10.0.0.1, {client}"}
        return httpx.get(f"{url}/v1/models", headers=headers).status_code

    with running(locked, proxies=("127.0.0.1/32",)) as url:
        assert through(url, "10.0.0.1", "ada:correct horse") == 200
        assert [through(url, "6.6.6.6", "ada:guess") for _ in range(9)].count(401) == throttle.ELSEWHERE_EACH
        assert through(url, "10.0.0.1", "ada:correct horse") == 200
        assert through(url, "6.6.6.6", "ada:correct horse") == 429


def test_failed_logins_are_in_the_log(locked: Guard, caplog: pytest.LogCaptureFixture) -> None:
    """With account and address, once for each; what a stranger wrote cannot begin a line of its own."""
    with running(locked) as url:
        for _ in range(20):
            status(url, basic("ada:guess"))
        status(url, basic("eve\nERROR root: all is lost:guess"))
        status(url, bearer("x" * 20))
    assert [record.getMessage() for record in caplog.records] == [
        "failed login of 'ada' from '127.0.0.1'",
        "failed login of 'eve\\nERROR root' from '127.0.0.1'",
        "failed login with a key from '127.0.0.1'",
    ]
