"""An attempt: one Dagster run's work on a campaign run, from its claim to its end."""

import logging
from collections.abc import Collection, Mapping, Sequence, Set
from datetime import datetime, timedelta
from signal import SIGTERM
from typing import Any, NoReturn
from urllib.parse import quote

import dagster as dg

from dagster_tidegate import holds
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.dagster_api.backfills import (
    IN_BACKFILL_TAG,
    PAUSED,
    RESUMED,
    is_in_backfill,
)
from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.dagster_api.lineage import (
    AFRESH_TAG,
    MAX_TAG,
    REASON_TAG,
    assets_of,
    campaign_of,
    dagster_partition_of,
    does_only_marked,
    is_automatic_retry,
    is_resume,
    is_superseded,
    parent_of,
    retries_assets_of,
    retry_is_due,
    starts_afresh,
    superseded_tags,
    tried_by,
    was_started_to_continue,
    why_it_continues,
)
from dagster_tidegate.dagster_api.runs import is_interrupted
from dagster_tidegate.gate import tighten_now
from dagster_tidegate.holds import Hold, HoldSource, Target, TargetKind
from dagster_tidegate.pools import PoolNeeds, with_wholes
from dagster_tidegate.records.host import StopLoop, StopReason
from dagster_tidegate.records.retry import retry_while_unreachable
from dagster_tidegate.settings import GeneralSettings, load
from dagster_tidegate.statuses import UNFINISHED, BreakerState, RunStatus
from dagster_tidegate.store import campaigns, ledger, runs
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.ledger import AttemptOverError
from dagster_tidegate.store.runs import (
    AttemptPausedError,
    AttemptRefusedError,
    AttemptRow,
    CampaignRun,
)

STATE_TAG = "tidegate/state"
SERVICE_TAG = "tidegate/service"
FAILED_TAG = "tidegate/failed"
# How many runs without an attempt may lie between two attempts.
MAX_LINEAGE = 20
RETRY_WITHIN = timedelta(minutes=10)
"""How long after a failure Dagster may still launch its retry."""


