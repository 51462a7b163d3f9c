"""The ledger: the status and result of each record of a campaign run."""

import json
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.runs import AttemptRow, CampaignRun
from dagster_tidegate.store.upsert import insert, insert_columns, insert_on

RATE_LASTS = timedelta(seconds=60)
"""Progress is written once a second; an older rate is stale."""
_KEY = ("campaign_run", "op", "key")
_OF_ALL = ("op", "attempt", "at")


class AttemptOverError(Exception):
    """A write was refused: a newer attempt owns the campaign run, or it has ended."""


class Entry(NamedTuple):
    """One record, as it is to be written.

    Attributes:
        position: Its row in the input, from 0.
        result: What the author's code returned, as JSON can hold it.
        tries: How often it was tried, in all attempts; of a started one, including this try.
        retry_at: When it may be tried again, UTC.
        suspect: Whether others succeeded since it failed.
        service: The services that `first_available` chose, joined by `+`.
    """

    key: str
    position: int
    status: RecordStatus
    result: Any = None
    error: str | None = None
    tries: int = 0
    retry_at: datetime | None = None
    suspect: bool = False
    service: str | None = None


class Recorded(NamedTuple):
    """One record, as the ledger has it.

    Attributes:
        error: How its latest try ended, unless it is done.
        steps: The results of the steps that are done, by name.
    """

    status: RecordStatus
    attempt: int
    position: int
    error: str | None = None
    tries: int = 0
    retry_at: datetime | None = None
    steps: Mapping[str, Any] | None = None
    suspect: bool = False
    service: str | None = None


@dataclass(frozen=True)
class Progress:
    """Progress of a record loop.

    Attributes:
        total: How many there are, if known.
        rate: Current records per second, or None while no process works on it.
        position: Every record before this row of the input is done, or failed in this series.
        position_key: The key of the record just before it.
        series: The first attempt of the series; what failed before it is tried again.
        exact: Whether `done` and `failed` agree with the ledger.
    """

    done: int = 0
    failed: int = 0
    total: int | None = None
    rate: float | None = None
    position: int = 0
    position_key: str | None = None
    series: int = 0
    exact: bool = False

    @property
    def is_over(self) -> bool:
        """Whether each record is done or has failed."""
        return self.total is not None and self.done + self.failed >= self.total

    def seconds_left(self) -> float | None:
        """Return how long the rest takes at the current rate, in seconds, or None if not known.

        Example:
            >>> Progress(done=100, failed=0, total=300, rate=10.0).seconds_left()
            20.0
        """
        if self.total is None or not self.rate:
            return None
        return max(0, self.total - self.done - self.failed) / self.rate


def write(
    conn: Connection, now: datetime, attempt: AttemptRow, op: str, entries: Sequence[Entry]
) -> bool:
    """Write entries of a loop, unless a newer attempt owns the campaign run.

    After the campaign run has ended or paused, results are still written, and starts are not.

    Returns:
        Whether the loop may continue; False if the campaign run has ended or paused.

    Raises:
        AttemptOverError: If a newer attempt owns it; nothing is written.
    """
    starts = sum(entry.status is RecordStatus.STARTED for entry in entries)
    if not starts or len(entries) > 2:
        return _write_many(conn, now, attempt, op, entries)
    # One statement writes the end of a record and the start of the next, and checks the fence.
    values: dict[str, Any] = {
        "run_": attempt.campaign_run,
        "op_": op,
        "attempt_": attempt.number,
        "at_": now,
    }
    for row, entry in enumerate(entries):
        values |= {f"{name}_of_{row}": value for name, value in entry._asdict().items()}
    written = conn.execute(
        _writing(conn.dialect.name, len(entries)),
        values,
        execution_options={"preserve_rowcount": True},
    ).rowcount
    if written < len(entries):
        fence(conn, attempt)
    return written == len(entries)


def _write_many(
    conn: Connection, now: datetime, attempt: AttemptRow, op: str, entries: Sequence[Entry]
) -> bool:
    working = fence(conn, attempt) is RunStatus.PROCESSING
    # Of a record that is tried again at once, the end of one try and the start of the next.
    last = {e.key: e for e in entries if working or e.status is not RecordStatus.STARTED}
    if not last:
        return working
    columns = dict(zip(Entry._fields, zip(*last.values(), strict=True), strict=True))
    of_all = {"campaign_run": attempt.campaign_run, "op": op, "attempt": attempt.number, "at": now}
    insert_columns(conn, _upsert(conn.dialect.name), columns, of_all)
    return working


