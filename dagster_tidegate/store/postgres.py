"""Connections to PostgreSQL that wait for no answer without bound."""

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy import event

from dagster_tidegate.store.json_text import json_text

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_S = 30.0
"""The server ends a statement after so long."""
ANSWER_TIMEOUT_S = 35.0
"""A connection is given up whose server says nothing for so long: it can't end anything itself."""


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


def create_engine(url: sa.URL) -> sa.Engine:
    """Return an engine for a PostgreSQL database; what its URL says comes first."""
    bounds = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": int(STATEMENT_TIMEOUT_S * 1000),
    }
    options = f"-c statement_timeout={int(STATEMENT_TIMEOUT_S * 1000)}"
    given = url.normalized_query.get("options", ())
    engine = sa.create_engine(
        url,
        connect_args={
            **{name: value for name, value in bounds.items() if name not in url.query},
            "options": " ".join([options, *given]),
        },
        json_serializer=json_text,
        pool_pre_ping=True,
        pool_size=2,
        max_overflow=8,
        pool_recycle=1800,
    )

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect, _record, cargs, cparams) -> psycopg.Connection:
        return Connection.connect(*cargs, **cparams)

    return engine


@contextmanager
def unbounded(conn: sa.Connection) -> Iterator[None]:
    """Let the statements of this transaction take as long as they need."""
    driver: Any = conn.connection.driver_connection
    conn.execute(sa.text("SET LOCAL statement_timeout = 0"))
    driver.unbounded = True
    try:
        yield
    finally:
        driver.unbounded = False
