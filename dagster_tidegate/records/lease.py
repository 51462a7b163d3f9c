"""The lease on a record loop, which keeps a second process of the same run out of it."""

import time
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread
from uuid import uuid4

from dagster_tidegate.records.host import LoopHost
from dagster_tidegate.records.retry import retry_while_unreachable
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import ledger, loops
from dagster_tidegate.store.database import UNREACHABLE
from dagster_tidegate.store.ledger import AttemptOverError

LEASE = timedelta(seconds=120)
RENEW_INTERVAL_S = 30.0
POLL_INTERVAL_S = 1.0
JOIN_TIMEOUT_S = 5.0


class Lease:
    """Holds the lease on a record loop while entered, and renews it in a thread.

    Dagster may launch a run twice, for example with two daemons. The second process waits here
    until the first has finished and then finds every record done, or until the lease of a dead
    first process has expired. An expired lease also lets another attempt take over the campaign
    run although Dagster believes that this run is alive. Between loops there is no lease, and
    only Dagster's status counts.

    Args:
        is_canceled: Returns whether to stop waiting for another process.

    Attributes:
        waited: Whether another process held the lease first.
        lost: Whether another process took the lease: this one did not renew it in time.
    """

    def __init__(self, host: LoopHost, op: str, is_canceled: Callable[[], bool]) -> None:
        self._host, self._op = host, op
        self._is_canceled = is_canceled
        self._worker = uuid4().hex
        self._released = Event()
        self._thread = Thread(target=self._renew, name="tidegate-lease", daemon=True)
        self.waited = False
        self.lost = False

    def __enter__(self) -> "Lease":
        try:
            self._acquire()
        except BaseException:
            self._release()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join(JOIN_TIMEOUT_S)
        self._release()

    def _acquire(self) -> None:
        log = self._host.log
        while not retry_while_unreachable(self._claim, log):
            if not self.waited:
                log.warning(
                    "Another process of Dagster run %s is processing these records; waiting for "
                    "it. Was the run launched twice?",
                    self._host.row.dagster_run,
                )
            self.waited = True
            if self._is_canceled():
                raise AttemptOverError("stopped while another process was processing the records")
            time.sleep(POLL_INTERVAL_S)
            retry_while_unreachable(self._require_processing, log)
        if self.waited:  # the other process may have ended the attempt just before it released
            retry_while_unreachable(self._require_processing, log)

    def _release(self) -> None:
        try:
            with self._host.store.begin() as conn:
                loops.leave(conn, self._host.row, self._op, self._worker)
        except UNREACHABLE as error:
            self._host.log.warning("The lease could not be released and will expire: %s", error)

    def _renew(self) -> None:
        while not self.lost and not self._released.wait(RENEW_INTERVAL_S):
            try:
                self.lost = not self._claim()
            except Exception as error:  # noqa: BLE001 -- the next renewal may succeed
                self._host.log.warning("The lease was not renewed: %s", error)

    def _claim(self) -> bool:
        now = self._host.fleet.now()
        with self._host.store.begin() as conn:
            return loops.claim(conn, now, self._host.row, self._op, self._worker, now + LEASE)

    def _require_processing(self) -> None:
        row = self._host.row
        with self._host.store.begin() as conn:
            status = ledger.fence(conn, row)
        if status is not RunStatus.PROCESSING:
            raise AttemptOverError(
                f"another process of Dagster run {row.dagster_run} ended attempt {row.number}: the "
                f"campaign run is {status}"
            )
