"""Applies a plan to Dagster in three steps, so that a crash or a second gate does no harm.

Under the gate's lock, the store records what is about to be written, for takeovers that are
unchanged since the plan. Then Dagster is read once more and written. Last, the store records that
it was written. No transaction of the store is open meanwhile: Dagster may be slow, and the fleet's
records must not wait for it. After a crash, a takeover stays pending, and the next plan finds out
from Dagster's value whether the write arrived.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.plan import Action, End, Leave, Observation, Write, same_pool
from dagster_tidegate.store import takeovers
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.gate_lock import gate_lock
from dagster_tidegate.store.takeovers import (
    STOPPED,
    UNSET,
    Take,
    Takeover,
    TakeoverKind,
    TakeoverOutcome,
)

# How many writes are recorded in one transaction of the store: each costs a commit.
BATCH_SIZE = 10
# How long to wait for another gate, in seconds, before the rest is left to the next tick.
PATIENCE_S = 5.0


MissedTicks = Callable[[Takeover, datetime], None]
"""Records which ticks a schedule missed until a time (UTC), before it is given back."""
_Record = Callable[[Connection], object]
"""Records why a value was not written to Dagster."""


@dataclass
class Report:
    """What was done.

    Attributes:
        errors: Why some could not be made; each names the change in a note.
    """

    changes: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def __iadd__(self, other: "Report") -> "Report":
        self.changes += other.changes
        self.errors += other.errors
        return self

    def check(self) -> None:
        """Raise the errors, after everything else is done.

        Raises:
            ExceptionGroup: If a change failed.
        """
        if self.errors:
            changes = "; ".join(self.changes)
            raise ExceptionGroup(f"{len(self.errors)} changes failed; done: {changes}", self.errors)


def apply(
    gate: Gate,
    observation: Observation,
    actions: Sequence[Action],
    *,
    deadline: float,
    missed_ticks: MissedTicks,
) -> Report:
    """Apply actions, unless another gate was faster. An error does not stop the other actions.

    Args:
        observation: What the actions were planned from.
        deadline: When to stop (`time.monotonic`); the next tick does the rest.
        missed_ticks: Called before a schedule is given back.

    Raises:
        GateBusyError: If another gate keeps the lock for longer than `PATIENCE_S`.
    """
    wait_s = min(PATIENCE_S, max(0.0, deadline - time.monotonic()))
    with gate_lock(gate.store, wait_s) as require_lock:
        report, pending = _intend(gate, observation, actions)
        for first in range(0, len(pending), BATCH_SIZE):
            if time.monotonic() > deadline:
                report.changes.append("out of time: the next tick continues")
                break
            require_lock()
            report += _write(gate, pending[first : first + BATCH_SIZE], missed_ticks)
    return report


def _intend(
    gate: Gate, observation: Observation, actions: Sequence[Action]
) -> tuple[Report, list[Takeover]]:
    """Record the plan in the store; return the takeovers whose values are to be written."""
    report = Report()
    takes = [action for action in actions if isinstance(action, Take)]
    with gate.store.begin() as conn:
        now = gate.store.now(conn)
        intended = takeovers.take(conn, now, takes, newest=observation.newest_takeover)
        for action in actions:
            match action:
                case Leave():
                    if takeovers.leave(conn, now, action.takeover, action.value):
                        report.changes.append(
                            f"left {action.takeover} as changed by a person ({action.value})"
                        )
                case End():
                    if takeovers.end(conn, now, action.takeover, action.outcome):
                        report.changes.append(f"{action.takeover} {action.outcome}")
                case Write():
                    takeover = takeovers.intend(
                        conn,
                        now,
                        action.takeover,
                        value=action.value,
                        set_to=action.set_to,
                        ramp_step_at=action.ramp_step_at,
                    )
                    if takeover is not None and takeover.pending:
                        intended.append(takeover)
    # Pools first: until theirs is closed, runs of the queue may start.
    return report, sorted(intended, key=lambda each: each.kind is not TakeoverKind.POOL)


def _write(gate: Gate, pending: Sequence[Takeover], missed_ticks: MissedTicks) -> Report:
    """Write values to Dagster, and record in the store which were written."""
    report = Report()
    with gate.store.read() as conn:
        now = gate.store.now(conn)
    has_pools = any(takeover.kind is TakeoverKind.POOL for takeover in pending)
    pools = gate.dagster.pools() if has_pools else {}
    written: list[Takeover] = []
    records: list[_Record] = []
    for takeover in pending:
        try:
            if takeover.kind is TakeoverKind.SCHEDULE and takeover.set_to != STOPPED:
                missed_ticks(takeover, now)
            record = _write_one(gate, takeover, pools, now)
        except Exception as error:  # noqa: BLE001 -- a failed change must not block the others
            error.add_note(f"while setting {takeover} to {takeover.set_to}")
            report.errors.append(error)
        else:
            if record is None:
                written.append(takeover)
            else:
                records.append(record)
    with gate.store.begin() as conn:
        takeovers.written(conn, written)
        for record in records:
            record(conn)
    report.changes += [f"{each} {each.set_from} -> {each.set_to}" for each in written]
    return report


def _write_one(
    gate: Gate, takeover: Takeover, pools: Mapping[str, str], now: datetime
) -> _Record | None:
    """Write a value to Dagster; if it was not written, return what records why."""
    if takeover.kind is TakeoverKind.POOL:
        value = pools.get(takeover.name, UNSET)
        if same_pool(value, takeover.set_from):
            gate.dagster.set_pool(takeover.name, takeover.set_to)
            return None
    else:
        expected = (takeover.set_from, UNSET)
        value = gate.dagster.set_trigger(
            takeover.kind, takeover.label, takeover.name, takeover.set_to, now, expected=expected
        )
        if value in expected:
            return None
        if value is None:
            return partial(_end_as_gone, gate, takeover, now)
    # This gate has the lock, so a person changed it. If they happened to choose the planned value,
    # the next plan could not tell their change from this gate's.
    return lambda conn: takeovers.leave(conn, now, takeover, value)


def _end_as_gone(gate: Gate, takeover: Takeover, now: datetime, conn: Connection) -> None:
    if takeover.location == gate.location:
        takeovers.end(conn, now, takeover, TakeoverOutcome.GONE)
