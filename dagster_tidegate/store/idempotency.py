"""Idempotency keys: which request claimed a key, and its stored response."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.upsert import insert

KEEP = timedelta(hours=24)
"""How long a response is replayed."""
MAX_REQUEST = timedelta(seconds=120)
"""After this long without a response, the claim is taken over: its process died."""


class KeyReusedError(Exception):
    """The key belongs to another request."""


class KeyInUseError(Exception):
    """The first request with the key is in progress."""


@dataclass(frozen=True)
class RequestKey:
    """A key as a client sends it, and a digest of its request; each actor has its own keys."""

    actor: str
    key: str
    request: str


@dataclass(frozen=True)
class Claim:
    """The right to execute a key's request.

    Attributes:
        at: When it was claimed (UTC).
        id: An id for what the request creates, the same after the claim was taken over.
    """

    key: RequestKey
    at: datetime
    id: str


@dataclass(frozen=True)
class StoredAnswer:
    """The response to the first request with a key."""

    status: int
    body: Any


def claim(conn: Connection, now: datetime, key: RequestKey) -> Claim | StoredAnswer:
    """Claim a key, or return the stored response.

    Raises:
        KeyReusedError: If it belongs to another request.
        KeyInUseError: If the first request with it is in progress.
    """
    new_id = str(uuid4())
    values = {"request": key.request, "status": None, "body": new_id, "at": now}
    created = conn.execute(
        insert(conn, t.idempotency_keys)
        .values(actor=key.actor, key=key.key, **values)
        .on_conflict_do_nothing()
        .returning(t.idempotency_keys.c.key)
    ).one_or_none()
    if created is not None:
        return Claim(key, now, new_id)
    row = conn.execute(sa.select(t.idempotency_keys).where(*_is(key)).with_for_update()).first()
    if row is None:  # it was pruned between the two statements
        raise KeyInUseError("the key has just been deleted: send the request again")
    if row.at > now - KEEP:
        if row.request != key.request:
            raise KeyReusedError("the key was used for another request: use a new one")
        if row.status is not None:
            return StoredAnswer(row.status, row.body)
        if row.at > now - MAX_REQUEST:
            raise KeyInUseError(
                "the first request with this key is still in flight: repeat it later"
            )
        values["body"] = row.body
    conn.execute(t.idempotency_keys.update().where(*_is(key)).values(**values))
    return Claim(key, now, values["body"])


def answer(conn: Connection, claimed: Claim, given: StoredAnswer) -> None:
    """Store the response, unless the claim was taken over."""
    conn.execute(
        t.idempotency_keys.update()
        .where(*_is(claimed.key), t.idempotency_keys.c.at == claimed.at)
        .values(status=given.status, body=given.body)
    )


def forget(conn: Connection, claimed: Claim) -> None:
    """Release a claim: the request took no effect, and may be sent again."""
    conn.execute(
        t.idempotency_keys.delete().where(
            *_is(claimed.key),
            t.idempotency_keys.c.at == claimed.at,
            t.idempotency_keys.c.status.is_(None),
        )
    )


def _is(key: RequestKey) -> tuple[sa.ColumnElement[bool], ...]:
    return (t.idempotency_keys.c.actor == key.actor, t.idempotency_keys.c.key == key.key)
