"""The Dagster instance that a process keeps."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from dagster._core.instance.ref import InstanceRef

# dagster-webserver's defaults.
STATEMENT_TIMEOUT_MS = 15_000
POOL_RECYCLE_S = 3600
MAX_OVERFLOW = 20

_lock = threading.Lock()
_kept: list[tuple[InstanceRef, dg.DagsterInstance]] = []


def keep_connections(instance: dg.DagsterInstance) -> None:
    """Keep connections to Dagster's database open for as long as the instance lives.

    On PostgreSQL, Dagster otherwise opens one for each statement, which takes longer than the
    statement.
    """
    instance.optimize_for_webserver(STATEMENT_TIMEOUT_MS, POOL_RECYCLE_S, MAX_OVERFLOW)


@contextmanager
def kept_instance(context: dg.SensorEvaluationContext) -> Iterator[dg.DagsterInstance]:
    """Give a tick an instance that this process keeps, and its connections with it.

    `context.instance` makes one for each tick, which takes twenty times as long as the tick, since
    it looks through the migrations of Dagster's storage. After an error the next tick gets a new
    one, since the database may have closed the connections.
    """
    ref = context.instance_ref
    if ref is None:  # in memory
        yield context.instance
        return
    with _lock:
        if not _kept or _kept[0][0] != ref:
            instance = dg.DagsterInstance.from_ref(ref)
            keep_connections(instance)
            _kept[:] = [(ref, instance)]
        instance = _kept[0][1]
    try:
        yield instance
    except BaseException:
        with _lock:
            _kept[:] = [each for each in _kept if each[1] is not instance]
        raise