class CampaignPaused(dg.Failure, StopLoop):
    """Raised in an op to end its run as paused.

    Dagster calls op failure hooks for it, but nothing else that reacts to failures. A hook can
    check for this type in `context.op_exception`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(description=message, allow_retries=False)


class CampaignCancelled(dg.Failure, StopLoop):
    """Raised in an op to end its run after it was terminated in Dagster.

    As with `CampaignPaused`, Dagster calls op failure hooks and nothing else.
    """

    def __init__(self, message: str) -> None:
        super().__init__(description=message, allow_retries=False)


class Attempt:
    """What an op does as part of an attempt: the `LoopHost` of its record loops.

    All ops of a Dagster run share one attempt. `begin` claims the campaign run for it, `holds`
    says what covers it now, and `stop` ends it as paused or cancelled.
    """

    def __init__(
        self,
        context: dg.OpExecutionContext,
        store: Store,
        fleet: Fleet,
        run: CampaignRun,
        attempts: Sequence[AttemptRow],
        called: Collection[str],
        drain_timeout_s: float,
    ) -> None:
        self.store, self.fleet = store, fleet
        self.run = run
        self.row = attempts[-1]
        self.series = runs.began_with(attempts)
        self.continues = _why_continued(context.run, attempts)
        self.only_marked = does_only_marked(context.run)
        self.drain_timeout_s = drain_timeout_s
        self.log: logging.Logger = context.log
        self._context = context
        self._dagster = Dagster(context.instance)
        self._declared = fleet.needs(context.op_def.pool).services
        self._needs = _needs_downstream(context, fleet)
        self._needed = {service for need in self._needs for service in need.services}
        self._called, self._refused = called, set[str]()

    @classmethod
    def begin(
        cls,
        context: dg.OpExecutionContext,
        store: Store,
        fleet: Fleet,
        *,
        called: Collection[str] = (),
        drain_timeout_s: float,
    ) -> "Attempt":
        """Make the Dagster run of `context` the owner of its campaign run.

        Args:
            called: The services that the op has called; it may grow.

        Raises:
            CampaignPaused: If another op has paused the run.
            CampaignCancelled: If the gate requested the run, and another one was launched first
                or a person cancelled the campaign run; or if the run is being terminated, and
                Dagster has begun the op again by its retry policy.
            AttemptRefusedError: If another attempt owns the campaign run and has not ended.
        """
        try:
            run, attempts = retry_while_unreachable(lambda: _claim(context, store), context.log)
        except AttemptPausedError as error:
            raise CampaignPaused(str(error)) from error
        except AttemptRefusedError:
            # Dagster's retry would do everything again, once the attempt that owns it has ended.
            Dagster(context.instance).do_not_retry(context.run_id)
            raise
        attempt = cls(context, store, fleet, run, attempts, called, drain_timeout_s)
        attempt._replace_inherited_tags()
        if len(attempts) > 1:
            attempt._mark_resumed(attempts[-2])
        if attempt._dagster.is_canceling(context.run_id):
            attempt.stop(StopReason(signal=SIGTERM))
        return attempt

    @property
    def services(self) -> Sequence[str]:
        """The services that the op's pool names, and those that it has called."""
        return sorted(self._declared | self._calls.services)

    @property
    def _calls(self) -> PoolNeeds:
        return self.fleet.needs("+".join(self._called))

    def refused(self, service: str) -> None:
        """Wait for a service as well, if no pool names it."""
        self._refused |= with_wholes([service])

    def holds(self) -> Sequence[Hold]:
        """Return the holds that cover the op, except that of a breaker whose canary this is.

        A hold on a service does not cover it while another service of its chain is free.
        """
        snapshot = self.fleet.snapshot()
        if not snapshot.holds:  # the usual case, before each record
            return ()
        services = snapshot.services
        covering = self.fleet.holds_on(
            services=self._needed | self._refused,
            campaign=self.run.campaign,
            partition=self.run.partition,
        )
        tried = {
            Target(TargetKind.SERVICE, name)
            for name in tried_by(self._context.run)
            if name in services and services[name].state is not BreakerState.OPEN
        }
        held = [h for h in covering if h.target not in tried or h.source is not HoldSource.BREAKER]
        blocking = self._blocked_by(_services(held))
        return [
            hold
            for hold in held
            if hold.target.kind is not TargetKind.SERVICE or hold.target.name in blocking
        ]

    def _blocked_by(self, held: Collection[str]) -> Set[str]:
        calls, refused = self._calls, self._refused.intersection(held)
        by_calls = refused & calls.blocked_by(held) | refused - calls.services
        return self._needs_blocked_by(held) | by_calls

    def _needs_blocked_by(self, held: Collection[str]) -> Set[str]:
        return frozenset().union(*(need.blocked_by(held) for need in self._needs))

    def stop(self, reason: StopReason) -> NoReturn:
        """Pause or cancel the campaign run, and end its Dagster run as CANCELED.

        It is cancelled if the loop stopped for a signal after a person terminated the run in
        Dagster, and paused otherwise. The store is written first: if the process dies in between,
        the campaign run is paused and resumes, whatever Dagster makes of its run.

        Raises:
            CampaignPaused: If it is paused.
            CampaignCancelled: If it is cancelled.
            AttemptOverError: If another attempt took over.
        """
        if reason.ended is not None:
            raise _ended(
                reason.ended,
                f"{self.run.name} is already {reason.ended}; this op stops at {reason.done}",
            )
        status, why = retry_while_unreachable(lambda: self._outcome(reason), self.log)
        if status is RunStatus.PAUSED and not retry_while_unreachable(self._has_gate, self.log):
            why = holds.without_gate(why, self.run.campaign)
        of = "" if reason.total is None else f"/{reason.total}"
        where = f": {why}" if reason.done is None else f" at {reason.done}{of}: {why}"
        status = retry_while_unreachable(lambda: self._end(status, where, reason), self.log)
        message = f"{status.capitalize()}{where}"
        tags = {STATE_TAG: status.value, REASON_TAG: why[:MAX_TAG]}
        if reason.holds:
            self._hold_queue()
            if services := _services(reason.holds):
                tags[SERVICE_TAG] = ",".join(services)[:MAX_TAG]
        if status is RunStatus.PAUSED and is_in_backfill(self._context.run):
            tags[IN_BACKFILL_TAG] = PAUSED
        self.log.info(message)
        details = _details(self.run, reason, why) if status is RunStatus.PAUSED else None
        run = self._context.run
        # Dagster waits no more than five seconds for a SQLite run storage that others write to.
        retry_while_unreachable(
            lambda: self._dagster.end_as_canceled(run, message, tags, details), self.log
        )
        raise _ended(status, message)

    def report_failed(self, failed: int) -> None:
        """Tag the Dagster run with the number of failed records of the campaign run."""
        if not failed and FAILED_TAG not in self._context.run.tags:  # Dagster copies it to retries
            return
        try:
            with self.store.read() as conn:
                failed = ledger.failed_records(conn, self.run.id)
            self._dagster.add_tags(self._context.run_id, {FAILED_TAG: str(failed)})
        except Exception as error:  # noqa: BLE001 -- the loop has ended, whatever its tag says
            self.log.warning("The run could not be tagged with its failed records: %r", error)

    def _outcome(self, reason: StopReason) -> tuple[RunStatus, str]:
        if reason.signal is not None and self._dagster.is_canceling(self._context.run_id):
            return RunStatus.CANCELLED, "it was terminated in Dagster"
        if reason.holds:
            return RunStatus.PAUSED, holds.describe(reason.holds, self.fleet.snapshot().services)
        if reason.signal is not None:
            why = f"its process received {reason.signal.name}; resumes automatically"
            return RunStatus.PAUSED, why
        if reason.refusal is not None:
            return RunStatus.PAUSED, f"{reason.refusal}; resumes automatically"
        return RunStatus.PAUSED, reason.outdated or ""

    def _has_gate(self) -> bool:
        """Whether a gate has the campaign, so that it resumes. It may be about to tick first."""
        with self.store.read() as conn:
            return campaigns.find(conn, self.run.campaign) is not None

    def _end(self, to: RunStatus, where: str, why: StopReason) -> RunStatus:
        """End the attempt in the store, and return its status: another op may have been first.

        That op asks Dagster to end the run, which then looks as if a person had terminated it.
        """
        with self.store.begin() as conn:
            current = runs.get(conn, self.run.id)
            if current is None or current.attempt != self.row.number:
                raise AttemptOverError(
                    f"{self.run.name} belongs to a newer attempt than {self.row.number}"
                )
            if current.status in (RunStatus.PAUSED, RunStatus.CANCELLED):
                return current.status
            if current.status is RunStatus.PROCESSING:
                now, reason = self.store.now(conn), f"{to.capitalize()}{where}"
                declared = self._needs_blocked_by(self._refused.union(_services(why.holds)))
                runs.move(
                    conn,
                    now,
                    current,
                    to,
                    reason=reason,
                    refused_by=self._refused - declared if to is RunStatus.PAUSED else (),
                    actor=self.row.dagster_run,
                    details={
                        "services": sorted({*_services(why.holds), *self._refused}),
                        "done": why.done,
                        "total": why.total,
                        "op": why.op,
                    },
                )
            return to

    def _hold_queue(self) -> None:
        """Hold back queued runs before the end of this one makes room for them."""
        try:
            for change in tighten_now(self._context.instance, self.store, self.fleet):
                self.log.info("Gate: %s", change)
        except Exception as error:  # noqa: BLE001 -- the pause itself must succeed
            self.log.warning("Queued runs are not held back until the next gate tick: %r", error)

    def _replace_inherited_tags(self) -> None:
        """Say of a run that a person executed again, or Dagster retried, that it is not paused.

        Dagster copies the tags of the run that it follows, and removes none.
        """
        run = self._context.run
        tags = {
            STATE_TAG: RESUMED,
            REASON_TAG: f"continues Dagster run {parent_of(run)}"[:MAX_TAG],
        }
        if STATE_TAG not in run.tags or tags.items() <= run.tags.items():
            return
        try:
            self._dagster.add_tags(run.run_id, tags)
        except Exception as error:  # noqa: BLE001 -- records must not wait for a tag
            self.log.warning(
                "The tags of the previous run could not be removed from this run: %r", error
            )

    def _mark_resumed(self, previous: AttemptRow) -> None:
        """Tag the Dagster run of the paused attempt, and replace it in its backfill."""
        if previous.outcome is not RunStatus.PAUSED:
            return
        run = self._dagster.run(previous.dagster_run)
        # Every loop of this run gets here; the tag, written last, says that one was first.
        if run is None or run.tags.get(STATE_TAG) == RESUMED:
            return
        try:
            self._dagster.hand_backfill_over(previous.dagster_run)
            self._dagster.add_tags(previous.dagster_run, {STATE_TAG: RESUMED})
        except Exception as error:  # noqa: BLE001 -- records must not wait for a tag
            self.log.warning(
                "Run %s could not be tagged as resumed: %r", previous.dagster_run, error
            )


