"""The sign of life of a record loop while it is at work, which keeps other processes out of it."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from threading import Event, Thread
from uuid import uuid4

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.records.retry import retry_while_unreachable
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import ledger, loops
from dagster_tidegate.store.database import UNREACHABLE, Store
from dagster_tidegate.store.ledger import AttemptOverError
from dagster_tidegate.store.runs import AttemptRow

LEASE = timedelta(seconds=120)
RENEW_S = 30.0
STOP_S = 5.0
LOOK_EVERY_S = 1.0


class Lease:
    """Has a record loop for this process, and renews that in a thread, while it is entered.

    Dagster may launch a run twice, as two daemons at once do. The second process waits here until
    the first is through, and then finds every record done; or until the first has died and its
    lease has lapsed. A lapsed lease also lets another attempt take the campaign run over although
    Dagster believes that this one's run is alive. Between loops there is none, and Dagster's word
    alone counts.

    Args:
        store: The store.
        fleet: Has its clock.
        attempt: The attempt.
        op: Name of the loop.
        log: Where it is told that a lease could not be renewed.
        given_up: Whether to wait no longer for another process.

    Attributes:
        waited: Whether another process had the loop first.
        lost: Whether another process has taken the loop: this one was silent for too long.
    """

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        attempt: AttemptRow,
        op: str,
        log: logging.Logger,
        given_up: Callable[[], bool],
    ) -> None:
        self._store, self._fleet, self._attempt, self._op = store, fleet, attempt, op
        self._log = log
        self._given_up = given_up
        self._worker = uuid4().hex
        self._over = Event()
        self._thread = Thread(target=self._renew, name="tidegate-lease", daemon=True)
        self.waited = False
        self.lost = False

    def __enter__(self) -> "Lease":
        try:
            self._take()
        except BaseException:
            self._leave()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(STOP_S)
        self._leave()

    def _take(self) -> None:
        while not retry_while_unreachable(self._claim, self._log):
            if not self.waited:
                self._log.warning(
                    "Another process of Dagster run %s is at work on these records: it is waited "
                    "for. Was the run launched twice?",
                    self._attempt.dagster_run,
                )
            self.waited = True
            if self._given_up():
                raise AttemptOverError("stopped while another process was at work on the records")
            time.sleep(LOOK_EVERY_S)
            retry_while_unreachable(self._require_ours, self._log)
        if self.waited:  # the other may have ended the work just before it gave the loop back
            retry_while_unreachable(self._require_ours, self._log)

    def _leave(self) -> None:
        try:
            with self._store.begin() as conn:
                loops.leave(conn, self._attempt, self._op, self._worker)
        except UNREACHABLE as error:  # then it lapses by itself
            self._log.warning("The lease was not given back: %s", error)

    def _renew(self) -> None:
        while not self.lost and not self._over.wait(RENEW_S):
            try:
                self.lost = not self._claim()
            except Exception as error:  # noqa: BLE001 -- the next renewal may succeed
                self._log.warning("The lease was not renewed: %s", error)

    def _claim(self) -> bool:
        now = self._fleet.now()
        with self._store.begin() as conn:
            return loops.claim(conn, now, self._attempt, self._op, self._worker, now + LEASE)

    def _require_ours(self) -> None:
        with self._store.begin() as conn:
            status = ledger.fence(conn, self._attempt)
        if status is not RunStatus.PROCESSING:
            raise AttemptOverError(
                f"another process of Dagster run {self._attempt.dagster_run} has ended the work "
                f"of attempt {self._attempt.number}: the campaign run is {status}"
            )
