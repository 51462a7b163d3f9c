"""The audit log: who changed what, when and why. `store.history` reads it."""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime
from enum import StrEnum
from typing import Any

from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection


class EventKind(StrEnum):
    """What an event is about."""

    SERVICE = "service"
    HOLD = "hold"
    CAMPAIGN_RUN = "campaign_run"
    TAKEOVER = "takeover"
    START = "start"
    CANCEL = "cancel"
    RECORDS = "records"
    TOKEN = "token"
    SESSION = "session"
    DAGSTER_UI = "dagster_ui"
    PRUNE = "prune"
    LOCATION = "location"
    WINDOW = "window"


address: ContextVar[str | None] = ContextVar("address", default=None)
"""Network address of the client that is making a change; None: this machine."""


def write(
    conn: Connection,
    now: datetime,
    *,
    kind: EventKind,
    name: str,
    to_status: str,
    from_status: str | None = None,
    reason: str | None = None,
    actor: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write an event, in the transaction of the change that it records."""
    conn.execute(
        t.events.insert().values(
            at=now,
            kind=kind,
            name=name,
            from_status=from_status,
            to_status=to_status,
            reason=reason,
            actor=actor,
            address=address.get(),
            before=before,
            after=after,
        )
    )


def write_all(
    conn: Connection,
    now: datetime,
    changes: Iterable[tuple[str, str, str]],
    *,
    kind: EventKind,
    reason: str,
    actor: str,
) -> None:
    """Write an event for each change: its name, and the status before and after."""
    common = {"at": now, "kind": kind, "reason": reason, "actor": actor, "address": address.get()}
    rows = [
        {**common, "name": name, "from_status": before, "to_status": after}
        for name, before, after in changes
    ]
    conn.execute(t.events.insert(), rows)
