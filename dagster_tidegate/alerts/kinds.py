"""The kinds of alerts and their severities."""

from enum import StrEnum
from typing import Literal

Severity = Literal["info", "success", "warning", "failure"]
"""As Apprise has them: they set the color and icon of a message."""


class AlertKind(StrEnum):
    """What an alert is about; docs/alerts.md describes each kind."""

    TRIP = "trip"
    DENIED = "denied"
    RECOVERY = "recovery"
    BUDGET = "budget"
    OPERATOR_HOLD = "operator_hold"
    HOLD_RELEASED = "hold_released"
    HOLD_EXPIRES = "hold_expires"
    HOLD_OLD = "hold_old"
    GATE_STALE = "gate_stale"
    IN_DOUBT = "in_doubt"
    RECORDS_FAILED = "records_failed"
    RESUME_FAILED = "resume_failed"
    STORE_LOST = "store_lost"
    STORE_BACK = "store_back"
    TEST = "test"
    SEVERAL = "several"


_SEVERITIES: dict[str, Severity] = {
    AlertKind.TRIP: "failure",
    AlertKind.DENIED: "failure",
    AlertKind.RECOVERY: "success",
    AlertKind.HOLD_RELEASED: "success",
    AlertKind.GATE_STALE: "failure",
    AlertKind.RESUME_FAILED: "failure",
    AlertKind.STORE_LOST: "failure",
    AlertKind.STORE_BACK: "success",
    AlertKind.TEST: "info",
}


def severity(kind: str) -> Severity:
    """Return the severity of a kind; a kind of a newer version is a warning."""
    return _SEVERITIES.get(kind, "warning")
