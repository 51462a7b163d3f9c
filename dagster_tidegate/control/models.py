"""The JSON of the API and of `--json`, built from what the store returns. Times are in UTC."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.control.situation import CampaignSituation, Situation
from dagster_tidegate.control.starting import Refusal, StartVerdict
from dagster_tidegate.control.why import Explanation, Obstacle, why
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.settings import AlertSettings, load
from dagster_tidegate.statuses import BreakerState, CampaignStatus, RunStatus
from dagster_tidegate.store.alerts import AlertCounts, AlertStatus
from dagster_tidegate.store.budgets import BudgetUsage
from dagster_tidegate.store.records import RecordState
from dagster_tidegate.store.run_details import LedgerRecord, ListedRun, RunDetails
from dagster_tidegate.store.service_stats import ServiceStats
from dagster_tidegate.store.takeovers import TakeoverKind
from dagster_tidegate.text import utc

ALERT_SENDER_STALE_AFTER = timedelta(minutes=2)
"""A running alert sender updates its cursor every 30 seconds."""
ALERT_WAITS_TOO_LONG = timedelta(minutes=5)
T = TypeVar("T")


class Out(BaseModel):
    """A model that can be read from the attributes of another object."""

    model_config = ConfigDict(from_attributes=True)


class Page(Out, Generic[T]):
    """A page of a list."""

    items: Sequence[T]
    next_cursor: str | None = Field(description="Cursor of the next page; null on the last page.")


class HoldOut(Out):
    """A hold."""

    id: int
    target_kind: TargetKind
    target_name: str
    source: HoldSource
    reason: str
    actor: str
    placed_at: datetime
    expires_at: datetime | None
    released_at: datetime | None
    released_by: str | None


class ReasonOut(HoldOut):
    """A live hold that covers something."""

    retry_at: datetime | None = Field(description="Earliest time of the next probe.")
    being_tried: bool = Field(description="Whether the service is half open and being probed.")
    cause: VerdictKind | None = Field(description="The kind of verdict that opened the breaker.")
    answer: str | None = Field(description="What the service said then.")
    remedy: str | None = Field(description="The command to run once the cause is repaired.")


class WhyOut(Out):
    """Whether and why something is paused."""

    target_kind: TargetKind
    target_name: str
    status: str | None
    paused: bool
    summary: str
    retry_at: datetime | None
    holds: Sequence[ReasonOut]
    obstacles: Sequence[Obstacle]
    last_word: str | None

    @classmethod
    def of(cls, answer: Explanation) -> "WhyOut":
        """Build it from an answer."""
        return cls(
            target_kind=answer.target.kind,
            target_name=answer.target.name,
            status=answer.status,
            paused=answer.paused,
            summary=answer.summary,
            retry_at=answer.retry_at,
            holds=[
                ReasonOut(
                    **HoldOut.model_validate(reason.hold).model_dump(),
                    retry_at=reason.retry_at,
                    being_tried=reason.being_tried,
                    cause=_cause(reason.breaker),
                    answer=reason.breaker and reason.breaker.answer,
                    remedy=reason.breaker and reason.breaker.remedy,
                )
                for reason in answer.reasons
            ],
            obstacles=answer.obstacles,
            last_word=answer.last_word,
        )


class EffectOut(Out):
    """Effect of a change on a campaign, or on one campaign run."""

    campaign: str
    run: str | None
    held_before: bool
    held_after: bool
    still_held_by: Sequence[HoldOut]
    runs: Mapping[RunStatus, int]
    triggers: Sequence[str]
    queue_waits: bool


Effects = Annotated[
    Sequence[EffectOut] | None,
    Field(description="Effects on the campaigns; the API has them for dry runs only."),
]


class Held(Out):
    """What a hold did, or would do."""

    dry_run: bool
    hold: HoldOut
    campaigns: Effects


class Released(Out):
    """What a release did, or would do."""

    dry_run: bool
    released: Sequence[HoldOut] = Field(description="Empty if no operator held it.")
    still_held_by: Sequence[HoldOut] = Field(
        description="Other holds that still cover it; if there are any, it stays paused."
    )
    campaigns: Effects


class HeldCampaigns(Out):
    """What a hold on several campaigns did, or would do."""

    dry_run: bool
    holds: Sequence[HoldOut]


class ReleasedCampaigns(Out):
    """What a release of several campaigns did, or would do."""

    dry_run: bool
    released: Sequence[HoldOut]


class WindowOut(Out):
    """A maintenance window of a service, at the time at which it begins next."""

    location: str = Field(
        description="The code location that declares it; empty if it was added by hand."
    )
    service: str
    cron: str
    timezone: str
    duration_s: int
    reason: str
    starts_at: datetime
    ends_at: datetime


class WindowsChanged(Out):
    """Maintenance windows that were, or would be, added or removed."""

    dry_run: bool
    windows: Sequence[WindowOut]


class ServiceOut(Out):
    """A service and its breaker."""

    name: str
    state: BreakerState | None = Field(description="Null if it has a hold but no breaker yet.")
    since: datetime | None
    reason: str | None
    cause: VerdictKind | None = Field(
        description="The kind of verdict that opened it, null while closed: `throttled` is open "
        "until `not_probed_before`, `denied` until a person says that the cause is repaired."
    )
    answer: str | None = Field(description="What the service said then, without secrets.")
    remedy: str | None = Field(description="The command to run once the cause is repaired.")
    not_probed_before: datetime | None
    kept_closed_by: str | None
    kept_closed_until: datetime | None
    would_open_at: datetime | None = Field(
        description="When it would last have opened, for `reason`, were its policy enforced."
    )
    would_pause: Sequence[str] = Field(description="Campaigns that this would have paused.")
    holds: Sequence[HoldOut]
    windows: Sequence[WindowOut] = Field(
        description="Its coming maintenance windows, the next one first."
    )
    budget: BudgetUsage | None = Field(
        description="How much of its budget is spent in this period, and by which campaigns; what "
        "belongs to none has no name."
    )

    @classmethod
    def of(cls, situation: Situation, name: str) -> "ServiceOut":
        """Build it for a service."""
        target = Target(TargetKind.SERVICE, name)
        breaker = situation.breakers.get(name)
        return ServiceOut(
            name=name,
            state=breaker and breaker.state,
            since=breaker and breaker.changed_at,
            reason=breaker and breaker.reason,
            cause=_cause(breaker),
            answer=breaker and breaker.answer,
            remedy=breaker and breaker.remedy,
            not_probed_before=breaker.open_until if breaker and not breaker.is_denied else None,
            kept_closed_by=breaker and breaker.kept_closed_by,
            kept_closed_until=breaker and breaker.kept_closed_until,
            would_open_at=breaker and breaker.would_open_at,
            would_pause=situation.would_pause(name),
            holds=[HoldOut.model_validate(h) for h in situation.holds if h.target == target],
            windows=[WindowOut.model_validate(w) for w in situation.windows_of(name)],
            budget=situation.budgets.get(name),
        )


class ServiceChanged(Out):
    """What an override of a breaker did or would do."""

    dry_run: bool
    service: ServiceOut
    campaigns: Effects


class ServiceDetails(ServiceOut):
    """A service with its recent calls, policies and campaigns."""

    numbers: ServiceStats
    campaigns: Sequence[str] = Field(description="Campaigns that need it.")
    policies: Mapping[str, ServicePolicy] | None = Field(
        description="Its policy in each code location; null if the server loads no code."
    )
    why: WhyOut

    @classmethod
    def all_of(
        cls,
        situation: Situation,
        name: str,
        stats: ServiceStats | None,
        policies: Mapping[str, ServicePolicy] | None,
    ) -> "ServiceDetails":
        """Build it for a service.

        Args:
            stats: Its recent calls, if any.
            policies: Its policy in each code location, or None if unknown.
        """
        return cls(
            **ServiceOut.of(situation, name).model_dump(),
            numbers=stats or ServiceStats(),
            campaigns=[each for each, c in situation.campaigns.items() if name in c.services],
            policies=policies,
            why=WhyOut.of(why(situation, Target(TargetKind.SERVICE, name))),
        )


class TriggerOut(Out):
    """A schedule or sensor that starts runs of a campaign."""

    kind: TakeoverKind
    name: str


class CampaignOut(Out):
    """A campaign."""

    name: str
    location: str
    status: CampaignStatus
    services: Sequence[str]
    catch_up: str
    priority: int
    owners: Sequence[str] = Field(description="Who may control it; empty means every operator.")
    triggers: Sequence[TriggerOut]
    runs: Mapping[RunStatus, int] = Field(description="Number of campaign runs by status.")
    failed_records: int = Field(description="Number of records that failed, in all its runs.")
    holds: Sequence[HoldOut]

    @classmethod
    def of(cls, campaign: CampaignSituation) -> "CampaignOut":
        """Build it for a campaign."""
        spec = campaign.spec
        return CampaignOut(
            name=spec.name,
            location=spec.location,
            status=campaign.status,
            services=sorted(campaign.services),
            catch_up=spec.catch_up,
            priority=spec.priority,
            owners=sorted(spec.owners),
            triggers=[TriggerOut.model_validate(trigger) for trigger in spec.triggers],
            runs={status: campaign.runs.get(status, 0) for status in RunStatus},
            failed_records=campaign.failed_records,
            holds=[HoldOut.model_validate(hold) for hold in campaign.holds],
        )


class CampaignDetails(CampaignOut):
    """A campaign, the pools of its ops, and why it is paused."""

    ops: Mapping[str, str] = Field(description="The pool of each op that has one.")
    why: WhyOut

    @classmethod
    def all_of(cls, situation: Situation, campaign: CampaignSituation) -> "CampaignDetails":
        """Build it for a campaign."""
        target = Target(TargetKind.CAMPAIGN, campaign.spec.name)
        return cls(
            **CampaignOut.of(campaign).model_dump(),
            ops=campaign.spec.ops,
            why=WhyOut.of(why(situation, target)),
        )


class ProgressOut(Out):
    """Progress of an op of a campaign run."""

    op: str
    done: int
    failed: int
    total: int | None
    records_per_second: float | None
    seconds_left: float | None
    updated_at: datetime


class RunOut(Out):
    """A campaign run."""

    name: str
    campaign: str
    partition: str
    status: RunStatus
    waits_for_start: bool = Field(description="Whether it was created and not started yet.")
    attempt: int
    priority: int
    reason: str | None
    paused_at: datetime | None
    created_at: datetime
    changed_at: datetime
    failed_records: int = Field(description="Number of records that failed, in all ops.")
    progress: Sequence[ProgressOut]

    @classmethod
    def of(cls, listed: ListedRun) -> "RunOut":
        """Build it for a campaign run and its progress."""
        derived = {"progress", "failed_records"}
        fields = {name: getattr(listed.run, name) for name in RunOut.model_fields.keys() - derived}
        progress = [
            ProgressOut(
                op=each.op,
                done=each.done,
                failed=each.failed,
                total=each.total,
                records_per_second=each.rate,
                seconds_left=each.seconds_left(),
                updated_at=each.updated_at,
            )
            for each in listed.progress
        ]
        return RunOut(**fields, failed_records=listed.failed, progress=progress)


class AttemptOut(Out):
    """A Dagster run that works or worked on a campaign run."""

    number: int
    dagster_run: str
    started_at: datetime
    ended_at: datetime | None
    outcome: RunStatus | None


class RunDetailsOut(RunOut):
    """A campaign run with its attempts, and its records in doubt and failed."""

    attempts: Sequence[AttemptOut]
    in_doubt: Sequence[LedgerRecord] = Field(
        description="The effect may or may not have reached the service; the next attempt sends "
        "these records again with the same idempotency key."
    )
    in_doubt_count: int
    in_hand_count: int
    failed: Sequence[LedgerRecord] = Field(description="Newest first.")
    failed_count: int
    why: WhyOut

    @classmethod
    def all_of(cls, details: RunDetails, answer: Explanation) -> "RunDetailsOut":
        """Build it from the store's details and the answer of `why`."""
        return cls(
            **RunOut.of(ListedRun(details.run, details.progress)).model_dump(),
            attempts=[AttemptOut.model_validate(attempt) for attempt in details.attempts],
            in_doubt=details.in_doubt,
            in_doubt_count=details.in_doubt_count,
            in_hand_count=details.in_hand_count,
            failed=details.failed,
            failed_count=details.failed_count,
            why=WhyOut.of(answer),
        )