def _ended(status: RunStatus, message: str) -> CampaignPaused | CampaignCancelled:
    return (CampaignPaused if status is RunStatus.PAUSED else CampaignCancelled)(message)


def _details(run: CampaignRun, reason: StopReason, why: str) -> dict[str, Any]:
    """What the log of a paused run says about the pause."""
    details: dict[str, Any] = {"campaign_run": run.name, "reason": why}
    if services := _services(reason.holds):
        details["service"] = ", ".join(services)
    if reason.done is not None:
        details["records_done"] = reason.done
    if reason.total is not None:
        details["records_total"] = reason.total
    if reason.holds:
        details["holds"] = dg.MetadataValue.json(
            [
                {
                    "target": str(hold.target),
                    "source": str(hold.source),
                    "reason": hold.reason,
                    "actor": hold.actor,
                    "placed_at": hold.placed_at.isoformat(),
                    "expires_at": hold.expires_at and hold.expires_at.isoformat(),
                }
                for hold in reason.holds
            ]
        )
    if page := load(GeneralSettings).page_url(f"/run/{quote(run.name)}"):
        details["page"] = dg.MetadataValue.url(page)
    return details


def _services(held: Sequence[Hold]) -> list[str]:
    return [hold.target.name for hold in held if hold.target.kind is TargetKind.SERVICE]


