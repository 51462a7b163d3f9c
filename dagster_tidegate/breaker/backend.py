"""Where the breakers are kept: the interface, and the memory of one process."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from random import random
from threading import Lock
from typing import Protocol
from uuid import uuid4

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.snapshot import FleetSnapshot
from dagster_tidegate.breaker.state_machine import BreakerStatus, WindowStats
from dagster_tidegate.breaker.verdicts import Outcome
from dagster_tidegate.breaker.window import CLOCK_TOLERANCE_S, WindowDelta, bucket_s
from dagster_tidegate.holds import Hold, HoldSource, SystemActor, Target, TargetKind
from dagster_tidegate.statuses import BreakerState


@dataclass(frozen=True, slots=True)
class Trial:
    """A lease on a trial call: nobody else has this slot until `expires_at` (UTC)."""

    service: str
    generation: int
    slot: int
    token: str
    worker: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class TrialAnswer:
    """What came of asking for a trial call.

    Attributes:
        before: The breaker before.
        after: The breaker now; half open if it was due.
        trial: The lease, or None if there is none to have.
        retry_at: When to ask again (UTC), if there is none.
    """

    before: BreakerStatus
    after: BreakerStatus
    trial: Trial | None
    retry_at: datetime | None


class BreakerBackend(Protocol):
    """A place where breakers are kept. Each method is one step that nobody can split."""

    def now(self) -> datetime:
        """Return the time of this place, UTC."""
        ...

    def read(self, names: Iterable[str]) -> FleetSnapshot:
        """Read all breakers and live holds; those of `names` that are new begin closed."""
        ...

    def record(self, policy: ServicePolicy, seen: WindowDelta) -> tuple[BreakerStatus, WindowStats]:
        """Add what a worker saw; return the breaker and what the fleet saw."""
        ...

    def flush(self, seen: Sequence[tuple[ServicePolicy, WindowDelta]]) -> None:
        """Add what a worker saw of several services; the same service once only."""
        ...

    def change(self, before: BreakerStatus, after: BreakerStatus, actor: str) -> bool:
        """Put `after` in the place of `before`; False if it is not `before` any more."""
        ...

    def take_trial(self, policy: ServicePolicy, worker: str) -> TrialAnswer:
        """Ask for a trial call; a breaker that is due becomes half open."""
        ...

    def end_trial(
        self,
        policy: ServicePolicy,
        trial: Trial,
        outcome: Outcome,
        retry_at: datetime | None = None,
    ) -> tuple[BreakerStatus, BreakerStatus]:
        """Give the lease back with its result; return the breaker before and after."""
        ...


def free_slot(taken: Iterable[int], permitted: int) -> int | None:
    """Return the first of `permitted` slots that is not taken, or None."""
    return next(iter(sorted(set(range(permitted)) - set(taken))), None)


class MemoryBackend:
    """Breakers in the memory of one process: without a store, or while it can't be reached.

    Args:
        circuits: Breakers to begin with.
        holds: Holds of operators that go on meanwhile; one that expires still ends.
        clock: Gives the time (UTC); for tests.
    """

    def __init__(
        self,
        circuits: Iterable[BreakerStatus] = (),
        *,
        holds: Iterable[Hold] = (),
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.clock = clock
        self.holds = tuple(hold for hold in holds if hold.source == HoldSource.OPERATOR)
        self.circuits = {circuit.name: circuit for circuit in circuits}
        self.began = {circuit.name: circuit.generation for circuit in self.circuits.values()}
        self.rows: dict[tuple[str, datetime, str, int], WindowDelta] = {}
        self._trials: list[Trial] = []
        self._lock = Lock()

    def now(self) -> datetime:
        """Return the time, UTC."""
        return datetime.now(UTC) if self.clock is None else self.clock()

    def read(self, names: Iterable[str]) -> FleetSnapshot:
        """See `BreakerBackend.read`. Each breaker that is not closed has its hold."""
        with self._lock:
            now = self.now()
            for name in names:
                self._get(name, now)
            own = [
                Hold(
                    id=-number,  # no row of the store
                    target=Target(TargetKind.SERVICE, circuit.name),
                    source=HoldSource.BREAKER,
                    reason=circuit.reason or str(circuit.state),
                    actor=SystemActor.BREAKER,
                    placed_at=circuit.opened_at or circuit.changed_at,
                )
                for number, circuit in enumerate(self.circuits.values(), start=1)
                if circuit.state != BreakerState.CLOSED
            ]
            live = [hold for hold in (*self.holds, *own) if hold.live(now)]
            return FleetSnapshot(
                services=dict(self.circuits),
                holds=tuple(sorted(live, key=lambda hold: (hold.placed_at, hold.id))),
                read_at=now,
                read_ticks=time.monotonic(),
            )

    def record(self, policy: ServicePolicy, seen: WindowDelta) -> tuple[BreakerStatus, WindowStats]:
        """See `BreakerBackend.record`."""
        with self._lock:
            self._add(policy, seen)
            circuit = self._get(seen.service, seen.at)
            rows = [row for key, row in self.rows.items() if key[0] == seen.service]
            return circuit, tally(rows, policy, circuit.generation, seen.at, seen.worker)

    def flush(self, seen: Sequence[tuple[ServicePolicy, WindowDelta]]) -> None:
        """See `BreakerBackend.flush`."""
        with self._lock:
            for policy, each in seen:
                self._add(policy, each)

    def change(self, before: BreakerStatus, after: BreakerStatus, actor: str) -> bool:  # noqa: ARG002 - no record
        """See `BreakerBackend.change`."""
        with self._lock:
            if self._get(before.name, before.changed_at).generation != before.generation:
                return False
            self.circuits[after.name] = after
            return True

    def take_trial(self, policy: ServicePolicy, worker: str) -> TrialAnswer:
        """See `BreakerBackend.take_trial`."""
        with self._lock:
            now = self.now()
            before = after = self._get(policy.name, now)
            if before.due(now):
                after = self.circuits[policy.name] = machine.half_opened(before, now)
            if after.state != BreakerState.HALF_OPEN:
                return TrialAnswer(before, after, None, after.open_until)
            held = [
                trial
                for trial in self._trials
                if trial.service == policy.name
                and trial.generation == after.generation
                and now < trial.expires_at
            ]
            slot = free_slot([trial.slot for trial in held], policy.trial_calls)
            if slot is None:
                return TrialAnswer(before, after, None, min(trial.expires_at for trial in held))
            trial = Trial(
                service=policy.name,
                generation=after.generation,
                slot=slot,
                token=uuid4().hex,
                worker=worker,
                expires_at=now + timedelta(seconds=policy.trial_lease_s),
            )
            self._trials = [t for t in self._trials if t.service != policy.name] + [*held, trial]
            return TrialAnswer(before, after, trial, None)

    def end_trial(
        self,
        policy: ServicePolicy,
        trial: Trial,
        outcome: Outcome,
        retry_at: datetime | None = None,
    ) -> tuple[BreakerStatus, BreakerStatus]:
        """See `BreakerBackend.end_trial`."""
        with self._lock:
            now = self.now()
            before = self._get(policy.name, now)
            if trial not in self._trials:
                return before, before
            self._trials.remove(trial)
            if before.generation != trial.generation:
                return before, before
            after = machine.after_trial(before, policy, outcome, now, random(), retry_at)
            self.circuits[policy.name] = after
            return before, after

    def _get(self, name: str, now: datetime) -> BreakerStatus:
        return self.circuits.setdefault(name, BreakerStatus(name=name, changed_at=now))

    def _add(self, policy: ServicePolicy, seen: WindowDelta) -> None:
        oldest = seen.at - timedelta(seconds=policy.window_s + bucket_s(policy))
        for key in [k for k in self.rows if k[0] == seen.service and k[1] <= oldest]:
            del self.rows[key]
        key = (seen.service, seen.bucket, seen.worker, seen.generation)
        if former := self.rows.get(key):
            seen = replace(
                seen,
                ok=former.ok + seen.ok,
                slow=former.slow + seen.slow,
                failed=former.failed + seen.failed,
                last_ok_at=_later(former.last_ok_at, seen.last_ok_at),
                last_failed_at=_later(former.last_failed_at, seen.last_failed_at),
                retry_at=_later(former.retry_at, seen.retry_at),
            )
        self.rows[key] = seen


def _later(former: datetime | None, present: datetime | None) -> datetime | None:
    """Return the later time: a clock that is set back must not take back what was known."""
    times = [at for at in (former, present) if at is not None]
    return max(times, default=None)


def tally(
    rows: Iterable[WindowDelta], policy: ServicePolicy, generation: int, now: datetime, worker: str
) -> WindowStats:
    """Add up what workers told of a service. `store.breakers` does the same in SQL.

    Args:
        rows: What each worker saw in each bucket.
        policy: The service's policy.
        generation: Only what belongs to this generation counts.
        now: The time, UTC.
        worker: Who asks, having told everything: it is not silent.
    """
    width = bucket_s(policy)
    since = now - timedelta(seconds=policy.window_s + width)
    until = now + timedelta(seconds=CLOCK_TOLERANCE_S)
    recent = now - timedelta(seconds=2 * width)
    rows = [r for r in rows if r.generation == generation and since < r.bucket <= until]
    oks = [r.last_ok_at for r in rows if r.last_ok_at is not None and r.last_ok_at <= until]
    last_ok_at = max(oks, default=None)
    floor = last_ok_at or since
    in_row = 0
    row_since: list[datetime] = []
    told: set[str] = set()
    for row in rows:
        if row.row_since is not None and row.row_since >= floor:
            in_row += row.failed_in_row
            row_since.append(row.row_since)
            told.add(row.worker)
        elif row.last_failed_at is not None and row.last_failed_at > floor:
            in_row += 1
            row_since.append(row.last_failed_at)
            told.add(row.worker)
    heard = {*told, worker}
    silent = sum(r.ok for r in rows if r.worker not in heard and r.bucket > recent)
    return WindowStats(
        ok=sum(r.ok for r in rows),
        slow=sum(r.slow for r in rows),
        failed=sum(r.failed for r in rows),
        failed_in_row=in_row,
        row_since=min(row_since, default=None),
        row_workers=len(told),
        silent_ok_per_s=silent / (2 * width),
        workers=len({r.worker for r in rows}),
        failing_workers=len({r.worker for r in rows if r.failed or r.slow}),
        last_ok_at=last_ok_at,
        retry_at=max((r.retry_at for r in rows if r.retry_at is not None), default=None),
    )