class RecordOut(Out):
    """A record of a campaign run."""

    op: str
    key: str
    state: RecordState
    error: str | None = Field(description="How its latest try ended.")
    tries: int = Field(description="How often it was tried, in all attempts.")
    attempt: int = Field(description="The attempt that wrote this.")
    retry_at: datetime | None = Field(description="When a waiting record may be tried again.")
    service: str | None = Field(
        description="Which services `first_available` chose for it, joined by `+`."
    )
    at: datetime = Field(description="When this was written.")


class ErrorGroupOut(Out):
    """Records in one state whose errors say the same, apart from names and numbers."""

    state: RecordState
    error: str | None = Field(description="One of the errors; null: none, or all other errors.")
    count: int
    key: str | None = Field(description="The key of one of the records.")


class RecordSummary(Out):
    """How many records of a campaign run there are, by state and by what the service said."""

    run: str
    groups: Sequence[ErrorGroupOut]


class RecordsMarked(Out):
    """Records that were, or would be, marked to be done again."""

    run: str
    dry_run: bool
    marked: Mapping[str, int] = Field(description="How many, by op.")
    dagster_run: str | None = Field(
        description="The Dagster run that processes them; null for a dry run."
    )


class RecordsSkipped(Out):
    """Records that were, or would be, skipped."""

    run: str
    dry_run: bool
    skipped: Mapping[str, int] = Field(description="How many, by op.")


