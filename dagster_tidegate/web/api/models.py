"""What requests to the API say: the shapes of its JSON. What it answers is in `views.shown`."""

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

from dagster_tidegate.holds import Target, TargetKind, named
from dagster_tidegate.text import MAX_NAME, MAX_REASON, checked

MAX_PART = 256
"""So many characters can each part of the name of a campaign run have: campaign and partition."""
MAX_HOLD_S = 10 * 366 * 24 * 3600
LATEST = datetime(9000, 1, 1, tzinfo=UTC)


def _name(value: str) -> str:
    return checked(value, "name", MAX_NAME)


def _reason(value: str) -> str:
    return checked(value, "reason", MAX_REASON)


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


_NAMED = Field(min_length=1, max_length=MAX_NAME)
Name = Annotated[StrictStr, AfterValidator(_name), _NAMED]
"""A name that people give: on one line, without control characters."""
PartitionName = Annotated[
    StrictStr, AfterValidator(_name), Field(min_length=1, max_length=MAX_PART)
]
Reason = Annotated[
    StrictStr,
    AfterValidator(_reason),
    Field(min_length=1, max_length=MAX_REASON, description="Why, on one line."),
]
Moment = Annotated[datetime, BeforeValidator(_text), AfterValidator(_moment)]
"""A time with its zone."""

ServiceName = Annotated[
    str,
    AfterValidator(_name),
    Path(min_length=1, max_length=MAX_NAME, description="A service."),
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
    for_seconds: Annotated[StrictInt, Field(ge=1, le=MAX_HOLD_S)] | None = Field(
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
            max_length=MAX_NAME,
            description="Name of the service or campaign; `campaign/partition` of a campaign run; "
            "empty for everything.",
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
        """What is to be held."""
        return named(self.target_kind, self.target_name)


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
