"""Applies a plan to Dagster, so that it can be killed anywhere and two gates do no harm.

Under the lock of the gate, what is to be written is committed to the store, for takeovers that are
still as they were planned. Then Dagster is looked at once more and written, and last the store
notes what is written. No transaction of the store is open while Dagster works: it may be slow, and
the records of the fleet must not wait for it. Killed before the end, a takeover stays pending, and
the next plan finds out from Dagster's value whether the write had arrived.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from dagster_tidegate.gate.observe import Gate
from dagster_tidegate.gate.plan import Action, End, Leave, Observed, Take, Write, same_pool
from dagster_tidegate.store import takeovers
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.gate_lock import gate_lock
from dagster_tidegate.store.takeovers import STOPPED, UNSET, Outcome, Takeover, TakeoverKind

# So many writes are noted in one transaction of the store: each costs a commit.
AT_ONCE = 10
# A gate that finds another at work for so long leaves the rest to the next tick, in seconds.
PATIENCE_S = 5.0


MissedTicks = Callable[[Takeover, datetime], None]
"""Writes down which ticks a schedule has missed until a time, before it is given back."""
_Note = Callable[[Connection], str | None]
"""Writes down what came of a write to Dagster, and says so where it is worth it."""


def apply(
    gate: Gate,
    seen: Observed,
    actions: Sequence[Action],
    *,
    deadline: float,
    missed_ticks: MissedTicks,
    errors: list[Exception],
) -> list[str]:
    """Apply actions. What another gate did first is left out, and so is what comes too late.

    Args:
        gate: What the gate works with.
        seen: What the plan was made of.
        actions: The plan.
        deadline: When to stop (`time.monotonic`); the next tick does the rest.
        missed_ticks: Called before a schedule is given back.
        errors: Gets what could not be written; the rest is applied all the same.

    Returns:
        What was done, for people.

    Raises:
        GateBusyError: If another gate is at work, and will be for longer than `PATIENCE_S`.
    """
    wait_s = min(PATIENCE_S, max(0.0, deadline - time.monotonic()))
    with gate_lock(gate.store, wait_s) as still_held:
        done, writes = _decide(gate, seen, actions)
        for first in range(0, len(writes), AT_ONCE):
            if time.monotonic() > deadline:
                done.append("out of time: the next tick goes on")
                break
            still_held()
            done += _write(gate, writes[first : first + AT_ONCE], missed_ticks, errors)
    return done


def _decide(
    gate: Gate, seen: Observed, actions: Sequence[Action]
) -> tuple[list[str], list[Takeover]]:
    """Write down in the store what is to be done, and return what was done and is to be written."""
    done: list[str] = []
    writes: list[Takeover] = []
    with gate.store.begin() as conn:
        now = gate.store.now(conn)
        for action in actions:
            if isinstance(action, Leave):
                if takeovers.leave(conn, now, action.takeover, action.found):
                    done.append(f"left {action.takeover} to a person ({action.found})")
            elif isinstance(action, End):
                if takeovers.end(conn, now, action.takeover, action.outcome):
                    done.append(f"{action.takeover} {action.outcome}")
            else:
                takeover = _intend(conn, now, seen, action)
                if takeover is not None and takeover.pending:
                    writes.append(takeover)
    return done, writes


def _intend(
    conn: Connection, now: datetime, seen: Observed, action: Take | Write
) -> Takeover | None:
    if isinstance(action, Take):
        return takeovers.take(
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
            seen=seen.newest_takeover,
        )
    return takeovers.intend(
        conn,
        now,
        action.takeover,
        found=action.found,
        set_to=action.set_to,
        ramp_step_at=action.ramp_step_at,
    )


def _write(
    gate: Gate,
    writes: Sequence[Takeover],
    missed_ticks: MissedTicks,
    errors: list[Exception],
) -> list[str]:
    """Write some values to Dagster, and return which were."""
    with gate.store.read() as conn:
        now = gate.store.now(conn)
    has_pools = any(takeover.kind is TakeoverKind.POOL for takeover in writes)
    pools = gate.dagster.pools() if has_pools else {}
    notes: list[_Note] = []
    for takeover in writes:
        try:
            if takeover.kind is TakeoverKind.SCHEDULE and takeover.set_to != STOPPED:
                missed_ticks(takeover, now)
            notes.append(_write_one(gate, takeover, pools, now))
        except Exception as error:  # noqa: BLE001 -- one thing must not keep the others held
            error.add_note(f"while setting {takeover} to {takeover.set_to}")
            errors.append(error)
    with gate.store.begin() as conn:
        done = [note(conn) for note in notes]
    return [said for said in done if said is not None]


def _write_one(gate: Gate, takeover: Takeover, pools: Mapping[str, str], now: datetime) -> _Note:
    if takeover.kind is TakeoverKind.POOL:
        found = pools.get(takeover.name, UNSET)
        as_planned = same_pool(found, takeover.set_from)
    else:
        found = gate.dagster.trigger(takeover.name)
        as_planned = found in (takeover.set_from, UNSET)

    def leave(conn: Connection) -> None:
        takeovers.leave(conn, now, takeover, found)

    def end_as_gone(conn: Connection) -> None:
        if takeover.location == gate.location:
            takeovers.end(conn, now, takeover, Outcome.GONE)

    def written(conn: Connection) -> str:
        takeovers.written(conn, takeover)
        return f"{takeover} {takeover.set_from} -> {takeover.set_to}"

    if not as_planned:
        # No other gate writes meanwhile, so it was a person. The next plan could not tell that
        # from a write of ours where they have set what was to be set.
        return leave
    if takeover.kind is TakeoverKind.POOL:
        gate.dagster.set_pool(takeover.name, takeover.set_to)
    elif not gate.dagster.set_trigger(
        takeover.kind, takeover.label, takeover.name, takeover.set_to, now
    ):
        return end_as_gone
    return written