class VerdictOut(Out):
    """Whether something can be started."""

    name: str
    can_start: bool
    refusal: Refusal | None
    text: str
    why: WhyOut

    @classmethod
    def of(cls, verdict: StartVerdict, *, queue: bool) -> "VerdictOut":
        """Build it from a verdict; `queue` is whether a held run may wait in the queue."""
        refused = verdict.refuses(queue=queue)
        return cls(
            name=verdict.answer.target.name,
            can_start=not refused,
            refusal=verdict.refusal if refused else None,
            text=verdict.text,
            why=WhyOut.of(verdict.answer),
        )


class Started(Out):
    """A start that was requested."""

    name: str = Field(description="The campaign run.")
    dagster_run: str
    why: WhyOut


class AlertOut(Out):
    """An alert."""

    id: int
    kind: str = Field(description="What it is about; docs/alerts.md describes the kinds.")
    name: str = Field(description="What is affected.")
    title: str
    body: str
    status: AlertStatus
    raised_at: datetime
    ended_at: datetime | None = Field(description="When its cause ended; null while it persists.")
    sent_at: datetime | None = Field(description="When all targets had accepted it.")
    tries: int
    next_try_at: datetime | None
    error: str | None = Field(description="Why the latest try failed.")
    delivered_to: Sequence[str] | None = Field(description="The targets that have accepted it.")
    withheld: int = Field(description="How often its cause has occurred since without a message.")