def fence(conn: Connection, attempt: AttemptRow) -> RunStatus:
    """Check that an attempt owns its campaign run; no newer one starts before the transaction ends.

    Returns:
        The status of the campaign run.

    Raises:
        AttemptOverError: If a newer attempt owns it.
    """
    row = conn.execute(
        sa.select(t.campaign_runs.c.attempt, t.campaign_runs.c.status)
        .where(t.campaign_runs.c.id == attempt.campaign_run)
        .with_for_update(read=True)
    ).one_or_none()
    owner = None if row is None else row.attempt
    if row is None or owner != attempt.number:
        raise AttemptOverError(
            f"attempt {attempt.number} (Dagster run {attempt.dagster_run}) is over: attempt "
            f"{owner} owns the campaign run. Nothing was written"
        )
    return RunStatus(row.status)


def remember(
    conn: Connection,
    now: datetime,
    attempt: AttemptRow,
    op: str,
    entry: Entry,
    steps: Mapping[str, Any],
) -> None:
    """Write the steps of a record that are done; the rest of its entry stays as it is.

    Args:
        entry: What to write if the ledger does not have the record yet.

    Raises:
        AttemptOverError: If a newer attempt owns the campaign run.
    """
    fence(conn, attempt)
    values = entry._asdict() | {"attempt": attempt.number, "at": now, "steps": steps}
    statement = insert(conn, t.ledger).values(campaign_run=attempt.campaign_run, op=op, **values)
    # An older entry, which no longer counts, is replaced as a whole.
    kept = {
        name: sa.case((_counts(), t.ledger.c[name]), else_=statement.excluded[name])
        for name in (*Entry._fields, *_OF_ALL)
        if name not in _KEY
    }
    kept |= {"steps": steps, "service": entry.service}
    conn.execute(statement.on_conflict_do_update(index_elements=_KEY, set_=kept))


def abandon(conn: Connection, attempt: AttemptRow, op: str, keys: Collection[str]) -> None:
    """Delete the `started` entries of records that an attempt stopped before: none is in doubt.

    Raises:
        AttemptOverError: If a newer attempt owns the campaign run.
    """
    fence(conn, attempt)
    conn.execute(
        t.ledger.delete().where(
            *_of_loop(attempt.campaign_run, op),
            t.ledger.c.attempt == attempt.number,
            t.ledger.c.status == RecordStatus.STARTED,
            t.ledger.c.key.in_(keys),
        )
    )


def write_progress(
    conn: Connection, now: datetime, attempt: AttemptRow, op: str, progress: Progress
) -> None:
    """Write the progress of a loop.

    Raises:
        AttemptOverError: If a newer attempt owns the campaign run.
    """
    fence(conn, attempt)
    values = {**vars(progress), "updated_at": now}
    conn.execute(
        insert(conn, t.progress)
        .values(campaign_run=attempt.campaign_run, op=op, **values)
        .on_conflict_do_update(index_elements=["campaign_run", "op"], set_=values)
    )


def rate(now: datetime) -> sa.ColumnElement[float | None]:
    """Return the rate of a loop in SQL, NULL if it is stale."""
    return sa.case((t.progress.c.updated_at > now - RATE_LASTS, t.progress.c.rate))


def progress(conn: Connection, campaign_run: int, op: str) -> Progress | None:
    """Return the progress of a loop, or None if it never started."""
    row = conn.execute(
        sa.select(*(t.progress.c[name] for name in Progress.__dataclass_fields__)).where(
            t.progress.c.campaign_run == campaign_run, t.progress.c.op == op
        )
    ).one_or_none()
    return None if row is None else Progress(**row._asdict())


def failed_records(conn: Connection, campaign_run: int) -> int:
    """Return how many records of a campaign run failed, in all ops, as its loops have reported."""
    p = t.progress.c
    total = sa.func.coalesce(sa.func.sum(p.failed), 0)
    return int(conn.scalar(sa.select(total).where(p.campaign_run == campaign_run)) or 0)


def begun(conn: Connection, ops: Collection[str]) -> Set[tuple[int, str]]:
    """Return which paused campaign runs have started which of some ops, as (id, op)."""
    rows = conn.execute(
        sa.select(t.progress.c.campaign_run, t.progress.c.op)
        .join(t.campaign_runs)
        .where(t.campaign_runs.c.status == RunStatus.PAUSED, t.progress.c.op.in_(ops))
    )
    return {(row.campaign_run, row.op) for row in rows}


def look_up(
    conn: Connection, run: CampaignRun, op: str, keys: Collection[str]
) -> Mapping[str, Recorded]:
    """Return the records of a loop that the ledger has, out of some keys."""
    c = t.ledger.c
    rows = conn.execute(
        sa.select(
            c.key,
            c.status,
            c.attempt,
            c.position,
            c.error,
            c.tries,
            c.retry_at,
            c.steps,
            c.suspect,
            c.service,
        ).where(*_that_count(run, op), _is_one_of(conn, keys))
    )
    return {key: Recorded(RecordStatus(status), *values) for key, status, *values in rows}


