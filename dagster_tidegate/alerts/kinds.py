"""What people are told of."""

from enum import StrEnum


class AlertKind(StrEnum):
    """What an alert tells of. docs/alerts.md has each."""

    TRIP = "trip"
    RECOVERY = "recovery"
    OPERATOR_HOLD = "operator_hold"
    HOLD_RELEASED = "hold_released"
    HOLD_EXPIRES = "hold_expires"
    HOLD_OLD = "hold_old"
    GATE_STALE = "gate_stale"
    IN_DOUBT = "in_doubt"
    RESUME_FAILED = "resume_failed"
    STORE_LOST = "store_lost"
    STORE_BACK = "store_back"
    TEST = "test"
    SEVERAL = "several"


GOOD = frozenset({AlertKind.RECOVERY, AlertKind.HOLD_RELEASED, AlertKind.STORE_BACK})
"""Those that say that something is over."""
BAD = frozenset(
    {AlertKind.TRIP, AlertKind.GATE_STALE, AlertKind.RESUME_FAILED, AlertKind.STORE_LOST}
)
"""Those that say that something does not work."""