def _claim(
    context: dg.OpExecutionContext, store: Store
) -> tuple[CampaignRun, Sequence[AttemptRow]]:
    """Claim the campaign run; return it with the attempts that its ledger has, this run's last."""
    retried = _retried(context)
    lineage = _Lineage(context.run, context.instance)
    owners: dict[str, dg.DagsterRun | None] = {}  # by id; None: Dagster does not have it
    retried_later: set[str] = set()
    while True:
        with store.begin() as conn:
            now = store.now(conn)
            run = runs.locked(conn, _campaign_run(conn, now, context.run).id)
            newest = runs.latest_attempt(conn, run.id)
            made = runs.attempts_of(conn, [each.run_id for each in retried])
            begun = context.run_id in made
            stale = None if newest is None or begun else _why_stale(retried, made, run, newest)
            owner = context.run_id if newest is None else newest.dagster_run
            is_known = begun or newest is None or owner in owners
            counted = runs.attempts(conn, run.id, since=run.first_attempt)
            leads_on = begun or lineage.leads_to([each.dagster_run for each in counted])
            if stale is None and is_known and leads_on is not None:
                owner_run = owners.get(owner)
                continues = leads_on or not (
                    newest is not None
                    and (
                        starts_afresh(context.run)
                        or _has_ended(run, newest, owner_run, is_retried=owner in retried_later)
                    )
                )
                runs.begin_attempt(
                    conn,
                    now,
                    run,
                    context.run_id,
                    owner_is_over=newest is None or _is_over(newest, now, owner_run),
                    continues=continues,
                )
                run = runs.locked(conn, run.id)
                if not continues:
                    context.log.info(
                        "%s starts afresh: %s, so the results of attempts up to %d no longer count",
                        run.name,
                        context.run.tags.get(AFRESH_TAG) or "this run follows no earlier one",
                        run.first_attempt - 1,
                    )
                return run, runs.attempts(conn, run.id, since=run.first_attempt)
        if stale is not None:
            message, tags = stale
            Dagster(context.instance).end_as_canceled(context.run, message, tags)
            raise CampaignCancelled(message)
        # Outside the transaction, which keeps others from writing.
        if not is_known:
            owner_run = owners[owner] = context.instance.get_run_by_id(owner)
            ended_at = None if newest is None else newest.ended_at
            is_recent = ended_at is None or now - ended_at < RETRY_WITHIN
            if owner_run and retry_is_due(owner_run, context.instance, is_recent=is_recent):
                retried_later.add(owner)
        elif leads_on is None:
            lineage.read_on()


def _campaign_run(conn: Connection, now: datetime, run: dg.DagsterRun) -> CampaignRun:
    """The campaign run that a run works on; of failed assets, that of the run they failed in."""
    former = runs.attempt_of(conn, retries_assets_of(run) or "")
    retried = None if former is None else runs.get(conn, former.campaign_run)
    return retried or runs.ensure(
        conn, now, campaign_of(run), dagster_partition_of(run), assets_of(run)
    )


def _is_over(newest: AttemptRow, now: datetime, owner: dg.DagsterRun | None) -> bool:
    """Whether no process works for an attempt."""
    if newest.lease_until is not None and newest.lease_until < now:
        return True
    return owner is None or owner.is_finished


def _has_ended(
    run: CampaignRun, newest: AttemptRow, owner: dg.DagsterRun | None, *, is_retried: bool
) -> bool:
    """Whether a campaign run has completed, failed or been cancelled.

    Otherwise it is paused, was cut off, or has failed and Dagster retries it: the next attempt
    continues it.
    """
    if is_retried and run.status not in (RunStatus.COMPLETED, RunStatus.CANCELLED):
        return False
    if run.ended_as is not None or run.status not in UNFINISHED:
        return True
    if newest.ended_at is not None:
        return newest.outcome is not RunStatus.PAUSED
    # The gate has not followed it yet. A terminated process is no end: the gate will resume it.
    return owner is None or (owner.is_finished and not is_interrupted(owner))


