"""The lock of the gate: one gate at a time changes Dagster, and nobody else waits for it.

A value in Dagster has no version, so a late write can't be refused: the writes of two gates must
not overlap. The lock is released when its holder dies.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import sqlalchemy as sa
from filelock import FileLock, Timeout

from dagster_tidegate.store.database import Store

POLL_INTERVAL_S = 0.05
IDLE_TIMEOUT_S = 60
"""PostgreSQL releases the lock of a client that was silent for so long: its machine may be gone."""
_KEY = 0x7469_6465  # "tide"; any number, the same for every gate
# The lock is database-wide, and each schema may hold a store.
_STORE = sa.func.hashtext(sa.func.current_schema())
_TRY = sa.select(sa.func.pg_try_advisory_xact_lock(_KEY, _STORE))
_in_memory = threading.Lock()


class GateBusyError(Exception):
    """Another gate is changing Dagster."""


@contextmanager
def gate_lock(store: Store, wait_s: float) -> Iterator[Callable[[], None]]:
    """Keep other gates from changing takeovers and Dagster, without an open transaction.

    Args:
        wait_s: How long to wait for another gate, in seconds.

    Yields:
        A function to call between writes, which raises one of `DATABASE_ERRORS` if the lock was
            lost.

    Raises:
        GateBusyError: If another gate has not finished by then.
    """
    busy = GateBusyError(f"another gate has been changing Dagster for {wait_s:g} s")
    if not store.is_sqlite:
        with store.engine.connect() as conn:
            conn.execute(
                sa.text(f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_S}s'")
            )
            until = monotonic() + wait_s
            while not conn.scalar(_TRY):
                if monotonic() > until:
                    raise busy
                sleep(POLL_INTERVAL_S)
            yield lambda: conn.execute(sa.text("SELECT 1")).close()
    elif store.url.database in (None, "", ":memory:"):
        if not _in_memory.acquire(timeout=wait_s):
            raise busy
        try:
            yield lambda: None
        finally:
            _in_memory.release()
    else:
        database = Path(str(store.url.database))
        with store.engine.connect():  # says what to do if the database is gone
            # The lock file gets the database's mode, whatever the umask of its creator.
            lock = FileLock(f"{database}-gate", mode=database.stat().st_mode & 0o666)
        try:
            lock.acquire(timeout=wait_s, poll_interval=POLL_INTERVAL_S)
        except Timeout:
            raise busy from None
        try:
            yield lambda: None
        finally:
            lock.release()
