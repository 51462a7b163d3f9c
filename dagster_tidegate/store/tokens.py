"""API tokens: created once, shown once, stored as digests.

A token is `tdg_` followed by 32 random bytes. It can't be guessed, so a plain SHA-256 digest is
enough to store it and to look it up by an index.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa

from dagster_tidegate.holds import SystemActor
from dagster_tidegate.store import events
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.upsert import insert
from dagster_tidegate.text import checked

PREFIX = "tdg_"
SECRET_BYTES = 32
MAX_NAME = 128
SECRET = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{20,}}")
"""Matches a token, whole or truncated."""


class Role(StrEnum):
    """What the holder of a token may do. Each role includes those before it."""

    VIEWER = "viewer"
    """Reads."""
    OPERATOR = "operator"
    """Holds, releases, starts, pauses, resumes, cancels."""
    ADMIN = "admin"
    """Everything: also forces a breaker closed, and controls campaigns of other owners."""

    def allows(self, needed: "Role") -> bool:
        """Return whether this role includes `needed`.

        Example:
            >>> Role.OPERATOR.allows(Role.VIEWER)
            True
            >>> Role.VIEWER.allows(Role.OPERATOR)
            False
        """
        order = list(Role)
        return order.index(self) >= order.index(needed)


class TokenError(Exception):
    """A token can't be created or revoked; the message says why, and what to do."""


@dataclass(frozen=True)
class Token:
    """A token, without its secret. Times are UTC.

    Attributes:
        name: The actor that changes made with it are recorded under.
        expires_at: When it expires; None: never.
        used_at: When it was last used, to the minute; None: never.
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


@dataclass(frozen=True)
class Holder:
    """Who a live token or session belongs to."""

    token: int
    name: str
    role: Role
    used_at: datetime | None = field(compare=False)


def digest(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    conn: Connection,
    now: datetime,
    name: str,
    role: Role,
    *,
    actor: str,
    expires_at: datetime | None = None,
) -> tuple[Token, str]:
    """Create a token, and return it with its secret, which is stored nowhere.

    Raises:
        TokenError: If a live token has the name, the name is not allowed, or `expires_at` is not
            after `now`.
    """
    try:
        checked(name, "name", MAX_NAME)
    except ValueError as error:
        raise TokenError(str(error)) from error
    if name.casefold() in set(SystemActor):
        raise TokenError(f"{name!r} is reserved for Tidegate itself: use another name")
    if expires_at is not None and expires_at <= now:
        raise TokenError(f"a token can't expire at {expires_at}: it is {now}")
    # An expired token gives its name back.
    expired = (t.tokens.c.revoked_at.is_(None), t.tokens.c.expires_at <= now)
    conn.execute(
        t.tokens.update()
        .where(t.tokens.c.name == name, *expired)
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
        raise TokenError(f"a token {name!r} exists already: revoke it, or use another name")
    token = _token(row)
    events.write(
        conn,
        now,
        kind=EventKind.TOKEN,
        name=name,
        to_status="created",
        actor=actor,
        after=_recorded(token),
    )
    return token, secret


def revoke(conn: Connection, now: datetime, name: str, *, actor: str) -> Token:
    """Revoke a token, and end the sessions that were started with it.

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
        before=_recorded(token),
    )
    return token


def read(conn: Connection) -> Sequence[Token]:
    """Return all tokens, revoked and expired ones included, the oldest first."""
    return [_token(row) for row in conn.execute(sa.select(*_COLUMNS).order_by(t.tokens.c.id))]


def any_created(conn: Connection) -> bool:
    """Return whether a token was ever created; revoked and expired ones count."""
    return conn.scalar(sa.select(t.tokens.c.id).limit(1)) is not None


def any_live(conn: Connection, now: datetime) -> bool:
    """Return whether there is a token that is neither revoked nor expired."""
    return conn.scalar(sa.select(t.tokens.c.id).where(live(now)).limit(1)) is not None


def holder(conn: Connection, now: datetime, digest: str) -> Holder | None:
    """Return who a token belongs to, by its digest; None unless it is live."""
    return _holder(conn, t.tokens.c.digest == digest, live(now))


def holder_of_session(conn: Connection, now: datetime, digest: str) -> Holder | None:
    """Return who a session belongs to, by its digest; None unless it and its token are live."""
    s = t.sessions.c
    return _holder(
        conn, s.token == t.tokens.c.id, s.digest == digest, s.expires_at > now, live(now)
    )


def mark_used(conn: Connection, now: datetime, token: int) -> None:
    """Record that a token is in use."""
    conn.execute(t.tokens.update().where(t.tokens.c.id == token).values(used_at=now))


def live(now: datetime) -> sa.ColumnElement[bool]:
    """Return the condition that a token is neither revoked nor expired."""
    c = t.tokens.c
    return c.revoked_at.is_(None) & (c.expires_at.is_(None) | (c.expires_at > now))


_COLUMNS = [column for column in t.tokens.c if column.name != "digest"]


def _holder(conn: Connection, *where: sa.ColumnElement[bool]) -> Holder | None:
    c = t.tokens.c
    row = conn.execute(sa.select(c.id, c.name, c.role, c.used_at).where(*where)).one_or_none()
    return None if row is None else Holder(row.id, row.name, Role(row.role), row.used_at)


def _token(row: sa.Row) -> Token:
    return Token(**{**row._asdict(), "role": Role(row.role)})


def _recorded(token: Token) -> dict[str, str | None]:
    expires_at = None if token.expires_at is None else token.expires_at.isoformat()
    return {"role": token.role.value, "expires_at": expires_at}
