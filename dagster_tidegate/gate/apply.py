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

from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.gate.plan import Action, End, Leave, Observation, Take, Write, same_pool
from dagster_tidegate.store import takeovers
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.gate_lock import gate_lock
from dagster_tidegate.store.takeovers import STOPPED, UNSET, Takeover, TakeoverKind, TakeoverOutcome

# How many writes are recorded in one transaction of the store: each costs a commit.
BATCH_SIZE = 10
# How long to wait for another gate, in seconds, before the rest is left to the next tick.
PATIENCE_S = 5.0


MissedTicks = Callable[[Takeover, datetime], None]
"""Records which ticks a schedule missed until a time (UTC), before it is given back."""
_Record = Callable[[Connection], str | None]
"""Records the result of a write to Dagster, and returns a note for people."""


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
    pending: list[Takeover] = []
    with gate.store.begin() as conn:
        now = gate.store.now(conn)
        for action in actions:
            takeover = None
            match action:
                case Leave():
                    if takeovers.leave(conn, now, action.takeover, action.value):
                        report.changes.append(
                            f"left {action.takeover} as changed by a person ({action.value})"
                        )
                case End():
                    if takeovers.end(conn, now, action.takeover, action.outcome):
                        report.changes.append(f"{action.takeover} {action.outcome}")
                case Take():
                    takeover = takeovers.take(
                        conn,
                        now,
                        kind=action.kind,
                        name=action.name,
                        label=action.label,
                        campaign=action.campaign,
                        location=action.location,
                        former=action.former,
                        set_to=action.set_to,
                        running_since=action.running_since,
                        newest=observation.newest_takeover,
                    )
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
                pending.append(takeover)
    return report, pending


def _write(gate: Gate, pending: Sequence[Takeover], missed_ticks: MissedTicks) -> Report:
    """Write values to Dagster, and record in the store which were written."""
    report = Report()
    with gate.store.read() as conn:
        now = gate.store.now(conn)
    has_pools = any(takeover.kind is TakeoverKind.POOL for takeover in pending)
    pools = gate.dagster.pools() if has_pools else {}
    records: list[_Record] = []
    for takeover in pending:
        try:
            if takeover.kind is TakeoverKind.SCHEDULE and takeover.set_to != STOPPED:
                missed_ticks(takeover, now)
            records.append(_write_one(gate, takeover, pools, now))
        except Exception as error:  # noqa: BLE001 -- a failed change must not block the others
            error.add_note(f"while setting {takeover} to {takeover.set_to}")
            report.errors.append(error)
    with gate.store.begin() as conn:
        notes = [record(conn) for record in records]
    report.changes += [note for note in notes if note is not None]
    return report


def _write_one(gate: Gate, takeover: Takeover, pools: Mapping[str, str], now: datetime) -> _Record:
    if takeover.kind is TakeoverKind.POOL:
        value = pools.get(takeover.name, UNSET)
        unchanged = same_pool(value, takeover.set_from)
    else:
        value = gate.dagster.trigger(takeover.name)
        unchanged = value in (takeover.set_from, UNSET)

    def leave(conn: Connection) -> None:
        takeovers.leave(conn, now, takeover, value)

    def end_as_gone(conn: Connection) -> None:
        if takeover.location == gate.location:
            takeovers.end(conn, now, takeover, TakeoverOutcome.GONE)

    def written(conn: Connection) -> str:
        takeovers.written(conn, takeover)
        return f"{takeover} {takeover.set_from} -> {takeover.set_to}"

    if not unchanged:
        # This gate has the lock, so a person changed it. If they happened to choose the planned
        # value, the next plan could not tell their change from this gate's.
        return leave
    if takeover.kind is TakeoverKind.POOL:
        gate.dagster.set_pool(takeover.name, takeover.set_to)
    elif not gate.dagster.set_trigger(
        takeover.kind, takeover.label, takeover.name, takeover.set_to, now
    ):
        return end_as_gone
    return written