class ServiceQueue(Out):
    """Campaigns and unfinished runs that need a service."""

    service: str
    state: BreakerState | None
    campaigns: int = Field(description="Number of campaigns that need it.")
    paused_campaigns: Sequence[str] = Field(description="Those that are held.")
    runs: Mapping[RunStatus, int] = Field(description="Their unfinished campaign runs, by status.")
    records_left: int = Field(description="Records left in these runs, as far as known.")


class QueueOut(Out):
    """Paused campaigns and unfinished runs."""

    paused_campaigns: Sequence[str]
    runs: Mapping[RunStatus, int]
    services: Sequence[ServiceQueue]


class Alive(Out):
    """The process responds."""

    status: str = Field(examples=["live"])


class Ready(Out):
    """The store is reachable and its schema is compatible."""

    status: str = Field(examples=["ready"])


class HeartbeatOut(Out):
    """Last completed tick of a sensor of a gate."""

    location: str
    part: str
    at: datetime
    stale: bool
    summary: str


class GateHealth(Out):
    """Whether the sensors of the gates complete their ticks."""

    stale: bool = Field(description="Whether a sensor has not completed a tick for a minute.")
    text: str
    parts: Sequence[HeartbeatOut]

    @classmethod
    def of(cls, situation: Situation) -> "GateHealth":
        """Build it from the situation."""
        stale = situation.stale_gates()
        return cls(
            stale=bool(stale),
            text="; ".join(map(str, stale)) or "all sensors of the gate complete their ticks",
            parts=[
                HeartbeatOut(
                    location=beat.location,
                    part=beat.part,
                    at=beat.at,
                    stale=situation.stale(beat.at),
                    summary=beat.summary,
                )
                for beat in situation.heartbeats
            ],
        )


