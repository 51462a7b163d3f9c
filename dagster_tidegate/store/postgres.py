"""Connections to PostgreSQL, with a timeout on every wait."""

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
"""The server cancels a statement after this long."""
IDLE_TIMEOUT_S = 60.0
"""The server ends a transaction that was idle for this long: its machine may be gone, and readers
of the events wait for it."""
ANSWER_TIMEOUT_S = 35.0
"""A connection is dropped when the server was silent for this long."""

MIGRATION_LOCK = 7_403_112
"""Key of the advisory lock that serialises migrations."""
MAX_MIGRATION_S = 600
POLL_INTERVAL_S = 0.2
LOCK_TIMEOUT_S = 2.0
"""How long a migration waits for a lock, while others queue behind it."""
LOCK_TRIES = 60

# The driver takes these for errors of the program. The first is what a server says that has become
# a replica, or has no space left at a provider who then permits no writes.
_AWAY = (
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
)


class Connection(psycopg.Connection):
    """A connection that is dropped when an answer takes too long.

    A hung server, or a network that drops packets, does not enforce `statement_timeout`; and while
    the other machine's kernel still acknowledges packets, no TCP setting notices.
    """

    unbounded = False

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        """Wait as psycopg does, for at most `ANSWER_TIMEOUT_S`."""
        return super().wait(gen if self.unbounded else self._bounded(gen), *args, **kwargs)

    def _bounded(self, gen: Any) -> Generator[Any, Any, Any]:
        until = time.monotonic() + ANSWER_TIMEOUT_S
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # psycopg resumes it periodically, ready or not
                if not ready and time.monotonic() > until:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer in {ANSWER_TIMEOUT_S:g} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value


def create_engine(url: sa.URL, *, connections: int) -> sa.Engine:
    """Return an engine for a PostgreSQL database. Settings in its URL override the timeouts here.

    Args:
        connections: Size of the pool; up to `MAX_CONNECTIONS` are opened under load.
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

    @event.listens_for(engine, "handle_error")
    def _away(context: sa.engine.ExceptionContext) -> exc.OperationalError | None:
        error = context.original_exception
        if not isinstance(error, _AWAY):
            return None
        context.is_disconnect = True  # the next connection may reach the server that writes
        return exc.OperationalError(context.statement, context.parameters, error)

    return engine


@contextmanager
def migrating(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection that has the migration lock and no statement timeout.

    Raises:
        sqlalchemy.exc.TimeoutError: If another migration has taken over `MAX_MIGRATION_S`.
    """
    with engine.connect() as conn:
        driver: Any = conn.connection.driver_connection
        driver.unbounded = True
        try:
            until = time.monotonic() + MAX_MIGRATION_S
            # Polled: CREATE INDEX CONCURRENTLY waits for transactions that wait in a statement.
            while not conn.scalar(sa.select(sa.func.pg_try_advisory_lock(MIGRATION_LOCK))):
                conn.rollback()
                if time.monotonic() > until:
                    raise exc.TimeoutError(f"another migration takes over {MAX_MIGRATION_S} s")
                time.sleep(POLL_INTERVAL_S)
            conn.execute(sa.text("SET statement_timeout = 0"))
            conn.execute(sa.text("SET idle_in_transaction_session_timeout = 0"))
            _make_schema(conn)
            conn.commit()
            event.listen(conn, "begin", _lock_briefly)
            yield conn
        finally:
            conn.invalidate()  # ends its settings and its lock


def _lock_briefly(conn: sa.Connection) -> None:
    # Not outside of transactions: CREATE INDEX CONCURRENTLY waits for its users.
    conn.exec_driver_sql(f"SET LOCAL lock_timeout = {int(LOCK_TIMEOUT_S * 1000)}")


def _make_schema(conn: sa.Connection) -> None:
    """Create the first schema in the `search_path` of the URL, if it does not exist."""
    first = conn.scalar(sa.text("SHOW search_path")).split(",")[0].strip()
    name = first[1:-1].replace('""', '"') if first.startswith('"') else first.lower()
    # Checked first: an existing schema needs no CREATE privilege.
    exists = sa.text("SELECT 1 FROM pg_namespace WHERE nspname = :name")
    if name != "$user" and not conn.scalar(exists, {"name": name}):
        conn.execute(sa.schema.CreateSchema(name, if_not_exists=True))


def between_transactions(conn: sa.Connection, step: Callable[[], None]) -> None:
    """Run a step that needs exclusive locks on tables in use.

    While it waits for a lock, later statements queue behind it: so it waits briefly, lets them go
    first, and tries again.

    Args:
        step: The step; a later try skips what an earlier one has committed.

    Raises:
        sqlalchemy.exc.OperationalError: If it did not get the locks in `LOCK_TRIES` tries.
    """
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            return step()
        except exc.OperationalError as error:
            conn.rollback()
            busy = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)
            if not tries_left or not isinstance(error.orig, busy):
                raise
            time.sleep(LOCK_TIMEOUT_S * (0.5 + random()))
    return None
