"""Connections to PostgreSQL that wait for no answer without bound."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from random import random
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import event, exc

from dagster_tidegate.store.json_text import json_text

CONNECT_TIMEOUT_S = 5
MAX_CONNECTIONS = 10
STATEMENT_TIMEOUT_S = 30.0
"""The server ends a statement after so long."""
IDLE_TIMEOUT_S = 60.0
"""The server ends a transaction in which nothing happens for so long: its machine may be gone, and
whoever reads the events in their order waits for it."""
ANSWER_TIMEOUT_S = 35.0
"""A connection is given up whose server says nothing for so long: it can't end anything itself."""

MIGRATION_LOCK = 7_403_112
"""One number for all who migrate: they do so one after the other."""
MAX_MIGRATION_S = 600
LOOK_S = 0.2
LOCK_TIMEOUT_S = 2.0
"""A migration keeps nobody waiting for longer while it waits for a lock itself."""
LOCK_TRIES = 60


class Connection(psycopg.Connection):
    """A connection that is given up when an answer takes too long.

    A server that hangs, or a network that swallows packets, ends no statement; and while the other
    machine's kernel still answers, no setting of TCP notices.
    """

    unbounded = False

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Wait as psycopg does, and no longer than `ANSWER_TIMEOUT_S`."""
        return super().wait(gen if self.unbounded else self._bounded(gen), *args, **kwargs)

    def _bounded(self, gen: Any) -> Generator[Any, Any, Any]:
        until = time.monotonic() + ANSWER_TIMEOUT_S
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # psycopg resumes it now and then, ready or not
                if not ready and time.monotonic() > until:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer in {ANSWER_TIMEOUT_S:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


def create_engine(url: sa.URL, *, connections: int) -> sa.Engine:
    """Return an engine for a PostgreSQL database; what its URL says comes first.

    Args:
        url: The database.
        connections: How many connections stay open; up to `MAX_CONNECTIONS` are opened.
    """
    bounds = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(STATEMENT_TIMEOUT_S * 1000),
    }
    options = (
        f"-c statement_timeout={int(STATEMENT_TIMEOUT_S * 1000)}"
        f" -c idle_in_transaction_session_timeout={int(IDLE_TIMEOUT_S * 1000)}"
    )
    given = url.normalized_query.get("options", ())
    engine = sa.create_engine(
        url,
        connect_args={
            **{name: value for name, value in bounds.items() if name not in url.query},
            "options": " ".join([options, *given]),
        },
        json_serializer=json_text,
        pool_pre_ping=True,
        pool_size=connections,
        max_overflow=max(0, MAX_CONNECTIONS - connections),
        pool_recycle=1800,
    )

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect, _record, cargs, cparams) -> psycopg.Connection:
        return Connection.connect(*cargs, **cparams)

    return engine


@contextmanager
def migrating(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Give the one connection that may migrate; its statements take as long as they need.

    Args:
        engine: The database.

    Raises:
        sqlalchemy.exc.TimeoutError: If somebody else has been migrating for `MAX_MIGRATION_S`.
    """
    with engine.connect() as conn:
        driver: Any = conn.connection.driver_connection
        driver.unbounded = True
        try:
            until = time.monotonic() + MAX_MIGRATION_S
            # Asked for again and again: an index that is built beside its users would wait for who
            # waits in a statement.
            while not conn.scalar(sa.select(sa.func.pg_try_advisory_lock(MIGRATION_LOCK))):
                conn.rollback()
                if time.monotonic() > until:
                    raise exc.TimeoutError(f"another migration takes over {MAX_MIGRATION_S} s")
                time.sleep(LOOK_S)
            conn.execute(sa.text("SET statement_timeout = 0"))
            conn.execute(sa.text("SET idle_in_transaction_session_timeout = 0"))
            _make_schema(conn)
            conn.commit()
            event.listen(conn, "begin", _lock_briefly)
            yield conn
        finally:
            conn.invalidate()  # its settings and its lock end with it


def _lock_briefly(conn: sa.Connection) -> None:
    # Nothing outside of transactions: who builds an index beside its users waits for them.
    conn.exec_driver_sql(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}")


def _make_schema(conn: sa.Connection) -> None:
    """Make the schema that comes first in the `search_path` of the URL, where there is none yet."""
    first = conn.scalar(sa.text("SHOW search_path")).split(",")[0].strip()
    name = first[1:-1].replace('""', '"') if first.startswith('"') else first.lower()
    # Looked at first: where there is one, no right to make another is needed.
    there = sa.text("SELECT 1 FROM pg_namespace WHERE nspname = :name")
    if name != "$user" and not conn.scalar(there, {"name": name}):
        conn.execute(sa.schema.CreateSchema(name, if_not_exists=True))


def between_transactions(conn: sa.Connection, step: Callable[[], None]) -> None:
    """Do a step that needs tables for itself, in a moment in which nobody else has them.

    While it waits for a lock, all who come after it wait behind it: so it waits briefly, lets them
    go first, and tries again.

    Args:
        conn: The connection that `migrating` gave.
        step: What is to be done; it is begun anew, and finds done what it has committed.

    Raises:
        sqlalchemy.exc.OperationalError: If the lock could not be had in `LOCK_TRIES` tries.
    """
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            return step()
        except exc.OperationalError as error:
            conn.rollback()
            if not tries_left or not isinstance(error.orig, psycopg.errors.LockNotAvailable):
                raise
            time.sleep(LOCK_TIMEOUT_S * (0.5 + random()))
    return None
