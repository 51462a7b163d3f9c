"""Records of a campaign run for people: listed, summed up, marked to be done again, skipped."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.statuses import RecordStatus
from dagster_tidegate.store import ledger, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.runs import CampaignRun
from dagster_tidegate.text import alike

MAX_ERRORS = 1000
"""Different errors that are read for a summary."""


class RecordState(StrEnum):
    """What a person may ask for: the status of a record, and whether somebody works on it."""

    FAILED = "failed"
    SUSPECT = "suspect"  # failed, while other records of the loop succeeded
    IN_DOUBT = "in_doubt"  # started, by an attempt that is over
    IN_FLIGHT = "in_flight"  # started, by an attempt that is working
    WAITING = "waiting"
    DONE = "done"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Selection:
    """Which records of a campaign run.

    Attributes:
        states: In one of these; empty: in any.
        error: With this in their error, in upper or lower case.
        keys: With one of these keys; empty: with any.
        since: Written at this time or later.
        said: Whose error says the same as this one, apart from names and numbers.
    """

    states: Collection[RecordState] = ()
    error: str | None = None
    keys: Collection[str] = ()
    since: datetime | None = None
    said: str | None = None


@dataclass(frozen=True)
class FoundRecord:
    """A record of a campaign run.

    Attributes:
        error: How its latest try ended; None if it is done, or was cut off.
        tries: How often it was tried, in all attempts.
        retry_at: When it may be tried again, UTC; of a waiting one.
        service: The services of a chain that were chosen for it, joined by `+`.
        at: When this was written, UTC.
    """

    op: str
    key: str
    state: RecordState
    error: str | None
    tries: int
    attempt: int
    retry_at: datetime | None
    service: str | None
    at: datetime


@dataclass(frozen=True)
class ErrorGroup:
    """Records in one state whose errors say the same, apart from names and numbers.

    Attributes:
        error: One of the errors; None: no error, or the errors beyond `MAX_ERRORS` different ones.
        key: The key of one of the records; None as above.
    """

    state: RecordState
    error: str | None
    count: int
    key: str | None


def read(
    conn: Connection,
    now: datetime,
    run: CampaignRun,
    selection: Selection,
    *,
    after: tuple[str, str] | None = None,
    limit: int,
) -> Sequence[FoundRecord]:
    """Return records by op and key.

    Args:
        after: Begin after this op and key.
    """
    c = t.ledger.c
    working = _working(conn, now, run)
    query = sa.select(
        *(c.op, c.key, c.status, c.suspect, c.error, c.tries, c.attempt, c.retry_at, c.service),
        c.at,
    )
    query = query.where(*_where(conn, run, selection, working))
    if after is not None:
        query = query.where(sa.tuple_(c.op, c.key) > sa.tuple_(*map(sa.literal, after)))
    rows = conn.execute(query.order_by(c.op, c.key).limit(limit)).mappings()
    selected = []
    for row in rows:
        values = dict(row)
        status, suspect = values.pop("status"), values.pop("suspect")
        state = _state(status, suspect, values["attempt"] in working)
        selected.append(FoundRecord(state=state, **values))
    return selected


def summary(
    conn: Connection, now: datetime, run: CampaignRun, selection: Selection
) -> Sequence[ErrorGroup]:
    """Return how many records there are, by state and by what the service said, most first."""
    c = t.ledger.c
    working = _working(conn, now, run)
    at_work = c.attempt.in_(working)
    where = _where(conn, run, selection, working)
    of_all = _grouped(conn, [c.status, c.suspect, at_work], where)
    of_error = _grouped(
        conn, [c.status, c.suspect, at_work, c.error], [*where, c.error.is_not(None)]
    )
    left: Counter[RecordState] = Counter()
    for status, suspect, works, count, _ in of_all:
        left[_state(status, suspect, works)] += count
    groups: dict[tuple[RecordState, str], ErrorGroup] = {}
    for status, suspect, works, error, count, key in of_error:
        state = _state(status, suspect, works)
        left[state] -= count
        former = groups.get((state, alike(error)))
        groups[state, alike(error)] = (
            ErrorGroup(state, error, count, key)
            if former is None
            else ErrorGroup(state, former.error, former.count + count, former.key)
        )
    rest = [ErrorGroup(state, None, count, None) for state, count in left.items() if count > 0]
    order = list(RecordState)
    return sorted([*groups.values(), *rest], key=lambda g: (order.index(g.state), -g.count))


def to_restore(
    conn: Connection, now: datetime, run: CampaignRun, selection: Selection
) -> Sequence[Mapping[str, Any]]:
    """Return what `unmark` can't tell from the marked records themselves: those not done."""
    c = t.ledger.c
    where = _where(conn, run, selection, _working(conn, now, run))
    not_done = c.status.in_([RecordStatus.FAILED, RecordStatus.SKIPPED, RecordStatus.WAITING])
    query = sa.select(c.op, c.key, c.status, c.tries, c.retry_at, c.suspect, c.at).where(
        *where, not_done
    )
    return [
        {f"{name}_was": value for name, value in row.items()}
        for row in conn.execute(query).mappings()
    ]


def mark(
    conn: Connection, now: datetime, run: CampaignRun, selection: Selection
) -> Mapping[str, int]:
    """Let records be done again, with the same idempotency keys; return how many, by op.

    Records in doubt are done again anyway.
    """
    ended = [RecordStatus.FAILED, RecordStatus.DONE, RecordStatus.SKIPPED, RecordStatus.WAITING]
    c = t.ledger.c
    values = {
        "status": RecordStatus.WAITING,
        "tries": 0,
        "retry_at": None,
        "suspect": False,
        "at": now,
        # What is done is done again from its first step.
        "steps": sa.case((c.status != RecordStatus.DONE, c.steps)),
    }
    return _change(conn, now, run, selection, ended, values)


