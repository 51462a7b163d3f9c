"""Campaign runs and their attempts: who owns one, and the moves of its status."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.holds import SystemActor, run_name
from dagster_tidegate.statuses import RUN_MOVES, RunStatus
from dagster_tidegate.store import events
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.upsert import insert
from dagster_tidegate.text import utc

MAX_GUESSED_FROM = 1000


class MoveNotAllowedError(Exception):
    """A campaign run can't go from the status it has to the one asked for."""


class AttemptRefusedError(Exception):
    """A Dagster run may not work on a campaign run: another attempt owns it."""


class AttemptPausedError(AttemptRefusedError):
    """A Dagster run may not work on a campaign run any more: it has paused, and is ending."""


@dataclass(frozen=True)
class CampaignRun:
    """One partition of a campaign. Times are UTC.

    Attributes:
        id: Its id.
        campaign: Name of the campaign.
        partition: The partition.
        status: Its status.
        attempt: Number of the attempt that owns it; 0 before the first.
        priority: Those of higher priority resume first.
        reason: Why it is paused, failed or cancelled.
        paused_at: When it was paused.
        created_at: When it was created.
        changed_at: When its status last changed.
        pruned_at: When its ledger was deleted; it can't begin again.
        waits_for_start: Whether a person created it, and nobody has launched a Dagster run yet.
    """

    id: int
    campaign: str
    partition: str
    status: RunStatus
    attempt: int
    priority: int
    reason: str | None
    paused_at: datetime | None
    created_at: datetime
    changed_at: datetime
    pruned_at: datetime | None = None
    waits_for_start: bool = False

    @property
    def name(self) -> str:
        """`campaign/partition`, as a hold on it is named."""
        return run_name(self.campaign, self.partition)


@dataclass(frozen=True)
class AttemptRow:
    """One Dagster run that works, or worked, on a campaign run. Times are UTC.

    Attributes:
        campaign_run: Id of the campaign run.
        number: Its place among the attempts, from 1.
        dagster_run: Id of the Dagster run.
        started_at: When it began.
        ended_at: When it ended, or None.
        outcome: The status that it left the campaign run in, or None.
        lease_until: Until when a process of it is alive at least; None where no record loop is at
            work, and Dagster's word alone counts.
    """

    campaign_run: int
    number: int
    dagster_run: str
    started_at: datetime
    ended_at: datetime | None
    outcome: RunStatus | None
    # Not a difference between two: it changes while the same attempt works.
    lease_until: datetime | None = field(default=None, compare=False)


_ATTEMPTS = sa.select(
    t.attempts,
    sa.select(sa.func.max(t.loops.c.lease_until))
    .where(
        t.loops.c.campaign_run == t.attempts.c.campaign_run,
        t.loops.c.attempt == t.attempts.c.number,
    )
    .scalar_subquery()
    .label("lease_until"),
)


def ensure(
    conn: sa.Connection, now: datetime, campaign: str, partition: str, *, priority: int = 0
) -> CampaignRun:
    """Return the campaign run of a partition; it is created as pending where it is new."""
    create(conn, now, campaign, partition, priority=priority, actor=SystemActor.GATE)
    run = find(conn, campaign, partition)
    assert run is not None  # inserted or found just above, and never deleted
    return run


def create(
    conn: sa.Connection,
    now: datetime,
    campaign: str,
    partition: str,
    *,
    priority: int = 0,
    waits_for_start: bool = False,
    actor: str,
) -> bool:
    """Create the campaign run of a partition, as pending; False where there is one already.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        campaign: Name of the campaign.
        partition: The partition.
        priority: Those of higher priority resume first.
        waits_for_start: Whether a person launches its Dagster run later, with `claim_start`.
        actor: Who creates it.
    """
    created = conn.scalar(
        insert(conn, t.campaign_runs)
        .values(
            campaign=campaign,
            partition=partition,
            status=RunStatus.PENDING,
            priority=priority,
            waits_for_start=waits_for_start,
            created_at=now,
            changed_at=now,
        )
        .on_conflict_do_nothing()
        .returning(t.campaign_runs.c.id)
    )
    if created:
        events.write(
            conn,
            now,
            kind=EventKind.CAMPAIGN_RUN,
            name=run_name(campaign, partition),
            to_status=RunStatus.PENDING,
            actor=actor,
        )
    return bool(created)


