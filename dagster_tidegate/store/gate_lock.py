"""One gate at a time changes Dagster; nobody else waits for it, however slow Dagster is.

A value in Dagster has no version, so that a write which comes late can't be refused: the writes of
two gates must not overlap. The lock is nobody's as soon as its holder dies.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import sqlalchemy as sa
from filelock import FileLock, Timeout

from dagster_tidegate.store.database import Store

LOOK_S = 0.05
IDLE_TIMEOUT_S = 60
"""PostgreSQL takes the lock from a machine that says nothing for so long: it may be gone."""
_KEY = 0x7469_6465  # "tide"; any number, the same for every gate
# A lock is the database's, and each of its schemas may be a store of its own.
_STORE = sa.func.hashtext(sa.func.current_schema())
_TRY = sa.select(sa.func.pg_try_advisory_xact_lock(_KEY, _STORE))
_in_memory = threading.Lock()


class GateBusyError(Exception):
    """Another gate is changing Dagster."""


@contextmanager
def gate_lock(store: Store, wait_s: float) -> Iterator[Callable[[], None]]:
    """Keep other gates from changing takeovers and Dagster. No transaction of the store is open.

    Args:
        store: The store that the gates share.
        wait_s: How long to wait for another gate, in seconds.

    Yields:
        What raises `sqlalchemy.exc.DBAPIError` if the lock was lost; to be called between writes.

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
                sleep(LOOK_S)
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
        # Who may write the database may keep others out too, whatever the umask of who came first.
        lock = FileLock(f"{database}-gate", mode=database.stat().st_mode & 0o666)
        try:
            lock.acquire(timeout=wait_s, poll_interval=LOOK_S)
        except Timeout:
            raise busy from None
        try:
            yield lambda: None
        finally:
            lock.release()
