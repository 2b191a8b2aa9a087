"""The rows of the ledger, each sealed with a checksum over its own content. Knows nothing about files or money."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SENT = "sent"
"""Verdict of a request whose reply is not known: it may have been billed."""
ACCEPTED = "accepted"
DAMAGED = "damaged"
"""Verdict of a row whose bytes are no longer those that were written."""


@dataclass(frozen=True)
class Adaptation:
    """A parameter that an endpoint refuses for a model, and what is sent in its place."""

    parameter: str
    instead: str
    """Empty where it is left out."""
    reason: str
    """In the endpoint's words."""

    def __str__(self) -> str:
        done = f"{self.instead} is sent in its place" if self.instead else "it is left out"
        return f"{self.parameter} is refused by the endpoint, so {done} ({self.reason})"


class LedgerTable(DeclarativeBase):
    """Registry of the tables that last."""


class Sealed:
    """A row with a checksum, set whenever it is written."""

    digest: Mapped[str] = mapped_column(default="")
    """sha256 of all other columns: a flipped bit on the disk is found before it becomes a label."""


class Visit(Sealed, LedgerTable):
    """One request to a teacher and what became of it."""

    __tablename__ = "exchanges"
    key: Mapped[str] = mapped_column(primary_key=True)
    images: Mapped[str]
    """sha256 of each image, separated by a space."""
    prompt: Mapped[str]
    teacher: Mapped[str]
    sent_at: Mapped[str] = mapped_column(default="")
    """UTC of the latest attempt; empty where nothing was sent."""
    verdict: Mapped[str] = mapped_column(index=True)
    attempts: Mapped[int] = mapped_column(default=0)
    reply: Mapped[str] = mapped_column(default="")
    """JSON of the reply, or the raw text of one that was rejected."""
    model: Mapped[str] = mapped_column(default="")
    """The model that says it answered."""
    cost_usd: Mapped[float] = mapped_column(default=0.0)
    """Settled cost of all attempts [USD]."""
    reserved_usd: Mapped[float] = mapped_column(default=0.0)
    """Worst case of the attempt under way [USD]."""
    input_tokens: Mapped[int] = mapped_column(default=0)
    output_tokens: Mapped[int] = mapped_column(default=0)


class Measurement(Sealed, LedgerTable):
    """What reading and measuring one file gave, so that a resumed run does not measure it again."""

    __tablename__ = "measurements"
    key: Mapped[str] = mapped_column(primary_key=True)
    """Digest of the file, its side-cars and the version of the measurement."""
    record: Mapped[str]


class Departure(LedgerTable):
    """A picture that left the machine, or was about to: the audit trail of egress, never deleted."""

    __tablename__ = "departures"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[str]
    """UTC."""
    request: Mapped[str]
    """Key of the exchange."""
    sha256: Mapped[str]
    """Of the micrograph's file."""
    sent_sha256: Mapped[str]
    """Of the bytes that left."""
    bytes: Mapped[int]
    destination: Mapped[str]


class Batch(LedgerTable):
    """A file of requests handed to the provider's batch queue."""

    __tablename__ = "batches"
    name: Mapped[str] = mapped_column(primary_key=True)
    """Our own name for it, which the provider keeps beside its own."""
    keys: Mapped[str]
    """Keys of the exchanges, separated by a space."""
    provider_id: Mapped[str] = mapped_column(default="")
    """Empty until the provider has told it."""
    done: Mapped[bool] = mapped_column(default=False)


class Adapted(LedgerTable):
    """A parameter that an endpoint refuses for a model, so that a later run does not ask in vain."""

    __tablename__ = "adaptations"
    endpoint: Mapped[str] = mapped_column(primary_key=True)
    """Its address, the query included."""
    model: Mapped[str] = mapped_column(primary_key=True)
    parameter: Mapped[str] = mapped_column(primary_key=True)
    instead: Mapped[str]
    """What is sent in its place; empty where it is left out."""
    reason: Mapped[str]
    at: Mapped[str]
    """UTC."""


class Forgotten(LedgerTable):
    """A micrograph that was deleted on request; the hash stays, so that it does not come back."""

    __tablename__ = "forgotten"
    sha256: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[str]
    """UTC."""


@dataclass(frozen=True)
class Settlement:
    """Outcome of one attempt."""

    verdict: str
    reply: str = ""
    model: str = ""
    cost_usd: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0


def exchange_key(images: Sequence[str], prompt: str, model: str, params: Mapping[str, Any]) -> str:
    """sha256 over the content of a request: the same question about the same pixels is the same key."""
    content = json.dumps([list(images), prompt, model, dict(params)], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def seal(columns: Mapping[str, Any]) -> str:
    """The checksum over the columns of a row (its own column is left out)."""
    content = {name: value for name, value in columns.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _seal_row(_mapper: object, _connection: object, row: Any) -> None:
    row.digest = seal({column.name: getattr(row, column.name) for column in row.__table__.columns})


for _sealed in (Visit, Measurement):
    event.listen(_sealed, "before_insert", _seal_row)
    event.listen(_sealed, "before_update", _seal_row)
