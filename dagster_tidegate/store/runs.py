"""Campaign runs and their attempts: which attempt owns a run, and the moves of its status."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_tidegate.holds import SystemActor, Target, TargetKind, part_name, run_name
from dagster_tidegate.statuses import RUN_MOVES, RunStatus
from dagster_tidegate.store import events
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Connection
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.upsert import insert

MAX_GUESSED_FROM = 1000


class MoveNotAllowedError(Exception):
    """A campaign run can't go from its status to the requested one."""


class AttemptRefusedError(Exception):
    """A Dagster run may not work on a campaign run: another attempt owns it."""


class AttemptPausedError(AttemptRefusedError):
    """A Dagster run may no longer work on a campaign run: its attempt has paused."""


@dataclass(frozen=True)
class CampaignRun:
    """One partition of a campaign, of all its assets or of some. Times are UTC.

    Attributes:
        partition: Its name within the campaign, from `holds.part_name`.
        dagster_partition: Dagster's partition key, or the id of the first run if there is none.
        assets: The assets that it covers, by name; empty: all of its job.
        first_attempt: The ledger has what this attempt and later ones did. What earlier ones did
            was another logical run, and no longer counts.
        ended_as: The status in which it ended; None while it has not since an attempt began.
        attempt: Number of the attempt that owns it; 0 before the first.
        priority: Runs of higher priority resume first.
        changed_at: When its status last changed.
        pruned_at: When its ledger expired, after it had ended.
        waits_for_start: Whether a person created it, and no Dagster run was launched for it yet.
        refused_by: While it is paused: services that refused it and that no pool of its job names.
            It waits for these, too.
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
    dagster_partition: str = ""
    assets: tuple[str, ...] = ()
    first_attempt: int = 0
    ended_as: RunStatus | None = None
    has_old_records: bool = False
    refused_by: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`campaign/partition`, the name of the target of a hold on it."""
        return run_name(self.campaign, self.partition)

    @property
    def logical_name(self) -> str:
        """Distinguishes what it does now from what it did before it was started afresh.

        A service that remembers idempotency keys would else answer with the old results.
        """
        return self.name if self.first_attempt <= 1 else f"{self.name}#{self.first_attempt}"


@dataclass(frozen=True)
class AttemptRow:
    """One Dagster run that works, or worked, on a campaign run. Times are UTC.

    Attributes:
        outcome: The status in which it left the campaign run, or None.
        lease_until: When the lease of its latest record loop expires; None without a record loop,
            when Dagster alone knows whether the attempt is alive.
    """

    campaign_run: int
    number: int
    dagster_run: str
    started_at: datetime
    ended_at: datetime | None
    outcome: RunStatus | None
    # Not compared: it changes while the same attempt works.
    lease_until: datetime | None = field(default=None, compare=False)

    def works(self, now: datetime) -> bool:
        """Return whether it is at work, as far as the store knows."""
        return self.ended_at is None and (self.lease_until is None or self.lease_until >= now)


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
    conn: Connection,
    now: datetime,
    campaign: str,
    partition: str,
    assets: Collection[str] = (),
    *,
    priority: int = 0,
) -> CampaignRun:
    """Return the campaign run of a partition; create it, as pending, if there is none.

    Args:
        partition: Dagster's partition key, or the id of the first run if there is none.
        assets: The assets that it covers; empty: all of its job.
    """
    actor = SystemActor.GATE
    create(conn, now, campaign, partition, assets, priority=priority, actor=actor)
    run = find(conn, campaign, part_name(partition, assets))
    assert run is not None  # just created or already there, and never deleted
    return run