def claim_start(conn: sa.Connection, now: datetime, run: CampaignRun, *, actor: str) -> bool:
    """Make the caller the one who launches a Dagster run for a campaign run.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        run: The campaign run as the caller knows it.
        actor: Who starts it.

    Returns:
        Whether the caller is to launch it; False where it is under way, or somebody was faster.
    """
    if run.waits_for_start:
        claimed = conn.execute(
            t.campaign_runs.update()
            .where(t.campaign_runs.c.id == run.id, t.campaign_runs.c.waits_for_start)
            .values(waits_for_start=False, reason=None, changed_at=now)
        )
        return bool(claimed.rowcount)
    if run.status in (RunStatus.PENDING, RunStatus.PROCESSING):
        return False
    return move(conn, now, run, RunStatus.PENDING, reason="started by hand", actor=actor)


def give_start_back(
    conn: sa.Connection, now: datetime, former: CampaignRun, reason: str, *, actor: str
) -> None:
    """Make a campaign run what it was before `claim_start`: no Dagster run could be launched.

    One that was new or waited for its start waits for it again.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        former: The campaign run as it was. Nothing happens unless it is pending still.
        reason: Why it could not be launched.
        actor: Who tried.
    """
    is_new = former.status is RunStatus.PENDING
    given_back = conn.execute(
        t.campaign_runs.update()
        .where(
            t.campaign_runs.c.id == former.id,
            t.campaign_runs.c.status == RunStatus.PENDING,
            t.campaign_runs.c.attempt == former.attempt,
        )
        .values(
            status=former.status,
            waits_for_start=is_new,
            paused_at=former.paused_at,
            reason=reason if is_new else former.reason,
            changed_at=now,
        )
    ).rowcount
    if given_back:
        events.write(
            conn,
            now,
            kind=EventKind.CAMPAIGN_RUN,
            name=former.name,
            from_status=RunStatus.PENDING,
            to_status=former.status,
            reason=reason,
            actor=actor,
        )


def find(conn: sa.Connection, campaign: str, partition: str) -> CampaignRun | None:
    """Return the campaign run of a partition, or None where there is none."""
    return _found(
        conn.execute(
            sa.select(t.campaign_runs).where(
                t.campaign_runs.c.campaign == campaign, t.campaign_runs.c.partition == partition
            )
        ).one_or_none()
    )


def get(conn: sa.Connection, campaign_run: int) -> CampaignRun | None:
    """Return a campaign run by its id, or None where there is none."""
    return _found(
        conn.execute(
            sa.select(t.campaign_runs).where(t.campaign_runs.c.id == campaign_run)
        ).one_or_none()
    )


def locked(conn: sa.Connection, campaign_run: int) -> CampaignRun:
    """Return a campaign run by its id; nobody else changes it until the transaction ends."""
    return _run(
        conn.execute(
            sa.select(t.campaign_runs).where(t.campaign_runs.c.id == campaign_run).with_for_update()
        ).one()
    )


def with_status(
    conn: sa.Connection, *statuses: RunStatus, campaigns: Collection[str] | None = None
) -> Sequence[CampaignRun]:
    """Return the campaign runs that have one of `statuses`, in the order in which they resume.

    That is by priority, the highest first, and then by the time at which they were paused.
    """
    query = sa.select(t.campaign_runs).where(t.campaign_runs.c.status.in_(statuses))
    if campaigns is not None:
        query = query.where(t.campaign_runs.c.campaign.in_(campaigns))
    rows = conn.execute(
        query.order_by(
            t.campaign_runs.c.priority.desc(), t.campaign_runs.c.paused_at, t.campaign_runs.c.id
        )
    )
    return [_run(row) for row in rows]


def newest(
    conn: sa.Connection,
    *,
    campaign: str | None = None,
    statuses: Collection[RunStatus] = (),
    before: int | None = None,
    by_change: bool = False,
    limit: int,
) -> Sequence[CampaignRun]:
    """Return campaign runs, the one created last first.

    Args:
        conn: A connection of the store.
        campaign: Only those of this campaign.
        statuses: Only those that have one of these.
        before: Only those with a lower id.
        by_change: The one that changed last first.
        limit: How many at most.
    """
    c = t.campaign_runs.c
    query = sa.select(t.campaign_runs)
    if campaign is not None:
        query = query.where(c.campaign == campaign)
    if statuses:
        query = query.where(c.status.in_(statuses))
    if before is not None:
        query = query.where(c.id < before)
    order = [c.changed_at.desc()] if by_change else []
    return [_run(row) for row in conn.execute(query.order_by(*order, c.id.desc()).limit(limit))]