class AlertHealth(Out):
    """Whether alerts are being sent."""

    stale: bool = Field(
        description="Whether sending fails, an alert has waited too long, or no sender is running."
    )
    text: str
    alerts: Mapping[AlertStatus, int] = Field(
        description="Number of alerts by status; the final statuses cover the last 24 hours."
    )
    oldest_pending_at: datetime | None = Field(
        description="When the oldest unsent alert was raised."
    )
    looked_at: datetime | None = Field(
        description="When a sender last checked for alerts, accurate to half a minute; null if "
        "none ever did."
    )

    @classmethod
    def of(cls, counts: AlertCounts, now: datetime) -> "AlertHealth":
        """Return the health of the alert senders."""
        problems = []
        if counts.failing:
            problems.append(f"{counts.failing} alerts could not be sent")
        pending_since = counts.oldest_pending_at
        waits_too_long = pending_since is not None and now - pending_since > ALERT_WAITS_TOO_LONG
        checked_at = counts.looked_at
        is_running = checked_at is not None and now - checked_at <= ALERT_SENDER_STALE_AFTER
        if (waits_too_long or load(AlertSettings).urls) and not is_running:
            last = f"the last check was at {utc(checked_at)}" if checked_at else "none ever ran"
            waits = (
                f", and an alert has been waiting since {utc(pending_since)}"
                if pending_since
                else ""
            )
            problems.append(
                f"no alert sender is running: {last}{waits}. Run tidegate serve or tidegate "
                "alerts run, with TIDEGATE_ALERT_URLS set"
            )
        elif waits_too_long and pending_since and not counts.failing:
            problems.append(
                f"an alert has been waiting since {utc(pending_since)} although a sender is "
                "running: see the sender's log"
            )
        return cls(
            stale=bool(problems),
            text="; ".join(problems) or "alerts are being sent, or there are none",
            alerts=counts.by_status,
            oldest_pending_at=pending_since,
            looked_at=checked_at,
        )


def _cause(breaker: BreakerStatus | None) -> VerdictKind | None:
    """The kind of verdict that opened a breaker which is not closed."""
    if breaker is None or breaker.state is BreakerState.CLOSED:
        return None
    return breaker.cause
