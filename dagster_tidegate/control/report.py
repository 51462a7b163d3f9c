"""The report of an outage, and the outages of a period by service. Pure: rows in, models out.

A report is derived from the audit log whenever it is asked for, and not kept: it then has what
happened after the recovery too, and outages from before the first report have one.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.control.report_models import (
    ActionOut,
    CallsOut,
    MonthSummary,
    OutageOut,
    OutageReport,
    PausedCampaignOut,
    PausedRunOut,
    RecordsOut,
    ServiceSummary,
    StoppedOut,
    TicksOut,
    TransitionOut,
)
from dagster_tidegate.holds import EVERYTHING, HoldSource, SystemActor, Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.history import Event
from dagster_tidegate.store.missed_ticks import MissedTick, TickOutcome
from dagster_tidegate.store.outages import MAX_EVENTS, MAX_RUNS, RunRecords
from dagster_tidegate.text import plural, utc, words

MAX_LISTED = 100
"""How many runs and actions a report lists."""
BY_HAND = "by hand"
_CLOSED = BreakerState.CLOSED
_OF_PEOPLE = (EventKind.START, EventKind.CANCEL, EventKind.RECORDS)


@dataclass(frozen=True)
class Outage:
    """The changes of a breaker from when it left closed until it closed.

    Attributes:
        events: The changes, the oldest first; at least one.
        is_whole: Whether the audit log still has its beginning.
    """

    events: tuple[Event, ...]
    is_whole: bool = True

    @property
    def service(self) -> str:
        """The service."""
        return self.events[0].name

    @property
    def opened_at(self) -> datetime:
        """When it began, as far as the audit log goes back (UTC)."""
        return self.events[0].at

    @property
    def end(self) -> Event | None:
        """The change that ended it; None while it lasts."""
        return self.events[-1] if self.events[-1].to_status == _CLOSED else None

    @property
    def closed_at(self) -> datetime | None:
        """When it ended (UTC), or None."""
        return None if self.end is None else self.end.at

    def seconds(self, now: datetime, since: datetime | None = None) -> float:
        """Return how long it lasted until a time, or from one to the other, in seconds."""
        start = self.opened_at if since is None else max(since, self.opened_at)
        end = min(now, self.closed_at or now)
        return max(0.0, (end - start).total_seconds())


def outages(transitions: Iterable[Event]) -> Sequence[Outage]:
    """Return the outages among changes of the state of breakers, the oldest first."""
    current: dict[str, list[Event]] = {}
    ended: list[Outage] = []

    def finish(service: str) -> None:
        events = tuple(current.pop(service))
        ended.append(Outage(events, events[0].from_status == _CLOSED))

    for event in transitions:
        if event.from_status == _CLOSED and event.name in current:
            finish(event.name)  # its end is missing
        current.setdefault(event.name, []).append(event)
        if event.to_status == _CLOSED:
            finish(event.name)
    for service in [*current]:
        finish(service)
    return sorted(ended, key=lambda outage: outage.events[0].id)


@dataclass(frozen=True)
class Surroundings:
    """What happened during an outage.

    Attributes:
        events: All events from its beginning to its end, of any campaign.
        resumed: When campaign runs stopped being paused since it began, by name.
        given_back: When takeovers ended since it began, by name in the audit log.
        takeovers: The names in the audit log of what stops for the service and its campaigns.
        campaigns: The campaigns that need the service now.
        missed: The schedule ticks that its campaigns missed.
        records: The records of the runs that paused, by name.
    """

    events: Sequence[Event] = ()
    resumed: Mapping[str, Sequence[Event]] = field(default_factory=dict)
    given_back: Mapping[str, Sequence[Event]] = field(default_factory=dict)
    takeovers: Collection[str] = ()
    campaigns: Collection[str] = ()
    missed: Sequence[MissedTick] = ()
    records: Mapping[str, RunRecords] = field(default_factory=dict)


def listed(outage: Outage, now: datetime) -> OutageOut:
    """Return an outage for a list."""
    return OutageOut(**_facts(outage, max(now, outage.closed_at or now)))


def summaries(
    outages: Sequence[Outage], since: datetime, until: datetime, services: Collection[str]
) -> Sequence[ServiceSummary]:
    """Return the outages of a period by service, also of services that had none."""
    by_service: dict[str, list[Outage]] = {name: [] for name in services}
    for outage in outages:
        if outage.opened_at <= until:
            by_service.setdefault(outage.service, []).append(outage)
    return [_summary(name, by_service[name], since, until) for name in sorted(by_service)]


def by_month(
    listed: Sequence[Outage], service: str, since: datetime, until: datetime
) -> Sequence[MonthSummary]:
    """Return the outages of a service in a period by calendar month (UTC), the newest first."""
    months = []
    end = until
    while end > since:
        month = _start_of_month(end - timedelta(microseconds=1))
        start = max(since, month)
        [numbers] = summaries(_within(listed, start, end), start, end, [service])
        months.append(MonthSummary(**dict(numbers), month=f"{month:%Y-%m}"))
        end = month
    return months


def month_of(text: str) -> tuple[datetime, datetime]:
    """Return the beginning and the end of a calendar month (UTC) such as `2026-03`.

    Raises:
        ValueError: If it is none.
    """
    if not re.fullmatch(r"(19[7-9]\d|[2-8]\d{3})-(0[1-9]|1[0-2])", text, re.ASCII):
        raise ValueError(f"{text[:40]!r} is not a month such as 2026-03")
    start = datetime(int(text[:4]), int(text[5:]), 1, tzinfo=UTC)
    return start, _start_of_month(start + timedelta(days=31))


def _start_of_month(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _within(listed: Sequence[Outage], since: datetime, until: datetime) -> list[Outage]:
    """The outages that lasted at some time in a period."""
    return [
        outage
        for outage in listed
        if outage.opened_at <= until and (outage.closed_at is None or outage.closed_at > since)
    ]


def pauses(events: Iterable[Event], service: str, campaigns: Collection[str]) -> Sequence[Event]:
    """Return the pauses of campaign runs for a service.

    An older version did not record for which; then the campaigns that need it count.
    """
    return [event for event in events if _is_pause_for(event, service, campaigns)]


def report(outage: Outage, around: Surroundings, now: datetime) -> OutageReport:
    """Return the report of an outage."""
    paused = pauses(around.events, outage.service, around.campaigns)
    runs = [_paused_run(event, around, now) for event in paused]
    campaigns = {*around.campaigns, *(_campaign(event.name) for event in paused)}
    queued = [
        event
        for event in around.events
        if event.kind == EventKind.CAMPAIGN_RUN
        and event.to_status == RunStatus.PENDING
        and event.from_status is None
        and _campaign(event.name) in campaigns
    ]
    ends = [run.resumed_at for run in runs]
    is_over = bool(ends) and None not in ends
    return OutageReport(
        **_facts(outage, now),
        at=now,
        last_resumed_at=max(end for end in ends if end) if is_over else None,
        timeline=[
            TransitionOut(at=event.at, state=BreakerState(event.to_status), reason=event.reason)
            for event in outage.events
        ],
        actions=[*_actions(outage, around, campaigns)][:MAX_LISTED],
        campaigns=_campaigns(runs, queued),
        runs=runs[:MAX_LISTED],
        stopped=[*_stopped(around)],
        ticks=_ticks(around.missed),
        calls=_calls(outage, now),
        records=_records(paused, around.records),
        notes=[*_notes(outage, around, runs)],
    )


def _facts(outage: Outage, now: datetime) -> dict:
    first = outage.events[0]
    details = first.after or {}
    cause = details.get("cause")
    return {
        "id": first.id,
        "service": outage.service,
        "opened_at": outage.opened_at,
        "closed_at": outage.closed_at,
        "seconds": outage.seconds(now),
        "cause": None if cause is None else VerdictKind(cause),
        "reason": first.reason,
        "answer": details.get("answer"),
        "failed_probes": sum(
            event.from_status == BreakerState.HALF_OPEN and event.to_status == BreakerState.OPEN
            for event in outage.events
        ),
    }


def _summary(
    service: str, outages: Sequence[Outage], since: datetime, until: datetime
) -> ServiceSummary:
    whole = [outage.seconds(until) for outage in outages if _has_ended(outage, until)]
    causes: dict[str, int] = {}
    for outage in outages:
        cause = (outage.events[0].after or {}).get("cause") or BY_HAND
        causes[cause] = causes.get(cause, 0) + 1
    return ServiceSummary(
        service=service,
        outages=len(outages),
        minutes=round(sum(outage.seconds(until, since) for outage in outages) / 60, 1),
        mttr_s=sum(whole) / len(whole) if whole else None,
        longest_s=max((outage.seconds(until) for outage in outages), default=None),
        causes=dict(sorted(causes.items())),
        open=any(not _has_ended(outage, until) for outage in outages),
    )


def _has_ended(outage: Outage, until: datetime) -> bool:
    return outage.closed_at is not None and outage.closed_at <= until


def _campaign(name: str) -> str:
    return name.partition("/")[0]


def _is_pause_for(event: Event, service: str, campaigns: Collection[str]) -> bool:
    if event.kind != EventKind.CAMPAIGN_RUN or event.to_status != RunStatus.PAUSED:
        return False
    services = (event.after or {}).get("services")
    if not services and event.after is not None:
        return False  # for a signal, or for a hold on something else
    return service in services if services else _campaign(event.name) in campaigns


def _paused_run(event: Event, around: Surroundings, now: datetime) -> PausedRunOut:
    ends = (each.at for each in around.resumed.get(event.name, ()) if each.id > event.id)
    resumed_at = next(ends, None)
    details, records = event.after or {}, around.records.get(event.name)
    return PausedRunOut(
        run=event.name,
        paused_at=event.at,
        resumed_at=resumed_at,
        seconds=((resumed_at or now) - event.at).total_seconds(),
        done=details.get("done"),
        total=details.get("total"),
        status=None if records is None else records.status,
    )


def _campaigns(
    runs: Sequence[PausedRunOut], queued: Sequence[Event]
) -> Sequence[PausedCampaignOut]:
    names = {_campaign(run.run) for run in runs} | {_campaign(event.name) for event in queued}
    campaigns = []
    for name in sorted(names):
        own = [run for run in runs if _campaign(run.run) == name]
        resumed = [run.resumed_at for run in own if run.resumed_at]
        campaigns.append(
            PausedCampaignOut(
                campaign=name,
                paused=len({run.run for run in own}),
                still_paused=sum(run.resumed_at is None for run in own),
                queued=len({e.name for e in queued if _campaign(e.name) == name}),
                first_paused_at=min((run.paused_at for run in own), default=None),
                last_resumed_at=max(resumed, default=None),
            )
        )
    return campaigns


def _stopped(around: Surroundings) -> Iterator[StoppedOut]:
    for event in around.events:
        is_new = event.kind == EventKind.TAKEOVER and event.reason == "taken over"
        if not is_new or event.name not in around.takeovers:
            continue
        ends = (each for each in around.given_back.get(event.name, ()) if each.id > event.id)
        end = next(ends, None)
        yield StoppedOut(
            name=event.name,
            stopped_at=event.at,
            restored_at=end and end.at,
            outcome=end and end.to_status,
        )


def _ticks(missed: Sequence[MissedTick]) -> Sequence[TicksOut]:
    by_schedule: dict[tuple[str, str], list[TickOutcome | None]] = {}
    for tick in missed:
        by_schedule.setdefault((tick.campaign, tick.schedule), []).append(tick.outcome)
    return [
        TicksOut(
            campaign=campaign,
            schedule=schedule,
            missed=len(ends),
            launched=ends.count(TickOutcome.LAUNCHED),
            skipped=ends.count(TickOutcome.SKIPPED),
            failed=ends.count(TickOutcome.FAILED),
            waiting=ends.count(None),
        )
        for (campaign, schedule), ends in sorted(by_schedule.items())
    ]


def _calls(outage: Outage, now: datetime) -> CallsOut:
    details = outage.events[0].after or {}
    calls, failed, counted_s = (details.get(name) for name in ("calls", "failed", "counted_s"))
    spared = None
    if calls and counted_s:
        spared = round(calls / max(counted_s, 1.0) * outage.seconds(now))
    return CallsOut(
        before=calls,
        failed_before=failed,
        seconds=counted_s,
        failure_rate=failed / calls if calls else None,
        spared=spared,
    )


def _records(paused: Sequence[Event], records: Mapping[str, RunRecords]) -> RecordsOut:
    first: dict[str, Event] = {}
    for event in paused:
        first.setdefault(event.name, event)  # a run that pauses twice is delayed once
    delayed = unknown = done_since = 0
    for name, event in first.items():
        details, now = event.after or {}, records.get(name)
        done, total = details.get("done"), details.get("total")
        if done is None or total is None:
            unknown += 1
        else:
            delayed += max(0, total - done)
        if now is not None and done is not None:
            # Of the op that paused. Older events do not name it.
            since = max(0, now.done_by_op.get(details.get("op") or "", now.done) - done)
            done_since += since if total is None else min(since, max(0, total - done))
    present = [records[name] for name in first if name in records]
    completed = [each for each in present if each.status is RunStatus.COMPLETED]
    cut_off = sum(len(each.cut_off) for each in present) + sum(
        event.actor == SystemActor.DAGSTER for event in paused
    )
    return RecordsOut(
        delayed=delayed,
        runs_of_unknown_total=unknown,
        done_since=done_since,
        left=sum(
            max(0, each.total - each.done - each.failed)
            for each in present
            if each.status in (RunStatus.PENDING, RunStatus.PROCESSING, RunStatus.PAUSED)
        ),
        failed=sum(each.failed for each in present),
        lost=sum(max(0, each.total - each.done - each.failed - each.skipped) for each in completed),
        repeated=None if cut_off else 0,
        cut_off=cut_off,
    )


def _actions(
    outage: Outage, around: Surroundings, campaigns: Collection[str]
) -> Iterator[ActionOut]:
    targets = {
        EVERYTHING.key,
        Target(TargetKind.SERVICE, outage.service).key,
        *(Target(TargetKind.CAMPAIGN, name).key for name in campaigns),
    }
    cause = None
    for event in around.events:
        what = None
        if event.kind == EventKind.SERVICE and event.name == outage.service:
            was_denied = cause == VerdictKind.DENIED
            cause = (event.after or {}).get("cause")
            if event.to_status == "kept_closed":
                what = "kept the breaker closed"
            elif event.to_status == "may_trip":
                what = "let the breaker trip again"
            elif event.to_status == BreakerState.HALF_OPEN and was_denied:
                what = "said that it is repaired"  # nothing else ends a denial
        elif event.kind == EventKind.HOLD:
            what = _hold_action(event, targets, campaigns)
        elif event.kind in _OF_PEOPLE and _campaign(event.name) in campaigns:
            what = f"{event.kind} {event.name}: {words(event.to_status)}"
        if what is not None:
            yield ActionOut(at=event.at, actor=event.actor, what=what, reason=event.reason)


def _hold_action(event: Event, targets: Collection[str], campaigns: Collection[str]) -> str | None:
    kind, _, name = event.name.partition(" ")
    is_run = kind == TargetKind.CAMPAIGN_RUN and _campaign(name) in campaigns
    details = event.after or event.before or {}
    is_operators = details.get("source") == HoldSource.OPERATOR
    by_force = event.to_status == "released_by_force"
    if event.actor == SystemActor.EXPIRY or not (is_operators or by_force):
        return None
    if event.name not in targets and not is_run:
        return None
    return f"hold on {words(event.name)}: {words(event.to_status)}"


def _notes(outage: Outage, around: Surroundings, runs: Sequence[PausedRunOut]) -> Iterator[str]:
    if not outage.is_whole:
        yield "The audit log no longer has the beginning of the outage."
    if len(around.events) >= MAX_EVENTS:
        yield f"There were more events than the {MAX_EVENTS} that are read; later ones are missing."
    if len(runs) > MAX_RUNS:
        yield f"The records of {plural(len(runs) - MAX_RUNS, 'paused run')} are not counted."
    if outage.end is not None and any(run.resumed_at is None for run in runs):
        yield "Some runs are still paused: the numbers of records will change."
    yield (
        "The number of calls spared is an estimate: refused calls are not stored. Records of runs "
        "that waited in the queue, and of loops that do not know their total, are not counted as "
        "delayed."
    )
    yield (
        "Completed records are never processed again. A record that was in flight when its "
        "process was cut off is sent again with the same idempotency key; only the service knows "
        "whether it had arrived."
    )


def period(
    now: datetime, since: datetime | None, until: datetime | None
) -> tuple[datetime, datetime]:
    """Return a period, by default the last 30 days.

    Raises:
        ValueError: If it is empty.
    """
    end = now if until is None else min(until, now)
    start = end - timedelta(days=30) if since is None else since
    if start >= end:
        raise ValueError(f"the period from {utc(start)} to {utc(end)} is empty")
    return start, end