def newest_partitions(conn: sa.Connection, campaign: str) -> Sequence[str]:
    """Return the partitions of the newest campaign runs of a campaign, to guess a misspelt one."""
    c = t.campaign_runs.c
    query = sa.select(c.partition).where(c.campaign == campaign).order_by(c.id.desc())
    return conn.scalars(query.limit(MAX_GUESSED_FROM)).all()


def counts(conn: sa.Connection) -> Mapping[str, Mapping[RunStatus, int]]:
    """Return how many campaign runs of each campaign have each status."""
    rows = conn.execute(
        sa.select(t.campaign_runs.c.campaign, t.campaign_runs.c.status, sa.func.count()).group_by(
            t.campaign_runs.c.campaign, t.campaign_runs.c.status
        )
    )
    found: dict[str, dict[RunStatus, int]] = {}
    for campaign, status, count in rows:
        found.setdefault(campaign, {})[RunStatus(status)] = count
    return found


def move(
    conn: sa.Connection,
    now: datetime,
    run: CampaignRun,
    to: RunStatus,
    *,
    reason: str | None = None,
    actor: str,
) -> bool:
    """Move a campaign run to another status, if it still is as it was when it was read.

    A move to anything but `processing` or `pending` ends the attempt that owns the campaign run.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        run: The campaign run as the caller knows it.
        to: The status that it is to have.
        reason: Why, for people.
        actor: Who moves it.

    Returns:
        Whether this call moved it; False where somebody else was first.

    Raises:
        MoveNotAllowedError: If `statuses.RUN_MOVES` has no such move.
    """
    if to not in RUN_MOVES[run.status]:
        raise MoveNotAllowedError(f"{run.name} is {run.status}: it can't become {to}")
    moved = conn.execute(
        t.campaign_runs.update()
        .where(
            t.campaign_runs.c.id == run.id,
            t.campaign_runs.c.status == run.status,
            t.campaign_runs.c.attempt == run.attempt,
        )
        .values(
            status=to,
            waits_for_start=False,
            reason=reason,
            paused_at=now if to is RunStatus.PAUSED else None,
            changed_at=now,
        )
    ).rowcount
    if not moved:
        return False
    if to not in (RunStatus.PENDING, RunStatus.PROCESSING):
        conn.execute(
            t.attempts.update()
            .where(
                t.attempts.c.campaign_run == run.id,
                t.attempts.c.number == run.attempt,
                t.attempts.c.ended_at.is_(None),
            )
            .values(ended_at=now, outcome=to)
        )
    events.write(
        conn,
        now,
        kind=EventKind.CAMPAIGN_RUN,
        name=run.name,
        from_status=run.status,
        to_status=to,
        reason=reason,
        actor=actor,
    )
    return True


def latest_attempt(conn: sa.Connection, campaign_run: int) -> AttemptRow | None:
    """Return the newest attempt at a campaign run, or None before the first."""
    found = attempts(conn, campaign_run)
    return found[-1] if found else None


def attempts(conn: sa.Connection, campaign_run: int) -> Sequence[AttemptRow]:
    """Return the attempts at a campaign run, the oldest first."""
    rows = conn.execute(
        _ATTEMPTS.where(t.attempts.c.campaign_run == campaign_run).order_by(t.attempts.c.number)
    )
    return [_attempt(row) for row in rows]


def began_with(series: Sequence[AttemptRow]) -> int:
    """Return the number of the attempt with which the work began that the newest one resumes.

    Args:
        series: The attempts at a campaign run, the oldest first; at least one.

    Example:
        After a failure and a re-execution that paused twice, that is the re-execution.
    """
    first = len(series) - 1
    while first > 0 and series[first - 1].outcome is RunStatus.PAUSED:
        first -= 1
    return series[first].number


def attempt_of(conn: sa.Connection, dagster_run: str) -> AttemptRow | None:
    """Return the attempt that a Dagster run made, or None where it made none."""
    row = conn.execute(_ATTEMPTS.where(t.attempts.c.dagster_run == dagster_run)).one_or_none()
    return None if row is None else _attempt(row)


def attempts_of(conn: sa.Connection, dagster_runs: Collection[str]) -> Mapping[str, AttemptRow]:
    """Return the attempts that some Dagster runs made, by the id of the Dagster run."""
    rows = conn.execute(_ATTEMPTS.where(t.attempts.c.dagster_run.in_(dagster_runs))).all()
    return {row.dagster_run: _attempt(row) for row in rows}


