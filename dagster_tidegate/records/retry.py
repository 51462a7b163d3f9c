"""Waiting for the store: no record goes on without its ledger."""

import logging
import time
from collections.abc import Callable
from random import random
from typing import TypeVar

from dagster_tidegate.store.database import UNREACHABLE

R = TypeVar("R")

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
MAX_WAIT_S = 300.0


def backoff_s(tries: int) -> float:
    """Return how long to wait after so many tries, in seconds; twice as long each time."""
    return min(FIRST_BACKOFF_S * 2 ** (tries - 1), MAX_BACKOFF_S)


def retry_while_unreachable(step: Callable[[], R], log: logging.Logger) -> R:
    """Do a step in the store; while it can't be reached, wait for it instead of failing.

    Args:
        step: What is to be done; it may be done twice.
        log: Where the wait is told.

    Returns:
        What the step returns.

    Raises:
        sqlalchemy.exc.DBAPIError: If the store was away for longer than `MAX_WAIT_S`.
    """
    waits_until = None
    tries = 0
    while True:
        try:
            return step()
        except UNREACHABLE as error:
            now = time.monotonic()
            if waits_until is None:
                waits_until = now + MAX_WAIT_S
                log.warning(
                    "No record goes on without the ledger; waiting for the store: %s", error
                )
            if now >= waits_until or "no such table" in str(error):
                raise
        tries += 1
        time.sleep(backoff_s(tries) * (0.5 + random()))  # not all processes at the same moment
