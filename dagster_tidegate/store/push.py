"""Push: processes learn at once that another process changed a breaker or a hold.

On PostgreSQL this is LISTEN/NOTIFY. On SQLite each such change adds a byte to a small file beside
the database, and listeners poll its size, which costs no query. SQLite's own `data_version` would
not do, since every record in the ledger changes it.
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
POLL_INTERVAL_S = 0.04
MAX_FILE_BYTES = 1 << 16
log = logging.getLogger(__name__)
_failed: set[Path] = set()
# A channel is database-wide, and each schema may hold a store.
_SCHEMA = sa.select(sa.func.current_schema())
_NOTIFY = sa.select(sa.func.pg_notify(CHANNEL, sa.func.current_schema()))


def notify(conn: sa.Connection) -> None:
    """Notify all processes, when this transaction commits, that breakers or holds changed.

    `Store.begin` does so, once for all changes of a transaction.
    """
    conn.info["tidegate_notify"] = True


def pending(conn: sa.Connection) -> bool:
    """Return whether the transaction has something to notify of, and reset that."""
    return conn.info.pop("tidegate_notify", False)


def announce(conn: sa.Connection) -> None:
    """On PostgreSQL, notify the processes at the commit; on SQLite, `touch` does it after it."""
    if conn.dialect.name == "postgresql":
        conn.execute(_NOTIFY)


def sidecar(database: str) -> Path:
    """Return the file beside a SQLite database that grows with each change."""
    return Path(f"{database}-push")


def _sidecar(engine: sa.Engine) -> Path | None:
    database = engine.url.database
    if engine.dialect.name != "sqlite" or database in (None, "", ":memory:"):
        return None
    return sidecar(database)


def touch(engine: sa.Engine) -> None:
    """Notify the processes that share a SQLite database; call it after the commit.

    Where that fails, the commit stands, and the others notice the change when they next poll.
    """
    path = _sidecar(engine)
    if path is None:
        return
    try:
        _add_byte(path, Path(str(engine.url.database)))
    except OSError as error:
        if path not in _failed:
            _failed.add(path)
            log.warning(
                "can't notify other processes at once; they notice changes within seconds: %s",
                error,
            )


def _add_byte(path: Path, database: Path) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:
        # The file gets the database's mode, whatever the umask of its creator.
        mode = database.stat().st_mode & 0o666
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
        with suppress(PermissionError):  # another user created it first
            os.fchmod(file, mode)
    try:
        if os.fstat(file).st_size >= MAX_FILE_BYTES:
            os.ftruncate(file, 0)
        os.write(file, b".")
    finally:
        os.close(file)


def listen(engine: sa.Engine, waker: Waker) -> Listener:
    """Return a listener for the changes of a database.

    Args:
        waker: Ends its waits. The listener does not close it.

    Raises:
        sqlalchemy.exc.OperationalError: If the database can't be reached.
    """
    if engine.dialect.name == "postgresql":
        return _PostgresListener(engine, waker)
    return _FileListener(_sidecar(engine), waker)


class _FileListener:
    def __init__(self, path: Path | None, waker: Waker) -> None:
        self._path = path
        self._waker = waker
        self._selector = selectors.DefaultSelector()
        self._selector.register(waker, selectors.EVENT_READ)
        self._last = self._stat()

    def wait(self, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        while True:
            now = self._stat()
            if now != self._last:
                self._last = now
                return True
            left = until - time.monotonic()
            if left <= 0:
                return False
            # A database in memory has no other process.
            if self._selector.select(left if self._path is None else min(POLL_INTERVAL_S, left)):
                self._waker.drain()
                return False

    def close(self) -> None:
        self._selector.close()

    def _stat(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            stat = os.stat(self._path)
        except OSError:
            return None  # not created yet, or not readable by this user
        return stat.st_size, stat.st_mtime_ns


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
            notifications = list(self._driver.notifies(timeout=0))
        except psycopg.Error as error:
            raise exc.OperationalError(f"LISTEN {CHANNEL}", None, error) from error
        return any(each.payload == self._schema for each in notifications)

    def close(self) -> None:
        self._selector.close()
        self._conn.invalidate()
        self._conn.close()
