"""Reports the changes of breakers to Dagster, as events of the services' assets."""

from collections.abc import Mapping, Sequence

import dagster as dg

from dagster_tidegate.breaker.snapshot import FleetSnapshot
from dagster_tidegate.plugin.service_assets import (
    EVENT,
    Position,
    ReportFacts,
    at_first,
    service_key,
    to_report,
)
from dagster_tidegate.settings import GeneralSettings, load
from dagster_tidegate.store import campaigns, cursors, outages
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.event_reader import EventReader, newest
from dagster_tidegate.store.gate_lock import GateBusyError, gate_lock
from dagster_tidegate.store.history import Event

AT_ONCE = 25
"""How many changes are reported in a tick."""


class ServiceReporter:
    """Reports each change once, and one whose write was lost again; keep one for each gate.

    The position is in the store. It moves after the write, and after a crash in between Dagster
    itself is asked what it has. Gates take turns, by the gate's lock.

    Args:
        services: The services of the code location, which get their first event from it.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._services = services
        self._events = EventReader()
        self._reported: Mapping[str, int] | None = None
        """The generation of each breaker when all was reported."""

    def report(self, instance: dg.DagsterInstance, store: Store, snapshot: FleetSnapshot) -> str:
        """Report what changed since the last time, and return a summary for people or ``""``.

        It costs no query while no breaker has changed.
        """
        generations = {name: status.generation for name, status in snapshot.services.items()}
        if generations == self._reported:
            return ""
        try:
            with gate_lock(store, 0.0) as require_lock:
                if self._reported is None:
                    self._report_first(instance, snapshot)
                changes, up_to, is_all = self._changes(store)
                with store.read() as conn:
                    facts = _facts(conn, store, changes)
                positions = {name: _position(instance, name) for name in {e.name for e in changes}}
                for event in to_report(changes, positions, facts):
                    require_lock()
                    instance.report_runless_asset_event(event)
                with store.begin() as conn:
                    cursors.move(conn, store.now(conn), cursors.DAGSTER_ASSETS, up_to)
        except GateBusyError:
            return ""  # the next tick does it
        if is_all:
            self._reported = generations
        return f"reported {len(changes)} changes of breakers to Dagster" if changes else ""

    def _report_first(self, instance: dg.DagsterInstance, snapshot: FleetSnapshot) -> None:
        for name in self._services:
            status = snapshot.services.get(name)
            if status is not None and not _materialized(instance, name):
                for event in at_first(status):
                    instance.report_runless_asset_event(event)

    def _changes(self, store: Store) -> tuple[Sequence[Event], int, bool]:
        """The next changes to report, up to which event they are all, and whether no more follow.

        On PostgreSQL, an event may be visible before one with a lower id; it is reported later.
        """
        with store.read() as conn:
            final = self._events.final(conn)
            after = cursors.read(conn, cursors.DAGSTER_ASSETS)
            changes: Sequence[Event] = ()
            if after is not None:  # else what happened before is not made up for
                changes = outages.transitions_after(conn, after, final, limit=AT_ONCE)
            up_to = changes[-1].id if len(changes) == AT_ONCE else max(after or 0, final)
            more = outages.transitions_after(conn, up_to, newest(conn), limit=1)
        return changes, up_to, not more


def _facts(conn: Connection, store: Store, changes: Sequence[Event]) -> ReportFacts:
    # Slow to import; every process that loads the definitions would wait for it.
    from dagster_tidegate.control import report_reader
    from dagster_tidegate.control.report_text import outage_text

    names = {change.name for change in changes}
    specs = campaigns.read(conn) if names else ()
    ended = [change for change in changes if change.closed]
    now = store.now(conn)
    reports = {
        change.id: report
        for change in ended
        if (report := report_reader.of_outage(conn, now, change.id)) is not None
    }
    needing = {name: [s for s in specs if name in s.services([name])] for name in names}
    return ReportFacts(
        paused_runs={
            name: outages.paused_runs(conn, [spec.name for spec in needing[name]]) for name in names
        },
        needed_by={
            name: {spec.name: [t.name for t in spec.triggers] for spec in needing[name]}
            for name in names
        },
        reports={id_: outage_text(report) for id_, report in reports.items()},
        minutes={id_: report.seconds / 60 for id_, report in reports.items()},
        pages=load(GeneralSettings).page_url(""),
    )


def _position(instance: dg.DagsterInstance, service: str) -> Position:
    key = service_key(service)
    observed = instance.fetch_observations(key, limit=1).records
    materialized = instance.fetch_materializations(key, limit=1).records
    return Position(
        *(
            _event_of(records[0].event_log_entry) if records else 0
            for records in (observed, materialized)
        )
    )


def _materialized(instance: dg.DagsterInstance, service: str) -> bool:
    return bool(instance.fetch_materializations(service_key(service), limit=1).records)


def _event_of(entry: dg.EventLogEntry) -> int:
    event = entry.asset_materialization or entry.asset_observation
    value = None if event is None else event.metadata.get(EVENT)
    is_id = isinstance(value, dg.TextMetadataValue | dg.IntMetadataValue)  # a number before 0.1
    return int(value.value or 0) if is_id else 0
