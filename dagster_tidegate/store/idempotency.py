"""Requests that must not take effect twice: who claimed a key first, and what was answered."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.upsert import insert

KEEP = timedelta(hours=24)
"""An answer is repeated for so long."""
MAX_REQUEST = timedelta(seconds=120)
"""A claim without an answer for so long is of a process that died, and may be taken over."""


class KeyReusedError(Exception):
    """The key belongs to another request."""


class KeyInUseError(Exception):
    """The first request with the key has no answer yet."""


@dataclass(frozen=True)
class Key:
    """A key as a client sends it.

    Attributes:
        actor: Who sends it; keys of others are other keys.
        key: The key.
        request: Digest of what is asked.
    """

    actor: str
    key: str
    request: str


@dataclass(frozen=True)
class Claim:
    """The right to do what a key's request asks.

    Attributes:
        key: The key.
        at: From when on, UTC.
        id: An id for what is made. Who takes the claim over has the same.
    """

    key: Key
    at: datetime
    id: str


@dataclass(frozen=True)
class Given:
    """What was answered to the first request with a key."""

    status: int
    body: Any


def claim(conn: sa.Connection, now: datetime, key: Key) -> Claim | Given:
    """Claim a key, or find what was answered.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        key: The key.

    Raises:
        KeyReusedError: If it belongs to another request.
        KeyInUseError: If the first request with it is under way.
    """
    id_ = str(uuid4())
    mine = {"request": key.request, "status": None, "body": id_, "at": now}
    created = conn.execute(
        insert(conn, t.idempotency_keys)
        .values(actor=key.actor, key=key.key, **mine)
        .on_conflict_do_nothing()
        .returning(t.idempotency_keys.c.key)
    ).one_or_none()
    if created is not None:
        return Claim(key, now, id_)
    row = conn.execute(sa.select(t.idempotency_keys).where(*_is(key)).with_for_update()).first()
    if row is None:  # it was pruned between the two statements
        raise KeyInUseError("the key has just been deleted: send the request again")
    if row.at > now - KEEP:
        if row.request != key.request:
            raise KeyReusedError("the key was used for another request: use a new one")
        if row.status is not None:
            return Given(row.status, row.body)
        if row.at > now - MAX_REQUEST:
            raise KeyInUseError("the first request with this key has no answer yet")
        mine["body"] = row.body
    conn.execute(t.idempotency_keys.update().where(*_is(key)).values(**mine))
    return Claim(key, now, mine["body"])


def answer(conn: sa.Connection, claimed: Claim, given: Given) -> None:
    """Keep what was answered, unless somebody has taken the claim over."""
    conn.execute(
        t.idempotency_keys.update()
        .where(*_is(claimed.key), t.idempotency_keys.c.at == claimed.at)
        .values(status=given.status, body=given.body)
    )


def forget(conn: sa.Connection, claimed: Claim) -> None:
    """Give a claim back: nothing has taken effect, and the same request may be tried again."""
    conn.execute(
        t.idempotency_keys.delete().where(
            *_is(claimed.key),
            t.idempotency_keys.c.at == claimed.at,
            t.idempotency_keys.c.status.is_(None),
        )
    )


def _is(key: Key) -> tuple[sa.ColumnElement[bool], ...]:
    return (t.idempotency_keys.c.actor == key.actor, t.idempotency_keys.c.key == key.key)
