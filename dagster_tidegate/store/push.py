"""How a process learns at once that another changed a breaker or a hold.

PostgreSQL tells who listens. SQLite can't: there each such change adds a byte to a small file
beside the database, and whoever wants to know looks at its size, which costs no query. The
database's own `data_version` would not do, since every record of the ledger moves it.
"""

import logging
import os
import selectors
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from dagster_tidegate.breaker.backend import Listener
from dagster_tidegate.breaker.waker import Waker

CHANNEL = "tidegate"
LOOK_S = 0.04
LARGEST_FILE = 1 << 16
log = logging.getLogger(__name__)
_failed: set[Path] = set()
# A channel is the database's, and each of its schemas may be a store of its own.
_SCHEMA = sa.select(sa.func.current_schema())
_NOTIFY = sa.select(sa.func.pg_notify(CHANNEL, sa.func.current_schema()))


def notify(conn: sa.Connection) -> None:
    """Tell every process, when this transaction commits, that breakers or holds changed."""
    if conn.dialect.name == "postgresql":
        conn.execute(_NOTIFY)
    else:
        conn.info["tidegate_notify"] = True


def pending(conn: sa.Connection) -> bool:
    """Return whether `touch` is due when the transaction has committed, and forget it."""
    return conn.info.pop("tidegate_notify", False)


def sidecar(engine: sa.Engine) -> Path | None:
    """Return the file beside a SQLite database that changes with breakers and holds."""
    database = engine.url.database
    if engine.dialect.name != "sqlite" or database in (None, "", ":memory:"):
        return None
    return Path(f"{database}-push")


def touch(engine: sa.Engine) -> None:
    """Tell the processes that share a SQLite database; after the commit, so that they see it.

    Where that fails, the commit stands all the same, and the others learn of it by looking.
    """
    path = sidecar(engine)
    if path is None:
        return
    try:
        _add_byte(path, Path(str(engine.url.database)))
    except OSError as error:
        if path not in _failed:
            _failed.add(path)
            log.warning("can't tell of changes at once, others see them in seconds: %s", error)


def _add_byte(path: Path, database: Path) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:
        # Who may write the database may tell of it, whatever the umask of who came first.
        mode = database.stat().st_mode & 0o666
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
        with suppress(PermissionError):  # another user was faster, and did it
            os.fchmod(file, mode)
    try:
        if os.fstat(file).st_size >= LARGEST_FILE:
            os.ftruncate(file, 0)
        os.write(file, b".")
    finally:
        os.close(file)


def listen(engine: sa.Engine, waker: Waker) -> Listener:
    """Return a listener for the changes of a database.

    Args:
        engine: The database.
        waker: Ends its waits; it stays open when the listener is closed.

    Raises:
        sqlalchemy.exc.OperationalError: If the database can't be reached.
    """
    if engine.dialect.name == "postgresql":
        return _PostgresListener(engine, waker)
    return _FileListener(sidecar(engine), waker)


class _FileListener:
    def __init__(self, path: Path | None, waker: Waker) -> None:
        self._path = path
        self._waker = waker
        self._selector = selectors.DefaultSelector()
        self._selector.register(waker, selectors.EVENT_READ)
        self._seen = self._look()

    def wait(self, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while True:
            now = self._look()
            if now != self._seen:
                self._seen = now
                return True
            left = until - time.monotonic()
            if left <= 0:
                return False
            # In memory there is no other process to hear of.
            if self._selector.select(left if self._path is None else min(LOOK_S, left)):
                self._waker.drain()
                return False

    def close(self) -> None:
        self._selector.close()

    def _look(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            found = os.stat(self._path)
        except OSError:
            return None  # not there yet, or not for this user: then it is told nothing
        return found.st_size, found.st_mtime_ns


class _PostgresListener:
    def __init__(self, engine: sa.Engine, waker: Waker) -> None:
        self._waker = waker
        self._conn = engine.connect()
        driver: Any = self._conn.connection.driver_connection
        self._conn.detach()  # a listener must not go back to the pool
        driver.autocommit = True
        self._schema = self._conn.scalar(_SCHEMA)
        driver.execute(f"LISTEN {CHANNEL}")
        self._driver = driver
        self._selector = selectors.DefaultSelector()
        self._selector.register(waker, selectors.EVENT_READ)
        self._selector.register(driver.fileno(), selectors.EVENT_READ)

    def wait(self, timeout_s: float) -> bool:
        ready = [key.fd for key, _ in self._selector.select(max(0.0, timeout_s))]
        if self._waker.fileno() in ready:
            self._waker.drain()
        if self._driver.fileno() not in ready:
            return False
        import psycopg  # only where there is PostgreSQL

        try:
            told = list(self._driver.notifies(timeout=0))
        except psycopg.Error as error:
            raise exc.OperationalError(f"LISTEN {CHANNEL}", None, error) from error
        return any(each.payload == self._schema for each in told)

    def close(self) -> None:
        self._selector.close()
        self._conn.invalidate()
        self._conn.close()
