"""The one thread of a fleet: it learns of changes, and tells of successes."""

import selectors
import time
from random import random
from threading import Thread
from typing import TYPE_CHECKING

import sqlalchemy as sa

from dagster_tidegate.breaker.state_machine import FLUSH_S
from dagster_tidegate.store import push

if TYPE_CHECKING:
    from dagster_tidegate.breaker.fleet import Fleet

MAX_AGE_S = 5.0
"""What a process knows is read anew after so long, even if nobody told of a change."""
RETRY_S = 0.5
RETRY_CAP_S = 10.0
"""A lost store is tried again after half a second, and then ever more seldom, up to this."""
STOP_S = 5.0
PRUNE_S = 300.0
"""Each process of a fleet prunes so often: with many of them it is often enough, and no more."""


class Watcher:
    """Keeps what a fleet knows fresh, in a thread of its own.

    Args:
        fleet: The fleet.
        engine: The database to listen to.
    """

    def __init__(self, fleet: "Fleet", engine: sa.Engine) -> None:
        self._fleet = fleet
        self._engine = engine
        self._waker = push.Waker()
        self._stopping = False
        self._thread = Thread(target=self._run, name="tidegate-watcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Let it look at once."""
        self._waker.wake()

    def stop(self) -> None:
        """End the thread, and wait for that within bounds."""
        self._stopping = True
        self._waker.wake()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                self._watch()
                failures = 0
            except Exception as error:  # noqa: BLE001 - without this thread nothing is learned
                self._fleet._watch_failed(error)
                failures = failures + 1 if self._fleet._own is not None else 1
                # Not all processes at the same moment.
                pause = min(RETRY_CAP_S, RETRY_S * 2 ** min(failures - 1, 10)) * (0.5 + random())
                self._pause(pause)
        self._waker.close()

    def _pause(self, seconds: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._waker, selectors.EVENT_READ)
            until = time.monotonic() + seconds
            while not self._stopping and (left := until - time.monotonic()) > 0:
                if selector.select(left):
                    self._waker.drain()

    def _watch(self) -> None:
        """Learn and tell until something fails or it is to end."""
        listener = push.listen(self._engine, self._waker)
        try:
            self._fleet._regain()
            # What changed before it listened was told to nobody.
            self._fleet.refresh()
            read_at = told_at = pruned_at = time.monotonic()
            pruned_at -= random() * PRUNE_S
            while not self._stopping and self._fleet._own is None:
                now = time.monotonic()
                if listener.wait(min(told_at + FLUSH_S, read_at + MAX_AGE_S) - now):
                    self._fleet.refresh()
                    read_at = time.monotonic()
                now = time.monotonic()
                if now >= read_at + MAX_AGE_S:
                    self._fleet.refresh()
                    read_at = now
                if now >= told_at + FLUSH_S:
                    self._fleet.flush()
                    told_at = now
                if now >= pruned_at + PRUNE_S:
                    self._fleet._prune()
                    pruned_at = now
        finally:
            listener.close()
