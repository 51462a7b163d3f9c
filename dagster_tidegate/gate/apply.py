"""Applies a plan to Dagster, so that it can be killed anywhere and two gates do no harm.

What is to be written is committed to the store first. Then each write is one transaction of the
store: lock the takeover, check that it is still as planned, look at Dagster once more, write,
note that it is written. Killed before the end of it, the takeover stays pending, and the next
plan finds out from Dagster's value whether the write had arrived.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa

from dagster_tidegate.gate.observe import Gate
from dagster_tidegate.gate.plan import Action, End, Leave, Observed, Take, Write, same_pool
from dagster_tidegate.store import takeovers
from dagster_tidegate.store.takeovers import STOPPED, UNSET, Outcome, Takeover, TakeoverKind

# So many writes share a transaction of the store: each costs a commit, and others wait for it.
AT_ONCE = 10


MissedTicks = Callable[[Takeover, datetime], None]
"""Writes down which ticks a schedule has missed until a time, before it is given back."""


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
    """
    done: list[str] = []
    writes: list[Takeover] = []
    with gate.store.begin() as conn:
        now = gate.store.now(conn)
        for action in actions:
            if isinstance(action, Leave):
                if takeovers.leave(conn, now, action.takeover, action.found):
                    done.append(f"left {_label(action.takeover)} to a person ({action.found})")
            elif isinstance(action, End):
                if takeovers.end(conn, now, action.takeover, action.outcome):
                    done.append(f"{_label(action.takeover)} {action.outcome}")
            else:
                takeover = _intend(conn, now, seen, action)
                if takeover is not None and takeover.pending:
                    writes.append(takeover)
    # In one order for all gates, so that no two wait for each other.
    writes.sort(key=lambda takeover: takeover.id)
    for first in range(0, len(writes), AT_ONCE):
        if time.monotonic() > deadline:
            done.append("out of time: the next tick goes on")
            break
        done += _write(gate, writes[first : first + AT_ONCE], missed_ticks, errors)
    return done


def _intend(
    conn: sa.Connection, now: datetime, seen: Observed, action: Take | Write
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
    ready = []
    for takeover in writes:
        try:
            if takeover.kind is TakeoverKind.SCHEDULE and takeover.set_to != STOPPED:
                missed_ticks(takeover, now)
            ready.append(takeover)
        except Exception as error:  # noqa: BLE001 -- one thing must not keep the others held
            error.add_note(f"while writing down what {_label(takeover)} missed")
            errors.append(error)
    done = []
    with gate.store.begin() as conn:
        mine = [takeover for takeover in ready if takeovers.locked(conn, takeover)]
        has_pools = any(takeover.kind is TakeoverKind.POOL for takeover in mine)
        pools = gate.dagster.pools() if has_pools else {}
        for takeover in mine:
            try:
                if _write_one(conn, gate, takeover, pools, now):
                    done.append(f"{_label(takeover)} {takeover.set_from} -> {takeover.set_to}")
            except Exception as error:  # noqa: BLE001 -- one thing must not keep the others held
                error.add_note(f"while setting {_label(takeover)} to {takeover.set_to}")
                errors.append(error)
    return done


def _write_one(
    conn: sa.Connection, gate: Gate, takeover: Takeover, pools: Mapping[str, str], now: datetime
) -> bool:
    if takeover.kind is TakeoverKind.POOL:
        found = pools.get(takeover.name, UNSET)
        as_planned = same_pool(found, takeover.set_from)
    else:
        found = gate.dagster.trigger(takeover.name)
        as_planned = found in (takeover.set_from, UNSET)
    if not as_planned:
        # No gate writes without the lock and this version, so it was a person. The next plan
        # could not tell that from a write of ours where they have set what was to be set.
        takeovers.leave(conn, now, takeover, found)
        return False
    if takeover.kind is TakeoverKind.POOL:
        gate.dagster.set_pool(takeover.name, takeover.set_to)
    elif not gate.dagster.set_trigger(
        takeover.kind, takeover.label, takeover.name, takeover.set_to, now
    ):
        if takeover.location == gate.location:
            takeovers.end(conn, now, takeover, Outcome.GONE)
        return False
    takeovers.written(conn, takeover)
    return True


def _label(takeover: Takeover) -> str:
    return f"{takeover.kind} {takeover.label}"