def create(
    conn: Connection,
    now: datetime,
    campaign: str,
    partition: str,
    assets: Collection[str] = (),
    *,
    priority: int = 0,
    waits_for_start: bool = False,
    actor: str,
) -> bool:
    """Create the campaign run of a partition, as pending; False if it exists already.

    Args:
        partition: As for `ensure`, like `assets`.
        priority: Runs of higher priority resume first.
        waits_for_start: Whether a person launches its Dagster run later, with `claim_start`.
    """
    name = part_name(partition, assets)
    created = conn.scalar(
        insert(conn, t.campaign_runs)
        .values(
            campaign=campaign,
            partition=name,
            dagster_partition=None if name == partition else partition,
            assets=sorted(assets) or None,
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
        name = run_name(campaign, name)
        _event(conn, now, name, None, RunStatus.PENDING, actor=actor)
    return bool(created)


def claim_start(conn: Connection, now: datetime, run: CampaignRun, *, actor: str) -> bool:
    """Give the caller the right to launch a Dagster run for a campaign run.

    Args:
        run: The campaign run as the caller read it.

    Returns:
        False if the campaign run is in progress, or another caller was first.
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
    conn: Connection, now: datetime, former: CampaignRun, reason: str, *, actor: str
) -> None:
    """Undo `claim_start` after no Dagster run could be launched.

    A campaign run that was new or waited to be started waits to be started again.

    Args:
        former: The campaign run before the claim. Nothing happens unless it is still pending.
    """
    is_new = former.status is RunStatus.PENDING
    undone = conn.execute(
        t.campaign_runs.update()
        .where(*_unchanged(former, RunStatus.PENDING))
        .values(
            status=former.status,
            waits_for_start=is_new,
            paused_at=former.paused_at,
            reason=reason if is_new else former.reason,
            changed_at=now,
        )
    ).rowcount
    if undone:
        _event(conn, now, former.name, RunStatus.PENDING, former.status, reason, actor=actor)


def find(conn: Connection, campaign: str, partition: str) -> CampaignRun | None:
    """Return the campaign run with a name within its campaign, or None if there is none."""
    c = t.campaign_runs.c
    return _one(conn, c.campaign == campaign, c.partition == partition)


def of_target(conn: Connection, target: Target) -> CampaignRun | None:
    """Return the campaign run that a target names; None if it names none, or one without a row."""
    if target.kind is not TargetKind.CAMPAIGN_RUN:
        return None
    return find(conn, *target.name.split("/", 1))


def get(conn: Connection, campaign_run: int) -> CampaignRun | None:
    """Return a campaign run by its id, or None if there is none."""
    return _one(conn, t.campaign_runs.c.id == campaign_run)


def locked(conn: Connection, campaign_run: int) -> CampaignRun:
    """Return a campaign run by its id; nobody else changes it until the transaction ends."""
    query = sa.select(t.campaign_runs).where(t.campaign_runs.c.id == campaign_run)
    return from_row(conn.execute(query.with_for_update()).one()._asdict())


def with_status(
    conn: Connection, *statuses: RunStatus, campaigns: Collection[str] | None = None
) -> Sequence[CampaignRun]:
    """Return the campaign runs that have one of `statuses`, in `resume_order`."""
    c = t.campaign_runs.c
    query = sa.select(t.campaign_runs).where(c.status.in_(statuses))
    if campaigns is not None:
        query = query.where(c.campaign.in_(campaigns))
    return _all(conn, query.order_by(c.priority.desc(), c.paused_at, c.id))


def newest(
    conn: Connection,
    *,
    campaign: str | None = None,
    statuses: Collection[RunStatus] = (),
    text: str = "",
    before: int | None = None,
    by_change: bool = False,
    limit: int,
) -> Sequence[CampaignRun]:
    """Return campaign runs, the one created last first.

    Args:
        text: Only those with this in their partition, in upper or lower case.
        before: Only those with a lower id.
        by_change: The one that changed last first.
    """
    c = t.campaign_runs.c
    query = sa.select(t.campaign_runs)
    if campaign is not None:
        query = query.where(c.campaign == campaign)
    if statuses:
        query = query.where(c.status.in_(statuses))
    if text:
        query = query.where(sa.func.lower(c.partition).contains(text.lower(), autoescape=True))
    if before is not None:
        query = query.where(c.id < before)
    order = [c.changed_at.desc()] if by_change else []
    return _all(conn, query.order_by(*order, c.id.desc()).limit(limit))


def newest_partitions(conn: Connection, campaign: str) -> Sequence[str]:
    """Return the partitions of a campaign's newest runs, to suggest one for a misspelt name."""
    c = t.campaign_runs.c
    query = sa.select(c.partition).where(c.campaign == campaign).order_by(c.id.desc())
    return conn.scalars(query.limit(MAX_GUESSED_FROM)).all()


def counts(
    conn: Connection, campaigns: Collection[str] | None = None
) -> Mapping[str, Mapping[RunStatus, int]]:
    """Return how many campaign runs of each campaign have each status.

    Args:
        campaigns: Only of these; None: of all.
    """
    c = t.campaign_runs.c
    query = sa.select(c.campaign, c.status, sa.func.count()).group_by(c.campaign, c.status)
    rows = conn.execute(query if campaigns is None else query.where(c.campaign.in_(campaigns)))
    by_campaign: dict[str, dict[RunStatus, int]] = {}
    for campaign, status, count in rows:
        by_campaign.setdefault(campaign, {})[RunStatus(status)] = count
    return by_campaign


def set_reason(conn: Connection, run: CampaignRun, reason: str) -> None:
    """Correct the reason for the status of a campaign run, if it is still as the caller read it."""
    unchanged = _unchanged(run, run.status)
    conn.execute(t.campaign_runs.update().where(*unchanged).values(reason=reason))


def move(
    conn: Connection,
    now: datetime,
    run: CampaignRun,
    to: RunStatus,
    *,
    reason: str | None = None,
    refused_by: Collection[str] = (),
    actor: str,
    details: Mapping[str, Any] | None = None,
) -> bool:
    """Move a campaign run to another status, if it is still as the caller read it.

    A move to anything but `processing` or `pending` ends the attempt that owns the campaign run.

    Args:
        refused_by: See `CampaignRun`.
        details: What else its event records.

    Returns:
        False if somebody else changed it first.

    Raises:
        MoveNotAllowedError: If `statuses.RUN_MOVES` has no such move.
    """
    if to not in RUN_MOVES[run.status]:
        raise MoveNotAllowedError(f"{run.name} is {run.status}: it can't become {to}")
    moved = conn.execute(
        t.campaign_runs.update()
        .where(*_unchanged(run, run.status))
        .values(
            status=to,
            waits_for_start=False,
            reason=reason,
            paused_at=now if to is RunStatus.PAUSED else None,
            refused_by=",".join(sorted(refused_by)) or None,
            changed_at=now,
            **_ended_as(to),
        )
    ).rowcount
    if not moved:
        return False
    if to not in (RunStatus.PENDING, RunStatus.PROCESSING):
        _end_attempt(conn, now, run.id, run.attempt, to)
    _event(conn, now, run.name, run.status, to, reason, actor=actor, details=details)
    return True


def latest_attempt(conn: Connection, campaign_run: int) -> AttemptRow | None:
    """Return the newest attempt at a campaign run, or None before the first."""
    made = attempts(conn, campaign_run)
    return made[-1] if made else None


def attempts(conn: Connection, campaign_run: int, *, since: int = 0) -> Sequence[AttemptRow]:
    """Return the attempts at a campaign run, the oldest first.

    Args:
        since: Only from this number on.
    """
    c = t.attempts.c
    of_run = (c.campaign_run == campaign_run) & (c.number >= since)
    rows = conn.execute(_ATTEMPTS.where(of_run).order_by(c.number))
    return [_attempt(row) for row in rows]


def attempts_between(
    conn: Connection, start: datetime, end: datetime, *, limit: int
) -> Sequence[tuple[CampaignRun, AttemptRow]]:
    """Return the attempts that were at work in a span of time (UTC), the latest first."""
    a, r = t.attempts.c, t.campaign_runs.c
    rows = conn.execute(
        sa.select(a.campaign_run, a.number)
        .where(a.started_at < end, a.ended_at.is_(None) | (a.ended_at >= start))
        .order_by(a.started_at.desc())
        .limit(limit)
    ).all()
    ids = {row.campaign_run for row in rows}
    by_id = {
        run.id: run
        for run in _all(conn, sa.select(t.campaign_runs).where(r.id.in_(ids)).order_by(r.id))
    }
    wanted = sa.tuple_(a.campaign_run, a.number).in_([tuple(row) for row in rows])
    attempts = conn.execute(_ATTEMPTS.where(wanted).order_by(a.started_at.desc()))
    return [(by_id[row.campaign_run], _attempt(row)) for row in attempts]


def began_with(series: Sequence[AttemptRow]) -> int:
    """Return the number of the attempt that started the work which the newest attempt resumes.

    Args:
        series: The attempts at a campaign run, the oldest first; at least one.

    Example:
        After a failure and a re-execution that paused twice, that is the re-execution.
    """
    first = len(series) - 1
    while first > 0 and series[first - 1].outcome is RunStatus.PAUSED:
        first -= 1
    return series[first].number


def attempt_of(conn: Connection, dagster_run: str) -> AttemptRow | None:
    """Return the attempt that a Dagster run made, or None if it made none."""
    return attempts_of(conn, [dagster_run]).get(dagster_run)


def attempts_of(conn: Connection, dagster_runs: Collection[str]) -> Mapping[str, AttemptRow]:
    """Return the attempts that Dagster runs made, by the id of the Dagster run."""
    rows = conn.execute(_ATTEMPTS.where(t.attempts.c.dagster_run.in_(dagster_runs)))
    return {row.dagster_run: _attempt(row) for row in rows}


def named(
    conn: Connection, names: Collection[tuple[str, str]]
) -> Mapping[tuple[str, str], CampaignRun]:
    """Return the existing campaign runs of some (campaign, partition) pairs.

    The result may hold other pairs of the same campaigns and partitions too.
    """
    c = t.campaign_runs.c
    query = sa.select(t.campaign_runs).where(
        c.campaign.in_({campaign for campaign, _ in names}),
        c.partition.in_({partition for _, partition in names}),
    )
    return {(run.campaign, run.partition): run for run in _all(conn, query)}


def begin_attempt(
    conn: Connection,
    now: datetime,
    run: CampaignRun,
    dagster_run: str,
    *,
    owner_is_over: bool,
    continues: bool = True,
) -> AttemptRow:
    """Make a Dagster run the owner of a campaign run. The ops of one run share an attempt.

    An attempt that starts afresh leaves nothing of earlier ones: their records do not count any
    more. They are deleted later, in batches: a million at once would keep SQLite's writers waiting
    for seconds.

    Args:
        owner_is_over: Whether the Dagster run of the newest attempt has ended in Dagster, or the
            attempt's lease has expired.
        continues: Whether what earlier attempts did still counts; else it starts afresh.

    Returns:
        The attempt; its number fences the writes of older ones.

    Raises:
        AttemptPausedError: If this Dagster run's attempt has paused.
        AttemptRefusedError: If another attempt's Dagster run has not ended, or this Dagster run's
            attempt is over.
    """
    # Ops of one run may start at the same moment: the second waits here for the first's attempt.
    run = locked(conn, run.id)
    newest = latest_attempt(conn, run.id)
    if newest is not None and newest.dagster_run == dagster_run:
        if newest.ended_at is None:
            return newest
        paused = newest.outcome is RunStatus.PAUSED
        raise (AttemptPausedError if paused else AttemptRefusedError)(
            f"{run.name}: attempt {newest.number} ended as {newest.outcome}; its Dagster run "
            f"{dagster_run} can't continue it"
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
    number = run.attempt + 1
    is_first = newest is None or not continues
    if is_first:
        conn.execute(t.progress.delete().where(t.progress.c.campaign_run == run.id))
    conn.execute(
        t.campaign_runs.update()
        .where(t.campaign_runs.c.id == run.id)
        .values(
            status=RunStatus.PROCESSING,
            waits_for_start=False,
            attempt=number,
            first_attempt=number if is_first else run.first_attempt,
            has_old_records=run.has_old_records or (is_first and number > 1),
            pruned_at=None,
            ended_as=None,
            reason=None,
            paused_at=None,
            refused_by=None,
            changed_at=now,
        )
    )
    if newest is not None:
        _end_attempt(conn, now, run.id, newest.number, RunStatus.FAILED)
    conn.execute(
        t.attempts.insert().values(
            campaign_run=run.id, number=number, dagster_run=dagster_run, started_at=now
        )
    )
    _event(
        conn,
        now,
        run.name,
        run.status,
        RunStatus.PROCESSING,
        f"attempt {number}",
        actor=dagster_run,
    )
    return AttemptRow(run.id, number, dagster_run, now, None, None)


def from_row(values: Mapping[Any, Any]) -> CampaignRun:
    """Return the campaign run of a row of the table."""
    ended_as, refused_by = values["ended_as"], values["refused_by"]
    return CampaignRun(
        **{
            **values,
            "status": RunStatus(values["status"]),
            "dagster_partition": values["dagster_partition"] or values["partition"],
            "assets": tuple(values["assets"] or ()),
            "ended_as": None if ended_as is None else RunStatus(ended_as),
            "refused_by": tuple(refused_by.split(",")) if refused_by else (),
        }
    )


def resume_order(run: CampaignRun) -> tuple[int, datetime | None, int]:
    """Sort paused campaign runs by this: the highest priority first, then the longest paused."""
    return -run.priority, run.paused_at, run.id


def _one(conn: Connection, *where: sa.ColumnElement[bool]) -> CampaignRun | None:
    row = conn.execute(sa.select(t.campaign_runs).where(*where)).one_or_none()
    return None if row is None else from_row(row._asdict())


def _all(conn: Connection, query: sa.Select) -> list[CampaignRun]:
    return [from_row(row) for row in conn.execute(query).mappings()]


def _unchanged(run: CampaignRun, status: RunStatus) -> tuple[sa.ColumnElement[bool], ...]:
    """Whether a campaign run has a status, and no further attempt than the caller knows."""
    c = t.campaign_runs.c
    return c.id == run.id, c.status == status, c.attempt == run.attempt


def _ended_as(to: RunStatus) -> Mapping[str, RunStatus | None]:
    """What a move to a status says about how the campaign run ended; it may be queued again."""
    if to in (RunStatus.PENDING, RunStatus.PROCESSING):
        return {}
    return {"ended_as": None if to is RunStatus.PAUSED else to}


def _attempt(row: sa.Row) -> AttemptRow:
    outcome = None if row.outcome is None else RunStatus(row.outcome)
    return AttemptRow(**{**row._asdict(), "outcome": outcome})


def _end_attempt(
    conn: Connection, now: datetime, campaign_run: int, number: int, outcome: RunStatus
) -> None:
    c = t.attempts.c
    conn.execute(
        t.attempts.update()
        .where(c.campaign_run == campaign_run, c.number == number, c.ended_at.is_(None))
        .values(ended_at=now, outcome=outcome)
    )


def _event(
    conn: Connection,
    now: datetime,
    name: str,
    from_status: RunStatus | None,
    to_status: RunStatus,
    reason: str | None = None,
    *,
    actor: str,
    details: Mapping[str, Any] | None = None,
) -> None:
    events.write(
        conn,
        now,
        kind=EventKind.CAMPAIGN_RUN,
        name=name,
        from_status=from_status,
        to_status=to_status,
        reason=reason,
        actor=actor,
        after=details,
    )
