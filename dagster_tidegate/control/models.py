"""What the surfaces answer: the shapes of their JSON. Times are ISO 8601, in UTC."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.starting import Refusal
from dagster_tidegate.control.why import Answer, ObstacleKind, why
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.settings import AlertSettings, load
from dagster_tidegate.statuses import BreakerState, CampaignStatus, RunStatus
from dagster_tidegate.store.alerts import AlertCounts, AlertStatus
from dagster_tidegate.store.run_details import ListedRun, RunDetails
from dagster_tidegate.store.service_stats import Numbers
from dagster_tidegate.store.takeovers import TakeoverKind
from dagster_tidegate.text import utc

ALERT_SENDER_STALE_AFTER = timedelta(minutes=2)
"""A running alert sender updates its cursor every half a minute."""
ALERT_WAITS_TOO_LONG = timedelta(minutes=5)
T = TypeVar("T")


class Shown(BaseModel):
    """What an answer has; it is read off the things that the store returns."""

    model_config = ConfigDict(from_attributes=True)


class Page(Shown, Generic[T]):
    """A part of a list."""

    items: Sequence[T]
    next_cursor: str | None = Field(
        description="Where the next page begins; null: it was the last."
    )


class HoldShown(Shown):
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


class ReasonShown(HoldShown):
    """A live hold that covers a thing."""

    retry_at: datetime | None = Field(description="When the service is probed at the earliest.")
    being_tried: bool = Field(description="Whether the service is half open, and being tried.")


class ObstacleShown(Shown):
    """Something besides a hold that one should know of a thing that does not run."""

    kind: ObstacleKind
    text: str


class WhyShown(Shown):
    """Why something is paused, or that it is not."""

    target_kind: TargetKind
    target_name: str
    status: str | None
    paused: bool
    summary: str
    retry_at: datetime | None
    holds: Sequence[ReasonShown]
    obstacles: Sequence[ObstacleShown]
    last_word: str | None

    @classmethod
    def of(cls, answer: Answer) -> "WhyShown":
        """Return an answer as it is shown."""
        return cls(
            target_kind=answer.target.kind,
            target_name=answer.target.name,
            status=answer.status,
            paused=answer.paused,
            summary=answer.summary,
            retry_at=answer.retry_at,
            holds=[
                ReasonShown(
                    **HoldShown.model_validate(reason.hold).model_dump(),
                    retry_at=reason.retry_at,
                    being_tried=reason.being_tried,
                )
                for reason in answer.reasons
            ],
            obstacles=[ObstacleShown.model_validate(each) for each in answer.obstacles],
            last_word=answer.last_word,
        )


class EffectShown(Shown):
    """What becomes of a campaign, or of one campaign run."""

    campaign: str
    run: str | None
    held_before: bool
    held_after: bool
    still_held_by: Sequence[HoldShown]
    runs: Mapping[RunStatus, int]
    triggers: Sequence[str]
    queue_waits: bool


Effects = Annotated[
    Sequence[EffectShown] | None,
    Field(description="What it would do to the campaigns; with `dry_run` only, else null."),
]


class Held(Shown):
    """What a hold did, or would do."""

    dry_run: bool
    hold: HoldShown
    campaigns: Effects


class Released(Shown):
    """What a release did, or would do."""

    dry_run: bool
    released: Sequence[HoldShown] = Field(description="Empty: it was not held by a person.")
    still_held_by: Sequence[HoldShown] = Field(
        description="The holds that cover it still: if there are any, it stays paused."
    )
    campaigns: Effects


class HeldCampaigns(Shown):
    """What a hold on several campaigns did, or would do."""

    dry_run: bool
    holds: Sequence[HoldShown]


class ReleasedCampaigns(Shown):
    """What a release of several campaigns did, or would do."""

    dry_run: bool
    released: Sequence[HoldShown]


class ServiceShown(Shown):
    """A service and its breaker."""

    name: str
    state: BreakerState | None = Field(description="Null: it has a hold, and no breaker yet.")
    since: datetime | None
    reason: str | None
    not_probed_before: datetime | None
    kept_closed_by: str | None
    kept_closed_until: datetime | None
    holds: Sequence[HoldShown]

    @classmethod
    def of(cls, seen: Situation, name: str) -> "ServiceShown":
        """Return a service as it is shown."""
        target = Target(TargetKind.SERVICE, name)
        held = [HoldShown.model_validate(hold) for hold in seen.holds if hold.target == target]
        circuit = seen.circuits.get(name)
        return ServiceShown(
            name=name,
            state=circuit and circuit.state,
            since=circuit and circuit.changed_at,
            reason=circuit and circuit.reason,
            not_probed_before=circuit and circuit.open_until,
            kept_closed_by=circuit and circuit.kept_closed_by,
            kept_closed_until=circuit and circuit.kept_closed_until,
            holds=held,
        )


class NumbersShown(Shown):
    """What the fleet saw of a service lately."""

    ok: int
    slow: int
    failed: int
    since: datetime | None
    workers: int
    last_ok_at: datetime | None
    last_failed_at: datetime | None
    trips: int = Field(description="How often it opened in the last 24 hours.")


class ServiceDetails(ServiceShown):
    """All that is known of a service."""

    numbers: NumbersShown
    campaigns: Sequence[str] = Field(description="Names of the campaigns that need it.")
    policies: Mapping[str, ServicePolicy] | None = Field(
        description="Its policy in each code location; null where this server knows no code."
    )
    why: WhyShown

    @classmethod
    def all_of(
        cls,
        seen: Situation,
        name: str,
        counted: Numbers | None,
        policies: Mapping[str, ServicePolicy] | None,
    ) -> "ServiceDetails":
        """Return all that is known of a service as it is shown.

        Args:
            seen: The situation.
            name: Name of the service.
            counted: What the fleet saw of it, if anything.
            policies: Its policy in each code location, if that is known.
        """
        return cls(
            **ServiceShown.of(seen, name).model_dump(),
            numbers=NumbersShown.model_validate(counted or Numbers()),
            campaigns=[each for each, found in seen.campaigns.items() if name in found.services],
            policies=policies,
            why=WhyShown.of(why(seen, Target(TargetKind.SERVICE, name))),
        )


class TriggerShown(Shown):
    """A schedule or sensor that starts runs of a campaign."""

    kind: TakeoverKind
    name: str


class CampaignShown(Shown):
    """A campaign."""

    name: str
    location: str
    status: CampaignStatus
    services: Sequence[str]
    catch_up: str
    priority: int
    owners: Sequence[str] = Field(description="Who steers it; empty: every operator.")
    triggers: Sequence[TriggerShown]
    runs: Mapping[RunStatus, int] = Field(description="How many campaign runs have each status.")
    holds: Sequence[HoldShown]


class CampaignDetails(CampaignShown):
    """All that is known of a campaign."""

    ops: Mapping[str, str] = Field(description="The pool of each op that has one.")
    why: WhyShown


class RecordsShown(Shown):
    """How many records there are of each kind."""

    done: int
    failed: int
    total: int = Field(description="Of those loops that know how many they have.")


class CampaignStats(Shown):
    """A campaign in numbers."""

    campaign: str
    runs: Mapping[RunStatus, int]
    attempts: Mapping[str, int] = Field(
        description="How many attempts ended as what; `running`: those that have not."
    )
    records: RecordsShown
    records_per_second: float = Field(description="Of the loops that are at work.")
    first_run_at: datetime | None
    last_change_at: datetime | None


class ProgressShown(Shown):
    """How far an op of a campaign run is."""

    op: str
    done: int
    failed: int
    total: int | None
    records_per_second: float | None
    seconds_left: float | None
    updated_at: datetime


class RunShown(Shown):
    """A campaign run."""

    name: str
    campaign: str
    partition: str
    status: RunStatus
    waits_for_start: bool = Field(description="Whether it was created, and is not started yet.")
    attempt: int
    priority: int
    reason: str | None
    paused_at: datetime | None
    created_at: datetime
    changed_at: datetime
    progress: Sequence[ProgressShown]

    @classmethod
    def of(cls, listed: ListedRun) -> "RunShown":
        """Return a campaign run, and how far it is, as they are shown."""
        run = listed.run
        return RunShown(
            name=run.name,
            campaign=run.campaign,
            partition=run.partition,
            status=run.status,
            waits_for_start=run.waits_for_start,
            attempt=run.attempt,
            priority=run.priority,
            reason=run.reason,
            paused_at=run.paused_at,
            created_at=run.created_at,
            changed_at=run.changed_at,
            progress=[
                ProgressShown(
                    op=each.op,
                    done=each.done,
                    failed=each.failed,
                    total=each.total,
                    records_per_second=each.rate,
                    seconds_left=each.seconds_left(),
                    updated_at=each.updated_at,
                )
                for each in listed.progress
            ],
        )


class AttemptShown(Shown):
    """A Dagster run that works, or worked, on a campaign run."""

    number: int
    dagster_run: str
    started_at: datetime
    ended_at: datetime | None
    outcome: RunStatus | None


class RecordShown(Shown):
    """A record that is in doubt or failed."""

    op: str
    key: str
    attempt: int
    error: str | None
    at: datetime


class RunDetailsShown(RunShown):
    """All that is known of a campaign run."""

    attempts: Sequence[AttemptShown]
    in_doubt: Sequence[RecordShown] = Field(
        description="Their effect may or may not have reached the service; the next attempt sends "
        "them again with the same idempotency key."
    )
    in_doubt_count: int
    in_hand_count: int
    failed: Sequence[RecordShown] = Field(description="The newest first.")
    failed_count: int
    why: WhyShown

    @classmethod
    def all_of(cls, details: RunDetails, answer: Answer) -> "RunDetailsShown":
        """Return all that is known of a campaign run as it is shown.

        Args:
            details: What the store knows of it.
            answer: Why it is paused, or that it is not.
        """
        return cls(
            **RunShown.of(ListedRun(details.run, details.progress)).model_dump(),
            attempts=[AttemptShown.model_validate(attempt) for attempt in details.attempts],
            in_doubt=[RecordShown.model_validate(record) for record in details.in_doubt],
            in_doubt_count=details.in_doubt_count,
            in_hand_count=details.in_hand_count,
            failed=[RecordShown.model_validate(record) for record in details.failed],
            failed_count=details.failed_count,
            why=WhyShown.of(answer),
        )


class VerdictShown(Shown):
    """Whether something can be started."""

    name: str
    can_start: bool
    refusal: Refusal | None
    text: str
    why: WhyShown


class Started(Shown):
    """What was started."""

    name: str = Field(description="The campaign run.")
    dagster_run: str
    why: WhyShown


class EventShown(Shown):
    """Who changed what, when and why."""

    id: int
    at: datetime
    kind: str
    name: str
    from_status: str | None
    to_status: str
    reason: str | None
    actor: str
    address: str | None = Field(description="The network address; null: on this machine.")
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


class AlertShown(Shown):
    """An alert."""

    id: int
    kind: str = Field(description="What it is about; docs/alerts.md describes the kinds.")
    name: str = Field(description="What is affected.")
    title: str
    body: str
    status: AlertStatus
    raised_at: datetime
    ended_at: datetime | None = Field(description="When its cause ended; null while it lasts.")
    sent_at: datetime | None = Field(description="When all targets had accepted it.")
    tries: int
    next_try_at: datetime | None
    error: str | None = Field(description="Why the latest try failed.")
    delivered_to: Sequence[str] | None = Field(description="The targets that have accepted it.")
    withheld: int = Field(description="How often its cause has occurred since without a message.")


class ServiceQueue(Shown):
    """What waits for a service, or works with it."""

    service: str
    state: BreakerState | None
    campaigns: int = Field(description="How many campaigns need it.")
    paused_campaigns: Sequence[str] = Field(description="Those of them that a hold covers.")
    runs: Mapping[RunStatus, int] = Field(
        description="Their campaign runs that are not over, by status."
    )
    records_left: int = Field(description="Of these campaign runs, where the loops know.")


class QueueShown(Shown):
    """What is paused and what waits, in numbers."""

    paused_campaigns: Sequence[str]
    runs: Mapping[RunStatus, int]
    services: Sequence[ServiceQueue]


class Alive(Shown):
    """The process answers."""

    status: str = Field(examples=["live"])


class Ready(Shown):
    """The store can be read, and has the schema that this version works with."""

    status: str = Field(examples=["ready"])


class HeartbeatShown(Shown):
    """When a part of the gate of a code location last finished its work."""

    location: str
    part: str
    at: datetime
    stale: bool
    summary: str


class GateHealth(Shown):
    """Whether the gate does its work."""

    stale: bool = Field(description="Whether a part of a gate has not finished for a minute.")
    text: str
    parts: Sequence[HeartbeatShown]

    @classmethod
    def of(cls, seen: Situation) -> "GateHealth":
        """Return how the gate does as it is shown."""
        stale = seen.stale_gates()
        return cls(
            stale=bool(stale),
            text="; ".join(map(str, stale)) or "every part of the gate has just finished its work",
            parts=[
                HeartbeatShown(
                    location=beat.location,
                    part=beat.part,
                    at=beat.at,
                    stale=seen.stale(beat.at),
                    summary=beat.summary,
                )
                for beat in seen.heartbeats
            ],
        )


class AlertHealth(Shown):
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
