"""The parameters and bodies of requests. The answers are in `control.models`."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

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

from dagster_tidegate.breaker.policy import MAX_DURATION_S
from dagster_tidegate.control.operations import REPAIRED
from dagster_tidegate.holds import Target, TargetKind, named
from dagster_tidegate.store.records import RecordState, Selection
from dagster_tidegate.text import MAX_DURATION, MAX_NAME, MAX_PART, MAX_REASON, checked, utc
from dagster_tidegate.web.api.problems import Code, Problem

LATEST = datetime(9000, 1, 1, tzinfo=UTC)


def _name(value: str) -> str:
    return checked(value, "name", MAX_NAME)


def _reason(value: str) -> str:
    return checked(value, "reason", MAX_REASON)


def _text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("use a time with its time zone, such as 2026-03-01T18:00:00Z")
    return value


def _moment(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("the time has no time zone: use 2026-03-01T18:00:00Z")
    if not 1970 < value.year < LATEST.year:
        raise ValueError(f"the time is not between 1971 and {LATEST.year}")
    return value.astimezone(UTC)


_NAMED = Field(min_length=1, max_length=MAX_NAME)
Name = Annotated[StrictStr, AfterValidator(_name), _NAMED]
"""The name of anything, on one line, without control characters."""
PartName = Annotated[StrictStr, AfterValidator(_name), Field(min_length=1, max_length=MAX_PART)]
"""The name of a service, a campaign or a partition."""
Reason = Annotated[
    StrictStr,
    AfterValidator(_reason),
    Field(min_length=1, max_length=MAX_REASON, description="Why, on one line."),
]
Moment = Annotated[datetime, BeforeValidator(_text), AfterValidator(_moment)]
"""A time with its time zone."""

ServiceName = Annotated[
    str,
    AfterValidator(_name),
    Path(min_length=1, max_length=MAX_PART, description="A service."),
]
CampaignName = Annotated[
    str,
    AfterValidator(_name),
    Path(min_length=1, max_length=MAX_PART, description="A campaign: the name of its job."),
]
Partition = Annotated[
    str,
    AfterValidator(_name),
    Path(
        min_length=1,
        max_length=MAX_PART,
        description="The partition, percent-encoded; a slash may stay a slash. For a job without "
        "partitions, the id of the first Dagster run.",
    ),
]
DryRun = Annotated[bool, Query(description="Only show the effect; nothing is changed.")]
Cron = Annotated[
    str | None,
    Query(max_length=128, description="Only windows with this cron expression. Default: all."),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any string, such as a UUID. The same request with the same key takes effect "
        "once within 24 hours; repetitions get the first answer.",
    ),
]


class Body(BaseModel):
    """The body of a request; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Ending(Body):
    """A reason, and perhaps an expiry."""

    reason: Reason
    expires_at: Moment | None = Field(default=None, description="When it expires. Default: never.")
    for_seconds: Annotated[StrictInt, Field(ge=1, le=int(MAX_DURATION.total_seconds()))] | None = (
        Field(
            default=None, description="Instead of `expires_at`: after how many seconds it expires."
        )
    )

    @model_validator(mode="after")
    def _one_end(self) -> "Ending":
        if self.expires_at is not None and self.for_seconds is not None:
            raise ValueError("use expires_at or for_seconds, not both")
        return self

    def ends_at(self, now: datetime) -> datetime | None:
        """Return when it expires (UTC), or None.

        Raises:
            Problem: `invalid`, if that is in the past.
        """
        if self.for_seconds is not None:
            return now + timedelta(seconds=self.for_seconds)
        if self.expires_at is not None and self.expires_at <= now:
            detail = f"expires_at: {utc(self.expires_at)} is in the past: it is {utc(now)}"
            raise Problem(Code.INVALID, detail)
        return self.expires_at


class NewHold(Ending):
    """A hold on the thing that the path names."""


class KeepClosed(Ending):
    """Why, and for how long, a breaker is kept closed."""


class NewWindow(Body):
    """A recurring maintenance window of a service."""

    cron: Annotated[StrictStr, Field(min_length=1, max_length=128)] = Field(
        description="When it begins, as a cron expression of five fields, such as `0 2 * * SUN`."
    )
    duration_s: Annotated[StrictInt, Field(ge=1, le=MAX_DURATION_S)] = Field(
        description="How long it lasts, in seconds: at most 7 days."
    )
    timezone: Annotated[StrictStr, Field(min_length=1, max_length=64)] = Field(
        default="UTC", description="Time zone of the cron expression, such as `Europe/Berlin`."
    )
    reason: Reason


class Repaired(Body):
    """What was repaired."""

    reason: Reason = REPAIRED


class NewHoldOnTarget(Ending):
    """A hold on any target, which need not exist yet."""

    target_kind: TargetKind
    target_name: Annotated[
        StrictStr,
        Field(
            max_length=MAX_NAME,
            description="Name of the service or campaign, `campaign/partition` for a campaign run, "
            "or empty for everything.",
        ),
    ] = ""

    @model_validator(mode="after")
    def _target_is_named(self) -> "NewHoldOnTarget":
        if self.target_name:
            _name(self.target_name)
        named(self.target_kind, self.target_name)
        return self

    @property
    def target(self) -> Target:
        """The target of the hold."""
        return named(self.target_kind, self.target_name)


class Release(Body):
    """Options of a release."""

    force: StrictBool = Field(
        default=False,
        description="Also release a breaker's own hold and close the breaker: for administrators.",
    )


class NewRun(Body):
    """A campaign run to create."""

    partition: PartName


class StartRun(Body):
    """Options of a start."""

    queue: StrictBool = Field(
        default=False, description="Start it even if it is held: it waits in Dagster's queue."
    )


class StartCampaign(StartRun):
    """Which run of a campaign to start."""

    partition: PartName | None = Field(
        default=None, description="The partition; only for a partitioned job, and required there."
    )


RecordKey = Annotated[StrictStr, Field(min_length=1, max_length=512)]


class SelectRecords(Body):
    """Which records of a campaign run, and why."""

    reason: Reason
    keys: Annotated[list[RecordKey], Field(max_length=1000)] = Field(
        default=[], description="Only those with one of these keys."
    )
    error: Annotated[StrictStr, Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="Only those with this in their error, in upper or lower case."
    )
    status: Annotated[list[RecordState], Field(max_length=10)] = Field(
        default=[], description="Only those with one of these statuses. Default: `failed`."
    )
    since: Moment | None = Field(default=None, description="Only those written since then.")
    said: Annotated[StrictStr, Field(min_length=1)] | None = Field(
        default=None,
        description="Only those whose error says the same as this one, apart from names and "
        "numbers: the `error` of a group of the summary.",
    )

    @property
    def selection(self) -> Selection:
        """The selection of records."""
        return Selection(self.status, self.error, self.keys, self.since, self.said)


class RetryRecords(SelectRecords):
    """Which records are to be done again."""


class SkipRecords(SelectRecords):
    """Which records need no result."""
