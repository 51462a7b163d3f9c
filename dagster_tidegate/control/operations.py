"""What operators do, shared by the CLI and the API: hold, release, start, cancel, override."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.control import situation
from dagster_tidegate.control.effects import Effect, effects
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.why import UnknownNameError
from dagster_tidegate.dagster_api import CONTINUES_TAG
from dagster_tidegate.holds import Hold, HoldSource, Target, run_name
from dagster_tidegate.statuses import UNFINISHED, RunStatus
from dagster_tidegate.store import breakers, events, history, holds, runs, windows
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.history import Event
from dagster_tidegate.store.runs import CampaignRun, MoveNotAllowedError
from dagster_tidegate.store.windows import PlannedWindow
from dagster_tidegate.text import MAX_REASON, did_you_mean, shown, words

if TYPE_CHECKING:
    from dagster_tidegate.dagster_api.launch import WorkspaceLauncher

ACTOR_TAG = "tidegate/started_by"
"""Tag of Dagster runs that an operator started through Tidegate; its value is the operator."""


_REQUESTED = "requested"
REPAIRED = "repaired"
"""The reason of `repaired` where no other is given."""


class NotPausableError(Exception):
    """A campaign run has ended, so there is nothing to pause."""


class NotDeniedError(Exception):
    """A service does not refuse this client, so there is nothing to repair."""


class UnderWayError(Exception):
    """A campaign run has already been started, perhaps by somebody else just now."""


class ChangedMeanwhileError(Exception):
    """Somebody else changed a campaign run at the same time."""


@dataclass
class Change:
    """A change of holds, with its effects.

    Attributes:
        now: The database's time (UTC).
        after: The situation after it; like what follows, it is set at the end of the transaction.
        run: The campaign run, if that is the target and exists.
    """

    conn: Connection
    now: datetime
    before: Situation
    after: Situation = field(init=False)
    run: CampaignRun | None = field(init=False)
    effects: Sequence[Effect] = field(init=False)


class _DryRunError(Exception):
    """Rolls back a dry run."""


@contextmanager
def writing(store: Store, *, dry_run: bool) -> Iterator[Connection]:
    """Open a transaction that writes; a dry run is rolled back at its end."""
    try:
        with store.begin() as conn:
            yield conn
            if dry_run:
                raise _DryRunError
    except _DryRunError:
        pass


@contextmanager
def changing(store: Store, target: Target, *, dry_run: bool) -> Iterator[Change]:
    """Open a transaction that changes the holds on a target; its effects are read at the end."""
    with writing(store, dry_run=dry_run) as conn:
        now = store.now(conn)
        change = Change(conn, now, situation.read(conn, now))
        yield change
        change.after = situation.read(conn, now)
        change.run = runs.of_target(conn, target)
        change.effects = effects(change.before, change.after, target, change.run)


def hold(
    conn: Connection,
    now: datetime,
    target: Target,
    *,
    reason: str,
    actor: str,
    expires_at: datetime | None = None,
) -> Hold:
    """Place an operator's hold, or update the reason and expiry of the one they have.

    Raises:
        ValueError: If `expires_at` is not after `now`.
    """
    return holds.place(
        conn,
        now,
        target,
        source=HoldSource.OPERATOR,
        reason=reason,
        actor=actor,
        expires_at=expires_at,
    )


def require_pausable(conn: Connection, run: CampaignRun) -> None:
    """Check that a campaign run has not ended, and lock its row, so that it does not end now.

    Raises:
        NotPausableError: If it has ended.
    """
    current = runs.locked(conn, run.id)
    if current.status not in UNFINISHED:
        raise NotPausableError(f"{run.name} is {current.status}: there is nothing left to pause")


def release(
    conn: Connection, now: datetime, target: Target, *, actor: str, force: bool = False
) -> Sequence[Hold]:
    """Release the holds of all operators on a target; without any, nothing happens.

    Args:
        force: Also release the breaker's own hold, and close the breaker.

    Returns:
        The released holds.

    Raises:
        NotYourHoldError: If only a breaker holds it, without `force`.
    """
    live = holds.live(conn, now, target) if force else ()
    by_breaker = any(hold.source is HoldSource.BREAKER for hold in live)
    released = breakers.close(conn, now, target.name, actor=actor) if by_breaker else []
    return released + holds.release(conn, now, target, source=HoldSource.OPERATOR, actor=actor)


def keep_closed(
    conn: Connection,
    now: datetime,
    service: str,
    *,
    reason: str,
    actor: str,
    until: datetime | None = None,
) -> BreakerStatus:
    """Close the breaker of a service, release its hold and keep it from tripping.

    Repeating it replaces the end and the operator.

    Args:
        until: When it may trip again (UTC); None: only after `let_trip`.

    Raises:
        UnknownNameError: If the service has no breaker.
        ValueError: If `until` is not after `now`.
    """
    _require_breaker(conn, service)
    return breakers.keep_closed(conn, now, service, actor=actor, until=until, reason=reason)


def let_trip(conn: Connection, now: datetime, service: str, *, actor: str) -> bool:
    """Let a breaker that an operator keeps closed trip again.

    Returns:
        False if nobody kept it closed; then nothing changes.

    Raises:
        UnknownNameError: If the service has no breaker.
    """
    if not _require_breaker(conn, service).kept_closed(now):
        return False
    breakers.let_trip(conn, now, service, actor=actor)
    return True


def repaired(
    conn: Connection, now: datetime, service: str, *, reason: str, actor: str
) -> BreakerStatus:
    """Half open the breaker of a service that refused this client: a trial call checks the repair.

    Raises:
        UnknownNameError: If the service has no breaker.
        NotDeniedError: If it does not refuse this client.
    """
    breaker = _require_breaker(conn, service)
    if not breaker.is_denied:
        state = words(breaker.state)
        raise NotDeniedError(
            f"{service} does not refuse this client: its breaker is {state}, which needs no repair "
            "by hand"
        )
    return breakers.half_open(conn, now, service, actor=actor, reason=reason)


def _require_breaker(conn: Connection, service: str) -> BreakerStatus:
    statuses = breakers.read(conn)
    if service not in statuses:
        names = ", ".join(sorted(statuses)) or "none"
        hint = did_you_mean(service, statuses, f"known: {names}")
        raise UnknownNameError(f"no service with a breaker is named {service!r}; {hint}")
    return statuses[service]


def add_window(conn: Connection, now: datetime, window: PlannedWindow, *, actor: str) -> None:
    """Add a recurring maintenance window to a service, or replace the reason of the one it has."""
    windows.add(conn, window)
    _write_window_event(conn, now, window, "added", actor)


def remove_windows(
    conn: Connection, now: datetime, service: str, cron: str | None = None, *, actor: str
) -> Sequence[PlannedWindow]:
    """Remove the maintenance windows of a service that were added by hand.

    If the service is in one, the hold stays until its end, unless it is released.

    Args:
        cron: Only those with this cron expression.

    Returns:
        The removed windows.
    """
    chosen = [
        window
        for window in windows.read(conn, [windows.BY_HAND])
        if window.service == service and cron in (None, window.cron)
    ]
    for window in chosen:
        windows.remove(conn, window)
        _write_window_event(conn, now, window, "removed", actor)
    return chosen


def _write_window_event(
    conn: Connection, now: datetime, window: PlannedWindow, change: str, actor: str
) -> None:
    events.write(
        conn,
        now,
        kind=EventKind.WINDOW,
        name=window.service,
        to_status=change,
        reason=window.reason,
        actor=actor,
        after={"cron": window.cron, "timezone": window.timezone, "duration_s": window.duration_s},
    )


def release_one(
    conn: Connection, now: datetime, hold: Hold, *, actor: str, force: bool = False
) -> None:
    """Release one hold; if it has ended, nothing happens.

    Args:
        force: Release it even if it is a breaker's, and close the breaker.

    Raises:
        NotYourHoldError: If it is a breaker's, without `force`.
    """
    holds.expire(conn, now)
    current = holds.get(conn, hold.id)
    if current is None or not current.live(now):
        return
    if current.source is HoldSource.BREAKER:
        if not force:
            raise holds.NotYourHoldError(
                f"{current.target} is held by {current.actor} ({current.reason}); use force to "
                "release it anyway"
            )
        breakers.close(conn, now, current.target.name, actor=actor)
    else:
        holds.end(conn, now, [current], actor=actor)


def start(
    store: Store,
    launcher: "WorkspaceLauncher",
    campaign: CampaignSpec,
    partition: str | None,
    *,
    actor: str,
    run_id: str | None = None,
) -> str:
    """Start a campaign run: put a Dagster run of it into the queue.

    One that failed or was cancelled keeps its finished records; one that completed starts afresh.

    If two operators start the same partition at once, one launches it. A failed launch leaves the
    campaign run as it was; a new one stays `pending`, waiting for a start. Whoever repeats a call
    whose process died before the launch, with the same `run_id`, launches it.

    Args:
        partition: The partition; None for a job without partitions, where each start creates a
            campaign run.
        run_id: The id of the Dagster run, if the caller may repeat the call; None: a new one.

    Returns:
        The id of the Dagster run.

    Raises:
        UnderWayError: If it has already been started.
        ChangedMeanwhileError: If somebody cancelled it while it was launched.
        Exception: Whatever `launcher` raises if the run can't be launched.
    """
    with store.read() as conn:
        known = None if partition is None else runs.find(conn, campaign.name, partition)
    of_dagster = partition if known is None else known.dagster_partition
    launcher.check(campaign.name, of_dagster, campaign.location)
    chosen = run_id or str(uuid4())
    name = run_name(campaign.name, partition or chosen)
    claimed = _claim(store, campaign, partition, name, chosen, actor)
    goes_on = claimed is not None and _ended_as(claimed) in (RunStatus.FAILED, RunStatus.CANCELLED)
    try:
        dagster_run = launcher.launch(
            campaign.name,
            partition=of_dagster,
            assets=() if known is None else known.assets,
            tags={ACTOR_TAG: actor} | ({CONTINUES_TAG: "true"} if goes_on else {}),
            location=campaign.location,
            run_id=chosen,
            may_repeat=run_id is not None,
        )
    except BaseException as error:
        with store.begin() as conn:
            start_failed(conn, store.now(conn), name, claimed, error, actor=actor)
        raise
    if claimed is None:
        return dagster_run
    with store.read() as conn:
        current = runs.get(conn, claimed.id)
    if current is not None and current.status is RunStatus.CANCELLED:
        launcher.terminate(current.campaign, current.dagster_partition, current.assets)
        raise ChangedMeanwhileError(f"{current.name} was cancelled while it was launched")
    return dagster_run


def begun(conn: Connection, name: str, run_id: str | None) -> Event | None:
    """Return the event of a start whose Dagster run has this id, if none was requested since.

    The process that requested it may have died before it launched the run. If the campaign run is
    still pending, a repeated request may launch it.
    """
    newest = None if run_id is None else history.newest(conn, EventKind.START, name)
    if newest is None or newest.to_status != _REQUESTED:
        return None
    return newest if newest.reason == _of_dagster_run(run_id) else None


def request_start(
    conn: Connection,
    now: datetime,
    name: str,
    run_id: str,
    *,
    actor: str,
    marked: Mapping[str, int] | None = None,
) -> None:
    """Record that a Dagster run is about to be launched, in the transaction of the claim.

    Args:
        name: The campaign run.
        marked: How many records were marked for it, by op; None: it does all of them.
    """
    events.write(
        conn,
        now,
        kind=EventKind.START,
        name=name,
        to_status=_REQUESTED,
        reason=_of_dagster_run(run_id),
        actor=actor,
        after=None if marked is None else {"marked": dict(marked)},
    )


def start_failed(
    conn: Connection,
    now: datetime,
    name: str,
    claimed: CampaignRun | None,
    error: BaseException,
    *,
    actor: str,
) -> None:
    """Record that a Dagster run that was requested could not be launched, and undo its claim.

    Args:
        name: The campaign run.
        claimed: As it was before the claim; None if there is none.
    """
    reason = shown(f"it could not be launched: {error}")[:MAX_REASON]
    events.write(
        conn, now, kind=EventKind.START, name=name, to_status="failed", reason=reason, actor=actor
    )
    if claimed is not None:
        runs.give_start_back(conn, now, claimed, reason, actor=actor)


def cancel(
    store: Store, launcher: "WorkspaceLauncher | None", run: CampaignRun, *, actor: str
) -> CampaignRun:
    """Cancel a campaign run and terminate its Dagster runs. Idempotent.

    A run that is processing ends after its current record, and is cancelled when its process
    reports that.

    Args:
        launcher: Dagster; may be None for a campaign run that was never started.

    Returns:
        The campaign run as it is now.

    Raises:
        MoveNotAllowedError: If it has completed or failed.
        ChangedMeanwhileError: If somebody else moved it at the same time.
        Exception: Whatever `launcher` raises if Dagster can't terminate a run yet.
    """
    if run.status in (RunStatus.COMPLETED, RunStatus.FAILED):
        raise MoveNotAllowedError(f"{run.name} is {run.status}: it can't become cancelled")
    if run.status is not RunStatus.CANCELLED:
        with store.begin() as conn:
            events.write(
                conn,
                store.now(conn),
                kind=EventKind.CANCEL,
                name=run.name,
                from_status=run.status,
                to_status="requested",
                actor=actor,
            )
    if run.status is RunStatus.PAUSED:
        run = _cancelled(store, run, actor)  # first, so that the gate starts no next attempt
    ending = _terminate(launcher, run)
    if run.status is RunStatus.CANCELLED or (run.status is RunStatus.PROCESSING and ending):
        return run
    return _cancelled(store, run, actor)


def _claim(
    store: Store,
    campaign: CampaignSpec,
    partition: str | None,
    name: str,
    run_id: str,
    actor: str,
) -> CampaignRun | None:
    """Return the campaign run as it was before the claim, or the new one; None without one."""
    with store.begin() as conn:
        now = store.now(conn)
        run = None
        if partition is not None:
            created = runs.create(
                conn, now, campaign.name, partition, priority=campaign.priority, actor=actor
            )
            run = runs.find(conn, campaign.name, partition)
            assert run is not None  # created or found just above, and never deleted
            if not created and is_claimed(run, begun(conn, name, run_id)):
                return before_claim(run)
            if not created and not runs.claim_start(conn, now, run, actor=actor):
                raise UnderWayError(f"{run.name} is already {run.status}")
        elif begun(conn, name, run_id) is not None:
            return None
        request_start(conn, now, name, run_id, actor=actor)
        return run


def is_claimed(run: CampaignRun, start: Event | None) -> bool:
    """Return whether a campaign run is pending since a start; see `begun`."""
    return start is not None and run.status is RunStatus.PENDING and not run.waits_for_start


def before_claim(run: CampaignRun) -> CampaignRun:
    """Return a claimed campaign run as it ended before, as far as is known."""
    return run if run.ended_as is None else replace(run, status=run.ended_as)


def _of_dagster_run(run_id: str | None) -> str:
    return f"Dagster run {run_id}"


def _ended_as(run: CampaignRun) -> RunStatus:
    return run.ended_as or run.status


def _terminate(launcher: "WorkspaceLauncher | None", run: CampaignRun) -> Sequence[str]:
    if launcher is None:
        return ()
    return launcher.terminate(run.campaign, run.dagster_partition, run.assets)


def _cancelled(store: Store, run: CampaignRun, actor: str) -> CampaignRun:
    with store.begin() as conn:
        reason = "cancelled by hand"
        now = store.now(conn)
        moved = runs.move(conn, now, run, RunStatus.CANCELLED, reason=reason, actor=actor)
        current = runs.get(conn, run.id)
    assert current is not None  # never deleted
    if not moved and current.status is not RunStatus.CANCELLED:
        raise ChangedMeanwhileError(f"{run.name} has just become {current.status}")
    return current