class _Lineage:
    """The runs whose work a run continues, read from Dagster as far as they are needed."""

    def __init__(self, run: dg.DagsterRun, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._goes_on = False
        self._ids: list[str] = []
        self._unread: str | None = None
        self._add(run)

    def leads_to(self, dagster_runs: Collection[str]) -> bool | None:
        """Return whether the run continues one of some others; None: `read_on` first."""
        if self._goes_on or not set(dagster_runs).isdisjoint(self._ids):
            return True
        return None if self._unread is not None else False

    def read_on(self) -> None:
        """Read the next run, which perhaps had no attempt of its own."""
        run = None if self._unread is None else self._instance.get_run_by_id(self._unread)
        self._unread = None
        if run is not None:
            self._add(run)

    def _add(self, run: dg.DagsterRun) -> None:
        # Of a run that was refused, since another one was at work, the retry goes on as well.
        self._goes_on |= does_only_marked(run) or was_started_to_continue(run)
        parent = parent_of(run)
        if parent is None or why_it_continues(run) is None or len(self._ids) == MAX_LINEAGE:
            return
        self._ids.append(parent)
        self._unread = parent


def _why_continued(run: dg.DagsterRun, attempts: Sequence[AttemptRow]) -> str:
    """Why records are done already when a loop of the last attempt begins."""
    if len(attempts) == 1:
        return "this op has started before"
    previous = attempts[-2]
    ended = "was cut off" if previous.outcome is None else f"ended as {previous.outcome}"
    why = why_it_continues(run) or "its work was not finished"
    return f"attempt {previous.number} {ended}, and this run continues it because {why}"


def _retried(context: dg.OpExecutionContext) -> Sequence[dg.DagsterRun]:
    """Return this Dagster run, and the runs that it is the automatic retry of, the latest first."""
    chain = [context.run]
    while is_automatic_retry(chain[-1]):
        parent = context.instance.get_run_by_id(chain[-1].parent_run_id or "")
        if parent is None:
            break
        chain.append(parent)
    return chain


def _why_stale(
    retried: Sequence[dg.DagsterRun],
    made: Mapping[str, AttemptRow],
    run: CampaignRun,
    newest: AttemptRow,
) -> tuple[str, dict[str, str]] | None:
    """Return why a run that the gate or Dagster launched is no longer needed, and its tags.

    Two daemons may launch one run twice. Dagster then fails it although it works, or completed,
    and retries it.

    Args:
        retried: The run, and those that it is the automatic retry of, the latest first.
        made: The attempts of these, by the id of the run.

    Returns:
        None if it is needed.
    """
    dagster_run = retried[0]
    attempt = next((made[each.run_id] for each in retried if each.run_id in made), None)
    if attempt is not None and RunStatus.COMPLETED is run.status is newest.outcome:
        message = f"Not needed: Dagster run {newest.dagster_run} has completed {run.name}"
        return message, superseded_tags(dagster_run, newest.dagster_run)
    # A run that made no attempt is retried for what it was launched for.
    if attempt is None and is_superseded(retried[-1], newest.dagster_run):
        message = (
            f"Not needed: Dagster run {newest.dagster_run} resumed {run.name} first, as attempt "
            f"{newest.number}"
        )
        return message, superseded_tags(dagster_run, newest.dagster_run)
    cancelled = run.status is RunStatus.CANCELLED and newest.outcome is RunStatus.PAUSED
    if cancelled and is_resume(retried[-1]):
        message = f"Not resumed: {run.name} was cancelled ({run.reason})"
        return message, {STATE_TAG: RunStatus.CANCELLED.value}
    return None


def _needs_downstream(context: dg.OpExecutionContext, fleet: Fleet) -> Sequence[PoolNeeds]:
    """Return what this op and the ops downstream of it need."""
    graph = context.job_def.graph
    downstream: dict[str, set[str]] = {node.name: set() for node in graph.nodes}
    for node in graph.nodes:
        for outputs in graph.dependency_structure.input_to_upstream_outputs_for_node(
            node.name
        ).values():
            for output in outputs:
                downstream[output.node_name].add(node.name)
    reached: set[str] = set()
    pending = [context.op_handle.path[0]]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending.extend(downstream[name])
    nodes = (node for node in graph.nodes if node.name in reached)
    return [fleet.needs(pool) for node in nodes for pool in node.definition.pools]
