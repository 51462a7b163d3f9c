"""One campaign run, its attempts and its record loops, without Dagster."""

import logging
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NoReturn

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.holds import Hold, HoldSource, Target, TargetKind
from dagster_tidegate.records.host import StopLoop, StopReason
from dagster_tidegate.records.journal import Group
from dagster_tidegate.records.loop import Records
from dagster_tidegate.records.record import Record
from dagster_tidegate.records.worklist import LoopOptions
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import holds, ledger, runs
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.runs import AttemptRow
from tests.support.record_statuses import record_statuses

OPERATOR = Target(TargetKind.SERVICE, "openai")
LOG = logging.getLogger(__name__)


class Stopped(Exception, StopLoop):
    """What the op raises when the loop stops."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason)
        self.reason = reason


class Work:
    """One campaign run, and the attempts at it: the host of the loops."""

    services: Sequence[str] = ("openai",)
    drain_timeout_s = 10.0
    only_marked = False
    continues = "the test began again"
    log = LOG

    def __init__(self, url: str, partition: str = "leads-1", **policy: Any) -> None:
        self.store = Store(url)
        self.fleet = Fleet(SqlBackend(self.store), [ServicePolicy(name="openai", **policy)])
        self.partition = partition
        self.prefix = "run-" if partition == "leads-1" else f"{partition}-run-"
        self.begin()

    def close(self) -> None:
        self.fleet.close()
        self.store.dispose()

    def begin(self, *, over: bool = True) -> AttemptRow:
        """Begin the next attempt, as a Dagster run of its own."""
        with self.store.begin() as conn:
            now = self.store.now(conn)
            self.run = runs.ensure(conn, now, "outreach", self.partition)
            number = self.run.attempt + 1
            self.row = runs.begin_attempt(
                conn, now, self.run, f"{self.prefix}{number}", owner_is_over=over
            )
            self.series = runs.began_with(runs.attempts(conn, self.run.id))
            self.run = runs.ensure(conn, now, "outreach", self.partition)
        return self.row

    def end(self, status: RunStatus) -> None:
        with self.store.begin() as conn:
            current = runs.get(conn, self.run.id)
            assert current is not None
            runs.move(conn, self.store.now(conn), current, status, actor="test")

    def holds(self) -> Sequence[Hold]:
        return self.fleet.holds_on(services=self.services)

    def report_failed(self, failed: int) -> None: ...

    def refused(self, service: str) -> None:
        pass

    def stop(self, reason: StopReason) -> NoReturn:
        if reason.ended is None:
            self.end(RunStatus.PAUSED if reason.signal is None else RunStatus.CANCELLED)
        raise Stopped(reason)

    def records(
        self, items: Any, *, op: str = "send", group: Group | None = None, **options: Any
    ) -> Records:
        return Records(
            copy(self), items, LoopOptions(**{"op": op, "key": str, **options}), group=group
        )

    def hold(self) -> None:
        with self.store.begin() as conn:
            now = self.store.now(conn)
            holds.place(
                conn, now, OPERATOR, source=HoldSource.OPERATOR, reason="maintenance", actor="ana"
            )
        self.fleet.refresh()

    def release(self) -> None:
        with self.store.begin() as conn:
            now = self.store.now(conn)
            holds.release(conn, now, OPERATOR, source=HoldSource.OPERATOR, actor="ana")
        self.fleet.refresh()

    def statuses(self) -> dict[str, RecordStatus]:
        with self.store.read() as conn:
            return dict(record_statuses(conn, self.run.id, "send"))

    def progress(self) -> ledger.Progress:
        with self.store.read() as conn:
            found = ledger.progress(conn, self.run.id, "send")
        assert found is not None
        return found


def go_through(records: Records, each: Callable[[Record], Any] = lambda _: None) -> list[str]:
    seen = []
    for record in records:
        with record:
            seen.append(record.key)
            record.result = each(record)
    return seen
