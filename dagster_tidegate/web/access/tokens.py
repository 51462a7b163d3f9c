"""Tokens: made once, shown once, kept as digests.

A token is `tdg_` and 32 random bytes. Nobody can guess those, so a plain SHA-256 digest is all that
is needed to keep one and to find it again, by an index.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.holds import SystemActor
from dagster_tidegate.store import events
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.upsert import insert
from dagster_tidegate.text import checked
from dagster_tidegate.web.access.identity import Role

PREFIX = "tdg_"
SECRET_BYTES = 32
MAX_NAME = 128
SECRET = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{20,}}")
"""What looks like a token, whole or cut off."""


class TokenError(Exception):
    """A token can't be created or revoked; the message says why and what would be right."""


@dataclass(frozen=True)
class Token:
    """What is known of a token. Times are UTC.

    Attributes:
        id: Its number.
        name: The actor of all that is done with it.
        role: What it allows.
        created_at: When it was made.
        created_by: By whom.
        expires_at: When it ends by itself; None: never.
        revoked_at: When it was revoked, if it was.
        revoked_by: By whom.
        used_at: About when it was last used; None: never.
    """

    id: int
    name: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None
    used_at: datetime | None

    def status(self, now: datetime) -> str:
        """Return `live`, `expired` or `revoked`."""
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        return "live" if self.revoked_at is None else "revoked"


def digest(secret: str) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    conn: sa.Connection,
    now: datetime,
    name: str,
    role: Role,
    *,
    actor: str,
    expires_at: datetime | None = None,
) -> tuple[Token, str]:
    """Make a token.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        name: The actor of all that will be done with it. No two live tokens have the same.
        role: What it allows.
        actor: Who makes it.
        expires_at: When it ends by itself (UTC), or None.

    Returns:
        What is known of it, and its secret, which is nowhere else.

    Raises:
        TokenError: If the name can't be used, or `expires_at` is not after `now`.
    """
    try:
        checked(name, "name", MAX_NAME)
    except ValueError as error:
        raise TokenError(str(error)) from error
    if name.casefold() in set(SystemActor):
        raise TokenError(f"{name!r} is what Tidegate itself is called in its records: use another")
    if expires_at is not None and expires_at <= now:
        raise TokenError(f"a token can't expire at {expires_at}: it is {now}")
    # One that has expired gives its name back.
    over = (t.tokens.c.revoked_at.is_(None), t.tokens.c.expires_at <= now)
    conn.execute(
        t.tokens.update()
        .where(t.tokens.c.name == name, *over)
        .values(revoked_at=t.tokens.c.expires_at, revoked_by=SystemActor.EXPIRY)
    )
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    row = conn.execute(
        insert(conn, t.tokens)
        .values(
            name=name,
            role=role.value,
            digest=digest(secret),
            created_at=now,
            created_by=actor,
            expires_at=expires_at,
        )
        .on_conflict_do_nothing()
        .returning(*_COLUMNS)
    ).one_or_none()
    if row is None:
        raise TokenError(f"there is a token {name!r}: revoke it, or use another name")
    token = _token(row)
    events.write(
        conn,
        now,
        kind=EventKind.TOKEN,
        name=name,
        to_status="created",
        actor=actor,
        after={"role": role.value, "expires_at": _iso(expires_at)},
    )
    return token, secret


def revoke(conn: sa.Connection, now: datetime, name: str, *, actor: str) -> Token:
    """End a token and the sessions that were begun with it.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        name: Its name.
        actor: Who ends it.

    Returns:
        What is known of it.

    Raises:
        TokenError: If no live token has the name.
    """
    row = conn.execute(
        t.tokens.update()
        .where(t.tokens.c.name == name, t.tokens.c.revoked_at.is_(None))
        .values(revoked_at=now, revoked_by=actor)
        .returning(*_COLUMNS)
    ).one_or_none()
    if row is None:
        raise TokenError(f"there is no live token {name!r}: see 'tidegate tokens list'")
    token = _token(row)
    conn.execute(t.sessions.delete().where(t.sessions.c.token == token.id))
    events.write(
        conn,
        now,
        kind=EventKind.TOKEN,
        name=name,
        from_status="created",
        to_status="revoked",
        actor=actor,
        before={"role": token.role.value, "expires_at": _iso(token.expires_at)},
    )
    return token


def read(conn: sa.Connection) -> Sequence[Token]:
    """Return all tokens that were ever made, the oldest first."""
    return [_token(row) for row in conn.execute(sa.select(*_COLUMNS).order_by(t.tokens.c.id))]


def any_made(conn: sa.Connection) -> bool:
    """Return whether a token was ever made; those that ended count."""
    return conn.execute(sa.select(t.tokens.c.id).limit(1)).first() is not None


def any_live(conn: sa.Connection, now: datetime) -> bool:
    """Return whether a token lets somebody in."""
    return conn.execute(sa.select(t.tokens.c.id).where(*live(now)).limit(1)).first() is not None


def live(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions under which a token lets somebody in."""
    c = t.tokens.c
    return c.revoked_at.is_(None), sa.or_(c.expires_at.is_(None), c.expires_at > now)


_COLUMNS = [column for column in t.tokens.c if column.name != "digest"]


def _token(row: sa.Row) -> Token:
    values = dict(row._mapping)
    return Token(**{**values, "role": Role(values["role"])})


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
