"""Retries while a database is unreachable: no record is processed without its ledger."""

import logging
import time
from collections.abc import Callable
from random import random
from typing import TypeVar

from dagster_tidegate.store.database import UNREACHABLE, why_unreachable

R = TypeVar("R")

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
MAX_WAIT_S = 300.0


def backoff_s(tries: int) -> float:
    """Return the exponential backoff after a number of tries, in seconds."""
    return min(FIRST_BACKOFF_S * 2 ** (tries - 1), MAX_BACKOFF_S)


def retry_while_unreachable(step: Callable[[], R], log: logging.Logger) -> R:
    """Call `step`, which must be idempotent, until its database is reachable; return its result.

    Raises:
        sqlalchemy.exc.DBAPIError: If the database was unreachable for longer than `MAX_WAIT_S`.
    """
    deadline = None
    tries = 0
    while True:
        try:
            return step()
        except UNREACHABLE as error:
            now = time.monotonic()
            if deadline is None:
                deadline = now + MAX_WAIT_S
                why = why_unreachable(error)
                log.warning("Database unreachable; retrying for up to %.0f s: %s", MAX_WAIT_S, why)
            if now >= deadline or "no such table" in str(error):
                raise
        tries += 1
        time.sleep(backoff_s(tries) * (0.5 + random()))