def unmark(
    conn: Connection,
    marked_at: datetime,
    run: CampaignRun,
    former: Sequence[Mapping[str, Any]],
) -> None:
    """Undo `mark`.

    Args:
        former: What `to_restore` returned before; the other marked records were done.
    """
    c = t.ledger.c
    marked = sa.and_(
        c.campaign_run == run.id,
        c.attempt >= run.first_attempt,
        c.status == RecordStatus.WAITING,
        c.at == marked_at,
        c.tries == 0,
    )
    if former:
        values = {
            name: sa.bindparam(f"{name}_was", type_=c[name].type)
            for name in ("status", "tries", "retry_at", "suspect", "at")
        }
        this = (c.op == sa.bindparam("op_was")) & (c.key == sa.bindparam("key_was"))
        conn.execute(t.ledger.update().where(marked, this).values(values), former)
    conn.execute(
        t.ledger.update().where(marked, c.error.is_(None)).values(status=RecordStatus.DONE)
    )
    for op in _ops(conn, run):
        _recount(conn, run, op)


def skip(
    conn: Connection, now: datetime, run: CampaignRun, selection: Selection, reason: str
) -> Mapping[str, int]:
    """Decide that records need no result; return how many, by op. Done ones stay done."""
    values = {
        "status": RecordStatus.SKIPPED,
        "retry_at": None,
        "at": now,
        "error": sa.func.coalesce(t.ledger.c.error, f"skipped: {reason}"),
    }
    open_ = [RecordStatus.FAILED, RecordStatus.WAITING, RecordStatus.STARTED]
    return _change(conn, now, run, selection, open_, values)


def _change(
    conn: Connection,
    now: datetime,
    run: CampaignRun,
    selection: Selection,
    statuses: Collection[RecordStatus],
    values: Mapping[str, Any],
) -> Mapping[str, int]:
    c = t.ledger.c
    where = [*_where(conn, run, selection, _working(conn, now, run)), c.status.in_(statuses)]
    counts = conn.execute(sa.select(c.op, sa.func.count()).where(*where).group_by(c.op))
    changed = {op: int(count) for op, count in counts}
    if changed:
        conn.execute(t.ledger.update().where(*where).values(**values))
    for op in changed:
        _recount(conn, run, op)
    return changed


def _recount(conn: Connection, run: CampaignRun, op: str) -> None:
    """Bring the progress of a loop up to date; its next attempt reads the input from the start."""
    counts = ledger.counts(conn, run, op)
    conn.execute(
        t.progress.update()
        .where(t.progress.c.campaign_run == run.id, t.progress.c.op == op)
        .values(
            done=counts.get(RecordStatus.DONE, 0),
            failed=counts.get(RecordStatus.FAILED, 0),
            exact=False,
            position=0,
            position_key=None,
        )
    )


def _ops(conn: Connection, run: CampaignRun) -> Sequence[str]:
    c = t.progress.c
    return list(conn.scalars(sa.select(c.op).where(c.campaign_run == run.id)))


def _grouped(
    conn: Connection, columns: Sequence[Any], where: Sequence[sa.ColumnElement[bool]]
) -> Sequence[Sequence[Any]]:
    """Count records by some columns, most first; with the count and the key of one record."""
    count = sa.func.count()
    query = sa.select(*columns, count, sa.func.min(t.ledger.c.key)).where(*where)
    return [
        tuple(row)
        for row in conn.execute(query.group_by(*columns).order_by(count.desc()).limit(MAX_ERRORS))
    ]


def _working(conn: Connection, now: datetime, run: CampaignRun) -> Sequence[int]:
    """The numbers of the attempts that are at work."""
    return [each.number for each in runs.attempts(conn, run.id) if each.works(now)]


def _state(status: str, suspect: bool, works: bool) -> RecordState:
    if status == RecordStatus.STARTED:
        return RecordState.IN_FLIGHT if works else RecordState.IN_DOUBT
    if status == RecordStatus.FAILED and suspect:
        return RecordState.SUSPECT
    return RecordState(status)


def _where(
    conn: Connection, run: CampaignRun, selection: Selection, working: Sequence[int]
) -> list[sa.ColumnElement[bool]]:
    c = t.ledger.c
    where = [c.campaign_run == run.id, c.attempt >= run.first_attempt]
    of_state = {
        RecordState.FAILED: c.status == RecordStatus.FAILED,
        RecordState.SUSPECT: (c.status == RecordStatus.FAILED) & c.suspect,
        RecordState.IN_DOUBT: (c.status == RecordStatus.STARTED) & c.attempt.not_in(working),
        RecordState.IN_FLIGHT: (c.status == RecordStatus.STARTED) & c.attempt.in_(working),
        RecordState.WAITING: c.status == RecordStatus.WAITING,
        RecordState.DONE: c.status == RecordStatus.DONE,
        RecordState.SKIPPED: c.status == RecordStatus.SKIPPED,
    }
    if selection.states:
        where.append(sa.or_(*(of_state[state] for state in selection.states)))
    if selection.error is not None:
        text = selection.error.lower()
        where.append(sa.func.lower(c.error).contains(text, autoescape=True))
    if selection.keys:
        where.append(c.key.in_(selection.keys))
    if selection.since is not None:
        where.append(c.at >= selection.since)
    if selection.said is not None:
        errors = _grouped(conn, [c.error], [*where, c.error.is_not(None)])
        same = alike(selection.said)
        where.append(c.error.in_([error for error, *_ in errors if alike(error) == same]))
    return where
