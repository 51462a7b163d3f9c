"""The report of an outage: what it is made of, and what it can't know."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dagster_tidegate.control import report as r
from dagster_tidegate.control.report import Outage, Surroundings
from dagster_tidegate.control.report_models import OutageReport, Summary
from dagster_tidegate.control.report_text import outage_text, picture, summary_text
from dagster_tidegate.holds import HoldSource
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store.history import Event
from dagster_tidegate.store.missed_ticks import MissedTick, TickOutcome
from dagster_tidegate.store.outages import RunRecords

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
TRIP = {
    "cause": "failure",
    "answer": "503 try later",
    "open_until": None,
    "calls": 20,
    "failed": 5,
    "slow": 0,
    "counted_s": 10.0,
}


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def event(id: int, minutes: float, name: str, former: str | None, to: str, **values: Any) -> Event:
    values = {"kind": "service", "reason": None, "actor": "worker-1", **values}
    return Event(id=id, at=at(minutes), name=name, from_status=former, to_status=to, **values)


def outage_events(first: int, minutes: float, service: str = "mail") -> list[Event]:
    """An outage of ten minutes with one failed probe."""
    return [
        event(first, minutes, service, "closed", "open", reason="503 x5", after=TRIP),
        event(first + 1, minutes + 4, service, "open", "half_open"),
        event(first + 2, minutes + 5, service, "half_open", "open", reason="503 x5"),
        event(first + 3, minutes + 9, service, "open", "half_open"),
        event(first + 4, minutes + 10, service, "half_open", "closed"),
    ]


def pause(id: int, minutes: float, run: str, **values: Any) -> Event:
    after = {"services": ["mail"], "done": 40, "total": 100}
    values = {"kind": "campaign_run", "after": after, **values}
    return event(id, minutes, run, "processing", "paused", **values)


def resume(id: int, minutes: float, run: str) -> Event:
    return event(id, minutes, run, "paused", "processing", kind="campaign_run")


def hold(id: int, minutes: float, target: str, to: str, actor: str, **values: Any) -> Event:
    after = {"source": HoldSource.OPERATOR, "hold": 1}
    values = {"kind": "hold", "after": after, "reason": "storm", **values}
    return event(id, minutes, target, None, to, actor=actor, **values)


def made(*events: Event, now: float = 60, **around: Any) -> OutageReport:
    """The report of the outage of `outage_events(1, 0)` with other events during it."""
    [outage] = r.outages(outage_events(1, 0))
    everything = sorted([*outage.events, *events], key=lambda each: each.id)
    around = {"campaigns": {"letters"}, **around}
    return r.report(outage, Surroundings(events=everything, **around), at(now))


def test_an_outage_lasts_from_leaving_closed_until_closed_whatever_the_probes_do() -> None:
    found = r.outages([*outage_events(1, 0), *outage_events(11, 30)])
    assert [(o.opened_at, o.closed_at) for o in found] == [(at(0), at(10)), (at(30), at(40))]
    assert all(o.is_whole for o in found)


def test_outages_of_several_services_overlap_without_mixing() -> None:
    mail, maps = outage_events(1, 0), outage_events(11, 3, "maps")
    events = sorted([*mail, *maps], key=lambda each: each.at)
    assert [(o.service, o.closed_at) for o in r.outages(events)] == [
        ("mail", at(10)),
        ("maps", at(13)),
    ]


def test_an_outage_whose_beginning_has_expired_says_so() -> None:
    [outage] = r.outages(outage_events(1, 0)[2:])
    assert not outage.is_whole
    made_ = r.report(outage, Surroundings(), at(60))
    assert any("beginning" in note for note in made_.notes)


def test_the_summary_counts_the_time_within_the_period_only() -> None:
    found = r.outages([*outage_events(1, -5), *outage_events(11, 30), outage_events(21, 55)[0]])
    [mail, maps] = r.summaries(found, START, at(60), ["mail", "maps"])
    assert (mail.outages, mail.minutes, mail.open) == (3, 5 + 10 + 5, True)
    assert mail.mttr_s == 600
    assert mail.longest_s == 600
    assert mail.causes == {"failure": 3}
    assert (maps.outages, maps.minutes, maps.mttr_s, maps.open) == (0, 0, None, False)


def test_an_outage_over_the_end_of_a_month_counts_in_both() -> None:
    found = r.outages(outage_events(1, -5))
    [march, february] = r.by_month(found, "mail", at(-9 * 60 - 60), at(-9 * 60 + 600))
    assert [each.month for each in (march, february)] == ["2026-03", "2026-02"]
    assert (march.outages, february.outages) == (1, 0)
    [outage] = r.outages(outage_events(1, -9 * 60 - 4))
    [march, february] = r.by_month([outage], "mail", at(-9 * 60 - 60), at(60))
    assert (march.outages, march.minutes, march.mttr_s) == (1, 6, 600)
    assert (february.outages, february.minutes, february.open) == (1, 4, True)


@pytest.mark.parametrize(
    "text", ["2026-13", "2026-1", "26-01", "2026-01 ", "2026-0\u0661", "9999-12"]
)
def test_what_is_no_month_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a month"):
        r.month_of(text)


def test_a_month_ends_where_the_next_begins() -> None:
    assert r.month_of("2026-12") == (
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )


def test_the_report_says_when_and_why_and_how_often_the_probe_failed() -> None:
    report = made()
    assert (report.opened_at, report.closed_at, report.seconds) == (at(0), at(10), 600)
    assert (report.reason, report.cause, report.answer) == ("503 x5", "failure", "503 try later")
    assert report.failed_probes == 1


def test_calls_spared_are_those_of_the_rate_before_the_trip() -> None:
    calls = made().calls
    assert (calls.before, calls.failure_rate) == (20, 0.25)
    assert calls.spared == 20 / 10 * 600


def test_without_counted_calls_nothing_is_made_up() -> None:
    events = outage_events(1, 0)
    events[0] = event(1, 0, "mail", "closed", "open", after={"cause": None})
    [outage] = r.outages(events)
    calls = r.report(outage, Surroundings(), at(60)).calls
    assert (calls.before, calls.spared) == (None, None)


def test_runs_that_paused_for_the_service_are_listed_with_how_long() -> None:
    monday, tuesday = "letters/monday", "letters/tuesday"
    report = made(
        pause(6, 1, monday),
        pause(7, 2, tuesday),
        resumed={monday: [resume(30, 11, monday)], tuesday: [resume(31, 14, tuesday)]},
    )
    assert [(run.run, run.seconds) for run in report.runs] == [(monday, 600), (tuesday, 720)]
    assert report.last_resumed_at == at(14)
    [letters] = report.campaigns
    assert (letters.paused, letters.still_paused) == (2, 0)


def test_a_run_that_is_still_paused_leaves_the_end_open() -> None:
    report = made(pause(6, 1, "letters/monday"), now=20)
    assert report.last_resumed_at is None
    assert report.runs[0].seconds == 19 * 60
    assert any("still paused" in note for note in report.notes)


def test_a_run_that_paused_for_something_else_is_not_of_the_outage() -> None:
    other = {"services": ["maps"], "done": 1, "total": 2}
    signal = {"services": [], "done": 1, "total": 2}
    assert not made(
        pause(6, 1, "letters/monday", after=other), pause(7, 1, "letters/tuesday", after=signal)
    ).runs


def test_of_an_older_version_the_runs_of_dependent_campaigns_count() -> None:
    events = [pause(6, 1, "letters/monday", after=None), pause(7, 1, "guide/rome", after=None)]
    report = made(*events)
    assert [run.run for run in report.runs] == ["letters/monday"]
    assert report.records.runs_of_unknown_total == 1


def records(status: RunStatus, done: int, **values: Any) -> RunRecords:
    numbers: dict[str, Any] = {
        "failed": 0, "total": 100, "unknown": False, "done_by_op": {"send": done}, **values,
    }  # fmt: skip
    return RunRecords(status, done, **numbers)


@pytest.mark.parametrize(
    ("now", "lost", "left", "repeated"),
    [
        (records(RunStatus.COMPLETED, 100), 0, 0, 0),
        (records(RunStatus.COMPLETED, 97, failed=2), 1, 0, 0),
        (records(RunStatus.COMPLETED, 97, failed=2, skipped=1), 0, 0, 0),
        (records(RunStatus.PROCESSING, 70), 0, 30, 0),
        (records(RunStatus.COMPLETED, 100, cut_off=[at(3)]), 0, 0, None),
    ],
)
def test_records_are_counted_as_far_as_the_store_knows(
    now: RunRecords, lost: int, left: int, repeated: int | None
) -> None:
    found = made(pause(6, 1, "letters/monday"), records={"letters/monday": now}).records
    assert (found.delayed, found.lost, found.left, found.repeated) == (60, lost, left, repeated)
    assert found.done_since == now.done - 40


@pytest.mark.parametrize(("op", "done_since"), [("send", 30), ("fetch", 0), (None, 60)])
def test_of_a_run_of_several_ops_the_records_of_the_op_that_paused_count(
    op: str | None, done_since: int
) -> None:
    after = {"services": ["mail"], "done": 40, "total": 100, "op": op}
    if op is None:  # an event of an older version
        after.pop("op")
    ops = {"fetch": 40, "check": 500, "send": 70}
    now = records(RunStatus.PROCESSING, sum(ops.values()), total=900, done_by_op=ops)
    found = made(pause(6, 1, "letters/monday", after=after), records={"letters/monday": now})
    assert (found.records.delayed, found.records.done_since) == (60, done_since)


def test_a_run_that_pauses_twice_in_an_outage_is_delayed_once() -> None:
    twice = [pause(6, 1, "letters/monday"), pause(8, 6, "letters/monday")]
    assert made(*twice).records.delayed == 60


def test_a_run_that_dagster_reported_dead_was_cut_off() -> None:
    found = made(pause(6, 1, "letters/monday", actor="dagster")).records
    assert (found.cut_off, found.repeated) == (1, None)


def test_who_did_what_has_the_people_and_nobody_else() -> None:
    by_breaker = {"source": HoldSource.BREAKER, "hold": 2}
    report = made(
        hold(6, 1, "service mail", "placed", "breaker", after=by_breaker),
        hold(7, 2, "service mail", "placed", "ana"),
        hold(8, 3, "campaign letters", "released", "bo"),
        hold(9, 3, "campaign guide", "released", "bo"),
        hold(10, 3, "campaign_run letters/monday", "placed", "cy"),
        hold(11, 3, "everything", "placed", "di"),
        hold(12, 4, "service mail", "expired", "expiry"),
        event(13, 5, "letters/monday", None, "requested", kind="start", actor="eve"),
        event(14, 5, "mail", None, "kept_closed", actor="flo"),
    )
    assert [action.actor for action in report.actions] == ["ana", "bo", "cy", "di", "eve", "flo"]
    assert report.actions[0].what == "hold on service mail: placed"


def test_who_said_that_a_denied_service_is_repaired_is_named() -> None:
    denied = {"cause": "denied", "answer": "no credits"}
    events = [
        event(1, 0, "mail", "closed", "open", reason="402", after=denied),
        event(2, 9, "mail", "open", "half_open", reason="paid", actor="ana"),
        event(3, 10, "mail", "half_open", "closed"),
    ]
    report = r.report(Outage(tuple(events)), Surroundings(events=events), at(60))
    assert [(a.actor, a.what, a.reason) for a in report.actions] == [
        ("ana", "said that it is repaired", "paid")
    ]


def test_what_the_gate_stopped_is_listed_with_when_it_was_restored() -> None:
    def takeover(id: int, minutes: float, name: str, to: str, reason: str | None) -> Event:
        return event(id, minutes, name, "5", to, kind="takeover", reason=reason, actor="gate")

    report = made(
        takeover(6, 1, "pool mail", "0", "taken over"),
        takeover(7, 2, "pool other", "0", "taken over"),
        takeover(8, 3, "pool mail", "1", None),
        takeovers={"pool mail"},
        given_back={"pool mail": [takeover(30, 20, "pool mail", "restored", None)]},
    )
    assert [(s.name, s.restored_at) for s in report.stopped] == [("pool mail", at(20))]


def test_missed_ticks_are_counted_by_what_became_of_them() -> None:
    ends: Sequence[TickOutcome | None] = [TickOutcome.LAUNCHED, TickOutcome.SKIPPED, None]
    missed = [MissedTick("letters", "daily", at(i), end) for i, end in enumerate(ends)]
    [ticks] = made(missed=missed).ticks
    assert (ticks.missed, ticks.launched, ticks.skipped, ticks.waiting) == (3, 1, 1, 1)


def test_the_picture_shows_the_breaker_and_the_paused_campaigns() -> None:
    monday = "letters/monday"
    report = made(pause(6, 1, monday), resumed={monday: [resume(30, 11, monday)]})
    breaker, letters, axis, _ = picture(report)
    states = breaker.removeprefix("mail").strip()
    assert states.strip("─").startswith("█")
    assert "▒" in states
    assert states.startswith("─")
    assert states.endswith("─")
    assert letters.count("░") > 40
    assert "08:59" in axis


def test_the_text_of_a_report_has_its_facts_and_no_markup_of_others() -> None:
    text = outage_text(
        made(hold(7, 2, "service mail", "placed", "a|na<b>"), pause(8, 3, "letters/monday"))
    )
    assert "503 try later" in text
    assert "60 delayed" in text
    assert "0 lost, 0 repeated" in text
    assert "a\\|na\\<b\\>" in text


def test_the_text_of_a_summary_has_a_row_for_each_service() -> None:
    found = r.outages(outage_events(1, 0))
    services = r.summaries(found, START, at(60), ["maps"])
    text = summary_text(Summary(since=START, until=at(60), services=services))
    assert "| mail " in text
    assert "| maps " in text
    assert "failure x1" in text
