"""The sign of life of an attempt while a record loop is at work."""

import logging
from datetime import timedelta
from threading import Event, Thread

from dagster_tidegate.fleet import UNREACHABLE, Fleet
from dagster_tidegate.records.patience import patiently
from dagster_tidegate.store import runs
from dagster_tidegate.store.runs import Attempt

LEASE = timedelta(seconds=120)
RENEW_S = 30.0
STOP_S = 5.0


class Lease:
    """Renews the lease of an attempt, in a thread of its own, while it is entered.

    Once it has lapsed another attempt may take the campaign run over although Dagster believes
    that this one's run is alive. Between loops there is none, and Dagster's word alone counts.

    Args:
        fleet: Has the store and its clock.
        attempt: The attempt.
        log: Where it is told that a lease could not be renewed.
    """

    def __init__(self, fleet: Fleet, attempt: Attempt, log: logging.Logger) -> None:
        self._fleet, self._attempt, self._log = fleet, attempt, log
        self._over = Event()
        self._thread = Thread(target=self._renew, name="tidegate-lease", daemon=True)

    def __enter__(self) -> "Lease":
        patiently(lambda: self._write(LEASE), self._log)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(STOP_S)
        try:
            self._write(None)
        except UNREACHABLE as error:  # then it lapses by itself
            self._log.warning("The lease was not given back: %s", error)

    def _renew(self) -> None:
        while not self._over.wait(RENEW_S):
            try:
                self._write(LEASE)
            except Exception as error:  # noqa: BLE001 -- the next renewal may succeed
                self._log.warning("The lease was not renewed: %s", error)

    def _write(self, lease: timedelta | None) -> None:
        until = None if lease is None else self._fleet.now() + lease
        with self._fleet.store.begin() as conn:
            runs.set_lease(conn, self._attempt, until)
