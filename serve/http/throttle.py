"""How often a password may be guessed: no faster than 10 times a minute, without locking its owner out.

A guess is refused *unchecked* once its budget is used up: to check it first and refuse only what is wrong would let
everyone guess without end. So the question is whose budget it is.

* An account has one budget for all strangers together, so that many addresses are no faster than one; and a single
  address has less than all of it, so that one stranger does not keep the owner from logging in at a new place.
* A place where the account has logged in before, an address or a browser with the cookie of that login, has its own
  budget. Strangers elsewhere cannot use that up, so they lock nobody out.
* Both together are the 10 a minute, for who shares an address with the owner and has others besides.
* A bare key belongs to no account. Its first half stands for one: a guess can only be right with the right half, so
  every key is guessed no faster than a password, and who does not know half of it cannot lock its owner out.
* An account that does not exist looks the same from outside. Those are the only ones that are forgotten when too many
  are tried: otherwise a crowd of made-up names would wash away what is remembered of a real one.

Success clears nothing: the owner's logins must not pay for guesses from the same address. What is known of places is
forgotten when the process ends. Knows nothing about HTTP.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

MINUTE_S = 60.0
AT_HOME = 5
"""Failures a minute of an account at a place where it has logged in."""
ELSEWHERE = 5
"""Failures a minute of an account at all other addresses together."""
ELSEWHERE_EACH = 3
"""Failures a minute of an account at one of them."""
PLACES = 64
"""Places remembered of an account."""
STRANGERS = 4096
"""Accounts remembered that do not exist."""


def account_of(secret: str) -> str:
    """The account a secret belongs to: the user of `user:password`, or what stands for the owner of a bare key."""
    user, colon, _ = secret.partition(":")
    half = sha256(secret[: len(secret) // 2].encode("utf-8", "surrogatepass")).hexdigest()
    return f"user {user[:64]}" if colon else f"key {half[:16]}"


@dataclass
class _Account:
    strangers: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=ELSEWHERE))
    """Failures: time and address."""
    homes: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    """Place of a login -> failures there."""


class Throttle:
    """Remembers failed logins of the last minute. Places of a request: its address, then what else tells it apart."""

    def __init__(self, accounts: Collection[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._real = {name: _Account() for name in accounts}
        self._others: OrderedDict[str, _Account] = OrderedDict()

    def admits(self, account: str, places: Sequence[str]) -> bool:
        """Whether a secret of this account may be checked at all."""
        known, oldest = self._account(account), self._clock() - MINUTE_S
        home = _home(known, places)
        if home is not None:
            return sum(at > oldest for at in known.homes[home]) < AT_HOME
        recent = [address for at, address in known.strangers if at > oldest]
        return len(recent) < ELSEWHERE and recent.count(places[0]) < ELSEWHERE_EACH

    def failed(self, account: str, places: Sequence[str]) -> None:
        """Remember a secret that was wrong."""
        known = self._account(account)
        home = _home(known, places)
        if home is None:
            known.strangers.append((self._clock(), places[0]))
        else:
            known.homes[home].append(self._clock())

    def succeeded(self, account: str, places: Sequence[str]) -> None:
        """Remember where an account has logged in."""
        homes = self._account(account).homes
        for place in places:
            homes.setdefault(place, deque(maxlen=AT_HOME))
            homes.move_to_end(place)
        while len(homes) > PLACES:
            homes.popitem(last=False)

    def _account(self, name: str) -> _Account:
        if name in self._real:
            return self._real[name]
        found = self._others.setdefault(name, _Account())
        self._others.move_to_end(name)
        if len(self._others) > STRANGERS:
            self._others.popitem(last=False)
        return found


def _home(account: _Account, places: Sequence[str]) -> str | None:
    """The most telling of the places where the account has logged in."""
    return next((place for place in reversed(places) if place in account.homes), None)