def named(
    conn: sa.Connection, names: Collection[tuple[str, str]]
) -> Mapping[tuple[str, str], CampaignRun]:
    """Return those campaign runs that there are of some campaigns and partitions."""
    rows = conn.execute(
        sa.select(t.campaign_runs).where(
            t.campaign_runs.c.campaign.in_({campaign for campaign, _ in names}),
            t.campaign_runs.c.partition.in_({partition for _, partition in names}),
        )
    )
    found = [_run(row) for row in rows]
    return {(run.campaign, run.partition): run for run in found}


def begin_attempt(
    conn: sa.Connection,
    now: datetime,
    run: CampaignRun,
    dagster_run: str,
    *,
    owner_is_over: bool,
) -> AttemptRow:
    """Make a Dagster run the owner of a campaign run. The ops of one run share an attempt.

    Args:
        conn: A connection of the store that writes.
        now: The database's time, UTC.
        run: The campaign run.
        dagster_run: Id of the Dagster run.
        owner_is_over: Whether the Dagster run of the newest attempt has ended in Dagster, or the
            attempt's lease has lapsed.

    Returns:
        The attempt; its number fences the writes of older ones.

    Raises:
        AttemptPausedError: If this Dagster run's attempt has paused.
        AttemptRefusedError: If the Dagster run of another attempt has not ended, or this Dagster
            run's attempt is over, or the ledger was deleted since the campaign run ended.
    """
    # Ops of one run may begin at the same moment: the second waits here, and finds the first's.
    run = locked(conn, run.id)
    newest = latest_attempt(conn, run.id)
    if newest is not None and newest.dagster_run == dagster_run:
        if newest.ended_at is None:
            return newest
        refusal = AttemptRefusedError
        if newest.outcome is RunStatus.PAUSED:
            refusal = AttemptPausedError
        raise refusal(
            f"{run.name}: attempt {newest.number} ended as {newest.outcome}; its Dagster run "
            f"{dagster_run} can't work on it any more"
        )
    if newest is not None and not owner_is_over:
        raise AttemptRefusedError(
            f"{run.name} is owned by attempt {newest.number}, Dagster run {newest.dagster_run}, "
            "which has not ended. Wait for it, or terminate it"
        )
    if newest is not None and attempt_of(conn, dagster_run) is not None:
        raise AttemptRefusedError(
            f"{run.name}: attempt {newest.number} of Dagster run {newest.dagster_run} has taken "
            f"over from {dagster_run}"
        )
    if run.pruned_at is not None:
        raise AttemptRefusedError(
            f"{run.name} ended as {run.status}, and its ledger was deleted at "
            f"{utc(run.pruned_at)}: every record would be done again. Use a new partition"
        )
    number = run.attempt + 1
    conn.execute(
        t.campaign_runs.update()
        .where(t.campaign_runs.c.id == run.id)
        .values(
            status=RunStatus.PROCESSING,
            waits_for_start=False,
            attempt=number,
            reason=None,
            paused_at=None,
            changed_at=now,
        )
    )
    if newest is not None and newest.ended_at is None:
        conn.execute(
            t.attempts.update()
            .where(t.attempts.c.campaign_run == run.id, t.attempts.c.number == newest.number)
            .values(ended_at=now, outcome=RunStatus.FAILED)
        )
    conn.execute(
        t.attempts.insert().values(
            campaign_run=run.id, number=number, dagster_run=dagster_run, started_at=now
        )
    )
    events.write(
        conn,
        now,
        kind=EventKind.CAMPAIGN_RUN,
        name=run.name,
        from_status=run.status,
        to_status=RunStatus.PROCESSING,
        reason=f"attempt {number}",
        actor=dagster_run,
    )
    return AttemptRow(run.id, number, dagster_run, now, None, None)


def _found(row: sa.Row | None) -> CampaignRun | None:
    return None if row is None else _run(row)


def from_row(values: Mapping[Any, Any]) -> CampaignRun:
    """Return the campaign run of a row of the table."""
    return CampaignRun(**{**values, "status": RunStatus(values["status"])})


def resume_order(run: CampaignRun) -> tuple[int, datetime | None, int]:
    """Sort paused campaign runs by this: by priority, then by when they paused."""
    return -run.priority, run.paused_at, run.id


def _run(row: sa.Row) -> CampaignRun:
    return from_row(row._mapping)


def _attempt(row: sa.Row) -> AttemptRow:
    outcome = None if row.outcome is None else RunStatus(row.outcome)
    return AttemptRow(**{**row._mapping, "outcome": outcome})
