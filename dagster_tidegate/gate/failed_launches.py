"""Failed launches: requested runs that Dagster could not start, as while a code server restarts.

Such a run did nothing, so its campaign run stays paused, and the gate requests another run: each
time after a longer wait, and not forever.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

MAX_IN_A_ROW = 10
FIRST_WAIT = timedelta(seconds=5)
MAX_WAIT = timedelta(minutes=5)


def is_given_up(failures: Sequence[datetime]) -> bool:
    """Return whether the gate requests no further run after some failed launches in a row."""
    return len(failures) >= MAX_IN_A_ROW


def next_at(failures: Sequence[datetime]) -> datetime | None:
    """Return from when on (UTC) the gate requests another run; None: at once.

    Args:
        failures: When launches failed, UTC, the latest first, since one succeeded.
    """
    if not failures:
        return None
    return failures[0] + min(FIRST_WAIT * 2 ** (len(failures) - 1), MAX_WAIT)
