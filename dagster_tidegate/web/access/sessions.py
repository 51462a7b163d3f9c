"""Sessions: what a browser has instead of a token, from its login to its logout."""

import secrets
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_tidegate.store import events
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.web.access import tokens


def begin(
    conn: sa.Connection, now: datetime, token_secret: str, length: timedelta
) -> tuple[str, datetime] | None:
    """Begin a session.

    Its secret is always a new one, so that nobody can have planted it in the browser before.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        token_secret: The token that somebody logs in with.
        length: How long it lasts; it ends with the token at the latest.

    Returns:
        The secret of the session and when it ends (UTC); None if the token lets nobody in.
    """
    c = t.tokens.c
    row = conn.execute(
        sa.select(c.id, c.name, c.expires_at).where(
            c.digest == tokens.digest(token_secret), *tokens.live(now)
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


def end(conn: sa.Connection, now: datetime, secret: str, *, actor: str) -> None:
    """End a session. Ending one that has ended is harmless."""
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
