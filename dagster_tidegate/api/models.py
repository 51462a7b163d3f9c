"""What the API takes and gives: the shapes of its JSON. Times are ISO 8601, in UTC."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Header, Path, Query
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from dagster_tidegate.holds import EVERYTHING, Hold, HoldSource, Target, TargetKind
from dagster_tidegate.policy import ServicePolicy
from dagster_tidegate.statuses import BreakerState, CampaignStatus, RunStatus
from dagster_tidegate.store.alerts import AlertStatus
from dagster_tidegate.store.takeovers import TakeoverKind
from dagster_tidegate.views.effects import Effect
from dagster_tidegate.views.starting import Refusal
from dagster_tidegate.views.why import Answer, ObstacleKind
from dagster_tidegate.wording import LONGEST_NAME, LONGEST_REASON, checked

LONGEST_PART = 256
"""So many characters can each part of the name of a campaign run have: campaign and partition."""
LONGEST_HOLD_S = 10 * 366 * 24 * 3600
LATEST = datetime(9000, 1, 1, tzinfo=UTC)

T = TypeVar("T")


def _name(value: str) -> str:
    return checked(value, "name", LONGEST_NAME)


def _reason(value: str) -> str:
    return checked(value, "reason", LONGEST_REASON)


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("use a time with its zone, such as 2026-03-01T18:00:00Z")
    return value


def _moment(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("the time has no zone: use 2026-03-01T18:00:00Z")
    if not 1970 < value.year < LATEST.year:
        raise ValueError(f"the time is not between 1971 and {LATEST.year}")
    return value.astimezone(UTC)


_NAMED = Field(min_length=1, max_length=LONGEST_NAME)
Name = Annotated[StrictStr, AfterValidator(_name), _NAMED]
"""A name that people give: on one line, without control characters."""
PartitionName = Annotated[
    StrictStr, AfterValidator(_name), Field(min_length=1, max_length=LONGEST_PART)
]
Reason = Annotated[
    StrictStr,
    AfterValidator(_reason),
    Field(min_length=1, max_length=LONGEST_REASON, description="Why, on one line."),
]
Moment = Annotated[datetime, BeforeValidator(_text), AfterValidator(_moment)]
"""A time with its zone."""

ServiceName = Annotated[
    str,
    AfterValidator(_name),
    Path(min_length=1, max_length=LONGEST_NAME, description="A service."),
]
CampaignName = Annotated[
    str,
    AfterValidator(_name),
    Path(min_length=1, max_length=LONGEST_PART, description="A campaign: the name of its job."),
]
Partition = Annotated[
    str,
    AfterValidator(_name),
    Path(
        min_length=1,
        max_length=LONGEST_PART,
        description="The partition, percent-encoded. A slash may be a slash or `%2F`. Of a job "
        "without partitions, the id of the first Dagster run.",
    ),
]
DryRun = Annotated[
    bool, Query(description="Only say what would be affected: the change is taken back.")
]
Limit = Annotated[int, Query(ge=1, le=1000, description="How many at most.")]
Cursor = Annotated[
    str | None,
    Query(
        max_length=1000,
        description="`next_cursor` of the page before; its content may change at any time.",
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="A text of your choice, such as a UUID. The same request with the same key "
        "within 24 hours takes effect once, and is answered as the first was.",
    ),
]


class Body(BaseModel):
    """What a request says; a field that is not here is refused."""

    model_config = ConfigDict(extra="forbid")


class _Ending(Body):
    reason: Reason
    expires_at: Moment | None = Field(
        default=None, description="When it ends by itself; not set: when it is released."
    )
    for_seconds: Annotated[StrictInt, Field(ge=1, le=LONGEST_HOLD_S)] | None = Field(
        default=None, description="Instead of `expires_at`: after how many seconds it ends."
    )

    @model_validator(mode="after")
    def _one_end(self) -> "_Ending":
        if self.expires_at is not None and self.for_seconds is not None:
            raise ValueError("say expires_at or for_seconds, not both")
        return self

    def ends_at(self, now: datetime) -> datetime | None:
        """Return when the hold ends by itself (UTC), or None.

        Args:
            now: The database's time, UTC.
        """
        if self.for_seconds is not None:
            return now + timedelta(seconds=self.for_seconds)
        return self.expires_at


class NewHold(_Ending):
    """A hold to place on what the path names."""


class NewHoldOnTarget(_Ending):
    """A hold to place on anything; it need not be known yet."""

    target_kind: TargetKind
    target_name: Annotated[
        StrictStr,
        Field(
            max_length=LONGEST_NAME,
            description="Name of the service or campaign; `campaign/partition` of a campaign run; "
            "empty for everything.",
        ),
    ] = ""

    @model_validator(mode="after")
    def _target_is_named(self) -> "NewHoldOnTarget":
        if self.target_kind is TargetKind.EVERYTHING:
            if self.target_name:
                raise ValueError("everything has no target_name")
            return self
        _name(self.target_name)
        if self.target_kind is TargetKind.CAMPAIGN_RUN and not all(self.target_name.partition("/")):
            raise ValueError("target_name of a campaign run is campaign/partition")
        return self

    @property
    def target(self) -> Target:
        """What is to be held."""
        if self.target_kind is TargetKind.EVERYTHING:
            return EVERYTHING
        return Target(self.target_kind, self.target_name)


class Release(Body):
    """How to release."""

    force: StrictBool = Field(
        default=False,
        description="Release a breaker's own hold too, and close the breaker; for administrators.",
    )


class NewRun(Body):
    """A campaign run to create."""

    partition: PartitionName


class StartCampaign(Body):
    """What to start of a campaign."""

    partition: PartitionName | None = Field(
        default=None, description="The partition, where the job has any; else none may be named."
    )
    queue: StrictBool = Field(
        default=False, description="Start it though it is held: it waits in Dagster's queue."
    )


class StartRun(Body):
    """How to start a campaign run."""

    queue: StrictBool = Field(
        default=False, description="Start it though it is held: it waits in Dagster's queue."
    )


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

    @classmethod
    def of(cls, hold: Hold) -> "HoldShown":
        """Return a hold as it is shown."""
        return cls(
            id=hold.id,
            target_kind=hold.target.kind,
            target_name=hold.target.name,
            source=hold.source,
            reason=hold.reason,
            actor=hold.actor,
            placed_at=hold.placed_at,
            expires_at=hold.expires_at,
            released_at=hold.released_at,
            released_by=hold.released_by,
        )


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
                    **HoldShown.of(reason.hold).model_dump(),
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

    @classmethod
    def of(cls, effect: Effect) -> "EffectShown":
        """Return an effect as it is shown."""
        return cls(
            campaign=effect.campaign,
            run=effect.run,
            held_before=effect.held_before,
            held_after=effect.held_after,
            still_held_by=[HoldShown.of(hold) for hold in effect.still_held_by],
            runs=effect.runs,
            triggers=effect.triggers,
            queue_waits=effect.queue_waits,
        )


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
    still_held_by: Sequence[HoldShown] = Field(description="The holds that are left on it itself.")
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
    """What people are told of, once."""

    id: int
    kind: str = Field(description="What happened; docs/alerts.md has the kinds.")
    name: str = Field(description="What it is about.")
    title: str
    body: str
    status: AlertStatus
    raised_at: datetime
    ended_at: datetime | None = Field(description="When its cause ended; null while it lasts.")
    sent_at: datetime | None = Field(description="When every target had it.")
    tries: int
    next_try_at: datetime | None
    error: str | None = Field(description="Why the latest try failed.")
    delivered_to: Sequence[str] | None = Field(description="The targets that have it.")
    withheld: int = Field(description="How often the same happened since, without being told.")


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
