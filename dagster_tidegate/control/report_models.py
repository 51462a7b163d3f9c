"""The JSON of the reports of outages. Times are in UTC."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from pydantic import Field

from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.control.models import Out
from dagster_tidegate.statuses import BreakerState, RunStatus


class OutageOut(Out):
    """An outage of a service: from when its breaker opened until it closed."""

    id: int = Field(description="The id of the event that opened the breaker.")
    service: str
    opened_at: datetime
    closed_at: datetime | None = Field(description="Null while it lasts.")
    seconds: float = Field(description="The time to recovery, or how long it has lasted.")
    cause: VerdictKind | None = Field(description="Null if it was opened by hand.")
    reason: str | None
    answer: str | None = Field(description="What the service said, without secrets.")
    failed_probes: int = Field(description="How often it opened again after a trial call.")


class ServiceSummary(Out):
    """The outages of a service in a period."""

    service: str
    outages: int = Field(description="Those that lasted at some time in the period.")
    minutes: float = Field(description="How long its breaker was not closed, in the period.")
    mttr_s: float | None = Field(
        description="Mean time to recovery of those that have ended, in seconds."
    )
    longest_s: float | None
    causes: Mapping[str, int] = Field(
        description="How many were opened by each kind of verdict, or `by hand`."
    )
    open: bool = Field(description="Whether its breaker is not closed at the end of the period.")
    verdicts: Mapping[VerdictKind, int] = Field(
        default_factory=dict,
        description="How many calls had each verdict, trial calls aside; whole days (UTC).",
    )


class Summary(Out):
    """The outages of a period, by service."""

    since: datetime
    until: datetime
    services: Sequence[ServiceSummary]


class MonthSummary(ServiceSummary):
    """The outages of a service in a calendar month (UTC), as far as the period has it."""

    month: str = Field(description="`2026-03`.")


class ServiceReport(Out):
    """The outages of one service in a period."""

    since: datetime
    until: datetime
    summary: ServiceSummary
    months: Sequence[MonthSummary] = Field(
        description="The period by calendar month (UTC), newest first."
    )
    outages: Sequence[OutageOut] = Field(description="Newest first.")


class TransitionOut(Out):
    """A change of the breaker."""

    at: datetime
    state: BreakerState
    reason: str | None


class ActionOut(Out):
    """What a person did during the outage."""

    at: datetime
    actor: str
    what: str
    reason: str | None


class PausedRunOut(Out):
    """A campaign run that paused for the service."""

    run: str
    paused_at: datetime
    resumed_at: datetime | None = Field(description="Null while it is paused.")
    seconds: float = Field(description="How long it was paused.")
    done: int | None = Field(description="Records that were done when it paused.")
    total: int | None = Field(description="Records that it had then, if it knew.")
    status: RunStatus | None = Field(description="Its status now.")


class PausedCampaignOut(Out):
    """The runs of a campaign that paused for the service."""

    campaign: str
    paused: int = Field(description="How many of its runs paused.")
    still_paused: int
    queued: int = Field(description="How many of its runs were put into the queue meanwhile.")
    first_paused_at: datetime | None
    last_resumed_at: datetime | None


class StoppedOut(Out):
    """A pool, schedule or sensor that the gate stopped."""

    name: str
    stopped_at: datetime
    restored_at: datetime | None
    outcome: str | None


class TicksOut(Out):
    """Schedule ticks that were missed."""

    campaign: str
    schedule: str
    missed: int
    launched: int
    skipped: int
    failed: int
    waiting: int


class CallsOut(Out):
    """Calls to the service."""

    before: int | None = Field(description="Calls of the fleet that led to the trip.")
    failed_before: int | None
    seconds: float | None = Field(description="How long these calls took.")
    failure_rate: float | None
    spared: int | None = Field(
        description="An estimate: the calls that would have been made at the rate before the trip."
    )


class RecordsOut(Out):
    """Records of the runs that paused for the service."""

    delayed: int = Field(description="Records that were left when their run paused.")
    runs_of_unknown_total: int = Field(description="Runs whose delayed records are not counted.")
    done_since: int = Field(description="Records done since their run paused.")
    left: int = Field(description="Records that are left now, in runs that have not ended.")
    failed: int
    lost: int = Field(
        description="Records of completed runs with neither a result nor an error, and not skipped."
    )
    repeated: int | None = Field(
        description="Records done twice: 0, or null if the store can't know."
    )
    cut_off: int = Field(description="How often a run was cut off with records in flight.")


class OutageReport(OutageOut):
    """The report of an outage."""

    at: datetime = Field(description="When the report was made.")
    last_resumed_at: datetime | None = Field(
        description="When the last paused run resumed; null if none paused, or one still is."
    )
    timeline: Sequence[TransitionOut]
    actions: Sequence[ActionOut]
    campaigns: Sequence[PausedCampaignOut]
    runs: Sequence[PausedRunOut]
    stopped: Sequence[StoppedOut]
    ticks: Sequence[TicksOut]
    calls: CallsOut
    records: RecordsOut
    notes: Sequence[str] = Field(description="What the store can't know.")