def _is_one_of(conn: Connection, keys: Collection[str]) -> sa.ColumnElement[bool]:
    # One parameter: building and parsing a statement with one for each key costs more than it does.
    if conn.dialect.name == "postgresql":
        array = sa.bindparam("keys", list(keys), postgresql.ARRAY(sa.String))
        return t.ledger.c.key == sa.func.any(array)
    each = sa.func.json_each(json.dumps(list(keys))).table_valued("value")
    return t.ledger.c.key.in_(sa.select(each.c.value))


def counts(
    conn: Connection, run: CampaignRun, op: str, *, failed_since: int = 0
) -> Mapping[RecordStatus, int]:
    """Return how many records of a loop have each status.

    Args:
        failed_since: Records that failed in an earlier attempt than this are not counted.
    """
    rows = conn.execute(
        sa.select(t.ledger.c.status, sa.func.count())
        .where(
            *_that_count(run, op),
            (t.ledger.c.status != RecordStatus.FAILED) | (t.ledger.c.attempt >= failed_since),
        )
        .group_by(t.ledger.c.status)
    )
    return {RecordStatus(status): count for status, count in rows}


def has_done(conn: Connection, campaign_run: int, since_attempt: int, *, but: str) -> bool:
    """Return whether another loop than `but` has done a record since an attempt."""
    c = t.ledger.c
    query = sa.select(sa.literal(1)).where(
        c.campaign_run == campaign_run,
        c.op != but,
        c.status == RecordStatus.DONE,
        c.attempt >= since_attempt,
    )
    return conn.scalar(query.limit(1)) is not None


def results(conn: Connection, run: CampaignRun, op: str) -> list[Any]:
    """Return the results of the done records of a loop, in input order."""
    rows = conn.execute(
        sa.select(t.ledger.c.result)
        .where(
            *_that_count(run, op),
            t.ledger.c.status == RecordStatus.DONE,
        )
        .order_by(t.ledger.c.position),
        execution_options={"yield_per": 10_000},
    )
    return list(rows.scalars())


def _of_loop(campaign_run: int, op: str) -> tuple[sa.ColumnElement[bool], ...]:
    return t.ledger.c.campaign_run == campaign_run, t.ledger.c.op == op


def _that_count(run: CampaignRun, op: str) -> tuple[sa.ColumnElement[bool], ...]:
    return *_of_loop(run.id, op), t.ledger.c.attempt >= run.first_attempt


def _counts() -> sa.ColumnElement[bool]:
    """Whether the entry that an INSERT conflicts with still counts; see `first_attempt`."""
    run = t.campaign_runs.c
    # Of the row in conflict: a column of the table would add it to the subquery's FROM.
    row = sa.literal_column("ledger.campaign_run")
    return t.ledger.c.attempt >= sa.select(run.first_attempt).where(run.id == row).scalar_subquery()


@cache
def _writing(dialect: str, rows: int) -> sa.Insert:
    """The statement that writes `rows` entries if their attempt owns the campaign run."""
    run = t.campaign_runs.c
    entries = sa.union_all(
        *(
            sa.select(
                *(
                    sa.bindparam(f"{name}_of_{row}", type_=t.ledger.c[name].type).label(name)
                    for name in Entry._fields
                )
            )
            for row in range(rows)
        )
    ).subquery("entries")
    own = {name: sa.bindparam(f"{name}_", type_=t.ledger.c[name].type) for name in _OF_ALL}
    # FOR SHARE makes a newer attempt wait for this transaction. SQLAlchemy leaves it out on SQLite,
    # which has one writer at a time.
    owned = (
        sa.select(run.id, *own.values(), *entries.c)
        .select_from(t.campaign_runs.join(entries, sa.true()))
        .where(
            run.id == sa.bindparam("run_"),
            run.attempt == own["attempt"],
            (run.status == RunStatus.PROCESSING) | (entries.c.status != RecordStatus.STARTED),
        )
        .with_for_update(read=True, of=t.campaign_runs)
    )
    return _or_replace(
        insert_on(dialect, t.ledger).from_select(["campaign_run", *own, *Entry._fields], owned)
    )


@cache
def _upsert(dialect: str) -> sa.Insert:
    return _or_replace(insert_on(dialect, t.ledger))


def _or_replace(statement: Any) -> sa.Insert:
    return statement.on_conflict_do_update(
        index_elements=_KEY,
        set_={
            "steps": sa.case((_counts(), t.ledger.c.steps)),
            **{
                name: statement.excluded[name]
                for name in (*Entry._fields, *_OF_ALL)
                if name not in _KEY
            },
        },
    )
