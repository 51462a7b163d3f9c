"""Sessions: what a browser has instead of a token, from login to logout."""

import secrets
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.store import events, tokens
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind


def begin(
    conn: Connection, now: datetime, token_secret: str, length: timedelta
) -> tuple[str, datetime] | None:
    """Start a session, and return its secret and when it expires (UTC).

    It expires with its token at the latest. Its secret is always new, so that nobody can have
    planted it in the browser before. Returns None unless the token is live.
    """
    c = t.tokens.c
    row = conn.execute(
        sa.select(c.id, c.name, c.expires_at).where(
            c.digest == tokens.digest(token_secret), tokens.live(now)
        )
    ).one_or_none()
    if row is None:
        return None
    conn.execute(t.sessions.delete().where(t.sessions.c.expires_at <= now))
    secret = secrets.token_urlsafe(tokens.SECRET_BYTES)
    expires_at = min(now + length, row.expires_at or now + length)
    conn.execute(
        t.sessions.insert().values(
            digest=tokens.digest(secret), token=row.id, created_at=now, expires_at=expires_at
        )
    )
    events.write(
        conn, now, kind=EventKind.SESSION, name=row.name, to_status="begun", actor=row.name
    )
    return secret, expires_at


def end(conn: Connection, now: datetime, secret: str, *, actor: str) -> None:
    """End a session. Ending it twice is harmless."""
    ended = conn.execute(t.sessions.delete().where(t.sessions.c.digest == tokens.digest(secret)))
    if ended.rowcount:
        events.write(
            conn,
            now,
            kind=EventKind.SESSION,
            name=actor,
            from_status="begun",
            to_status="ended",
            actor=actor,
        )
