"""The rules that decide which alerts are raised, ended and withheld."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from dagster_tidegate.alerts.conditions import MAX_NAME
from dagster_tidegate.alerts.kinds import AlertKind, severity
from dagster_tidegate.alerts.rules import AlertChanges, evaluate
from dagster_tidegate.alerts.sender import MAX_TRIES, messages, wait_after
from dagster_tidegate.alerts.snapshot import RunProblems, Snapshot
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.holds import EVERYTHING
from dagster_tidegate.settings import AlertSettings
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store.alerts import Alert
from dagster_tidegate.store.budgets import BudgetUsage
from dagster_tidegate.store.history import Event
from dagster_tidegate.store.run_problems import InDoubt, PausedRuns
from tests.unit.situations import (
    LETTERS,
    MAIL,
    MONDAY,
    NOW,
    breakers_hold,
    denied,
    hold,
    open_breaker,
    situation,
)

SETTINGS = AlertSettings()
LONG_AGO = NOW - timedelta(days=1)


def event(to: str, before: str, *, id: int = 1, ago_s: float = 1, service: str = "mail") -> Event:
    at = NOW - timedelta(seconds=ago_s)
    return Event(id, at, "service", service, before, to, "503 x5", "worker")


def trip(id: int = 1, ago_s: float = 1) -> Event:
    return event("open", "closed", id=id, ago_s=ago_s)


def recovery(id: int = 2, ago_s: float = 1) -> Event:
    return event("closed", "half_open", id=id, ago_s=ago_s)


def stored(
    kind: AlertKind,
    name: str = "mail",
    *,
    id: int = 1,
    at: datetime = LONG_AGO,
    live: bool = True,
    withheld: int = 0,
    given_up: bool = False,
) -> Alert:
    sent = None if given_up else at
    return Alert(id, kind, name, "", "", at, None if live else at, sent, tries=1, withheld=withheld)


def kinds(changes: AlertChanges) -> list[AlertKind]:
    return [raised.kind for raised in changes.raised]


def evaluated(
    *events: Event,
    alerts: Sequence[Alert] = (),
    problems: RunProblems | None = None,
    **values: object,
) -> AlertChanges:
    fleet = situation(**values)  # type: ignore[arg-type] -- the arguments of a situation
    return evaluate(Snapshot(fleet, events, alerts=alerts, problems=problems), SETTINGS)


def test_a_budget_of_which_little_is_left_is_reported_once_per_period() -> None:
    def at(spent: float, alerts: Sequence[Alert] = ()) -> AlertChanges:
        usage = BudgetUsage(
            amount=50,
            per="day",
            unit="USD",
            timezone="UTC",
            spent=spent,
            left=50 - spent,
            begins_at=NOW,
            resets_at=NOW + timedelta(hours=12),
            campaigns={"letters": spent - 1, "": 1},
        )
        fleet = replace(situation(), budgets={"mail": usage})
        return evaluate(Snapshot(fleet, alerts=alerts), SETTINGS)

    assert not kinds(at(39.9))
    [raised] = at(40).raised
    assert (raised.kind, raised.text.title) == (
        AlertKind.BUDGET,
        "80% of the budget of mail is used up",
    )
    assert "40 of 50 USD spent today" in raised.text.body
    assert "By campaign: letters: 39" in raised.text.body
    told = stored(AlertKind.BUDGET)
    assert not kinds(at(50, [told])), "once"
    assert [ended.alert for ended in at(1, [told]).ended] == [told], "the next period"


def test_a_trip_alert_names_the_affected_campaigns_and_what_to_do() -> None:
    [raised] = evaluated(
        trip(),
        breakers=[open_breaker("mail")],
        holds=[breakers_hold(MAIL)],
        counts={"letters": {RunStatus.PROCESSING: 2, RunStatus.PAUSED: 1}},
    ).raised
    assert (raised.kind, raised.name, raised.lasts) == (AlertKind.TRIP, "mail", True)
    assert raised.text.title == "mail is down: 503 x5"
    for part in ("letters (2 processing, 1 paused), guide", "tidegate why mail", "09:00:20 UTC"):
        assert part in raised.text.body


def test_a_service_that_is_not_enforced_raises_no_alert_where_it_would_have_opened():
    assert kinds(evaluated(trip())) == [AlertKind.TRIP]
    assert evaluated(event("would_open", "closed")) == AlertChanges()


def test_a_recovery_ends_the_trip_and_raises_an_alert() -> None:
    changes = evaluated(recovery(), alerts=[stored(AlertKind.TRIP)])
    assert [ended.alert.id for ended in changes.ended] == [1]
    assert kinds(changes) == [AlertKind.RECOVERY]
    assert changes.raised[0].text.title == "mail has recovered"
    assert changes.raised[0].text.body.endswith("Report: tidegate report --outage 2")


def test_a_recovery_links_to_the_page_of_the_report_where_there_is_one() -> None:
    snapshot = Snapshot(situation(), [recovery()], alerts=[stored(AlertKind.TRIP)])
    [raised] = evaluate(snapshot, SETTINGS, pages="https://dagster.example.org/tidegate").raised
    assert raised.text.body.endswith("Report: https://dagster.example.org/tidegate/outages/2")


def test_a_recovery_raises_no_alert_if_the_trip_raised_none() -> None:
    assert evaluated(recovery()) == AlertChanges()
    given_up = evaluated(recovery(), alerts=[stored(AlertKind.TRIP, given_up=True)])
    assert len(given_up.ended) == 1
    assert not given_up.raised


def test_a_trip_and_its_recovery_in_one_snapshot_raise_two_ended_alerts() -> None:
    changes = evaluated(trip(), recovery())
    assert kinds(changes) == [AlertKind.TRIP, AlertKind.RECOVERY]
    assert not any(raised.lasts for raised in changes.raised)


def test_a_denial_raises_an_alert_of_its_own_that_says_what_to_repair() -> None:
    [raised] = evaluated(trip(), breakers=[denied("mail")], holds=[breakers_hold(MAIL)]).raised
    assert (raised.kind, raised.name, raised.lasts) == (AlertKind.DENIED, "mail", True)
    assert raised.text.title == "mail refuses this client: 401 invalid_api_key"
    for part in ("The API key is invalid", "letters", "tidegate services repaired mail"):
        assert part in raised.text.body
    assert "automatically" not in raised.text.body
    assert severity(raised.kind) == "failure"


def test_a_denial_lasts_until_the_trial_call_after_the_repair_succeeds() -> None:
    alerts = [stored(AlertKind.DENIED)]
    on_trial = replace(denied("mail"), state=BreakerState.HALF_OPEN)
    assert evaluated(alerts=alerts, breakers=[on_trial]) == AlertChanges()
    changes = evaluated(recovery(), alerts=alerts)
    assert [ended.alert.id for ended in changes.ended] == [1]
    assert kinds(changes) == [AlertKind.RECOVERY]


def test_a_throttled_service_is_not_down_and_says_until_when() -> None:
    throttled = replace(open_breaker("mail", due_in_s=3600), cause=VerdictKind.THROTTLED)
    [raised] = evaluated(trip(), breakers=[throttled], holds=[breakers_hold(MAIL)]).raised
    assert raised.text.title == "mail is throttled until 2026-03-01 10:00:00 UTC: 503 x5"


def test_a_failed_probe_is_not_a_trip() -> None:
    assert evaluated(event("open", "half_open")) == AlertChanges()


def test_the_third_trip_within_an_hour_is_withheld_and_counted() -> None:
    events = [each for n in range(20) for each in (trip(2 * n), recovery(2 * n + 1))]
    changes = evaluated(*events)
    assert kinds(changes).count(AlertKind.TRIP) == 2
    assert [raised.withheld for raised in changes.raised if raised.kind is AlertKind.TRIP] == [
        0,
        18,
    ]


def test_withheld_trips_share_one_message_once_the_rate_limit_allows() -> None:
    early = [
        stored(AlertKind.TRIP, id=1, at=NOW - timedelta(minutes=12), live=False),
        stored(AlertKind.TRIP, id=2, at=NOW - timedelta(minutes=9), live=False, withheld=7),
    ]
    assert evaluated(alerts=early) == AlertChanges()
    late = [replace(alert, raised_at=alert.raised_at - timedelta(minutes=1)) for alert in early]
    changes = evaluated(alerts=late)
    [raised] = changes.raised
    assert raised.text.title == "mail went down 7 more times and is up now"
    assert not raised.lasts
    assert [(alert.id, count) for alert, count in changes.withheld] == [(2, 0)]


def test_a_withheld_trip_that_lasts_raises_a_live_alert_once_the_rate_limit_allows() -> None:
    alerts = [
        stored(AlertKind.TRIP, id=n, at=NOW - timedelta(minutes=11), live=False, withheld=n - 1)
        for n in (1, 2)
    ]
    [raised] = evaluated(alerts=alerts, breakers=[open_breaker("mail")]).raised
    assert raised.text.title == "mail went down once more and is down now"
    assert raised.lasts


def test_the_next_trip_alert_includes_the_withheld_ones() -> None:
    alerts = [stored(AlertKind.TRIP, at=NOW - timedelta(minutes=11), live=False, withheld=3)]
    changes = evaluated(trip(), alerts=alerts, breakers=[open_breaker("mail")])
    [raised] = changes.raised
    assert raised.text.title == "mail went down 4 more times and is down now"
    assert (raised.lasts, raised.withheld) == (True, 0)
    assert [(alert.id, count) for alert, count in changes.withheld] == [(1, 0)]


def test_old_trips_share_one_message() -> None:
    changes = evaluated(*(trip(n, ago_s=7200 + n) for n in range(5)))
    [raised] = changes.raised
    assert raised.text.title == "mail went down 5 times and is up now"


def test_an_operators_hold_raises_one_alert_and_its_release_another() -> None:
    held = hold(LETTERS)
    [raised] = evaluated(holds=[held]).raised
    assert raised.text.title == "ana placed a hold on campaign letters: new copy"
    assert "tidegate release campaign letters" in raised.text.body
    alert = stored(raised.kind, raised.name)
    assert evaluated(holds=[held], alerts=[alert]) == AlertChanges()
    changes = evaluated(alerts=[alert])
    assert kinds(changes) == [AlertKind.HOLD_RELEASED]
    assert [ended.withdraw for ended in changes.ended] == [False]


def test_the_alert_about_a_release_names_who_released_the_hold() -> None:
    over = replace(hold(EVERYTHING), released_at=NOW, released_by="bob")
    snapshot = Snapshot(
        situation(),
        alerts=[stored(AlertKind.OPERATOR_HOLD, "everything by ana")],
        ended_holds=[over],
    )
    [raised] = evaluate(snapshot, SETTINGS).raised
    assert "was released by bob at 2026-03-01 09:00:00 UTC" in raised.text.body


def test_a_breakers_hold_raises_no_operator_hold_alert() -> None:
    assert evaluated(holds=[breakers_hold(MAIL)], breakers=[open_breaker("mail")]) == AlertChanges()


@pytest.mark.parametrize(
    ("placed_min_ago", "expires_in_min", "raises"),
    [(600, 16, False), (600, 14, True), (5, 2, False), (5, 1, True)],
)
def test_a_hold_that_expires_soon_raises_an_alert_but_not_when_it_is_placed(
    placed_min_ago: float, expires_in_min: float, raises: bool
) -> None:
    expiring = replace(
        hold(LETTERS, until=NOW + timedelta(minutes=expires_in_min)),
        placed_at=NOW - timedelta(minutes=placed_min_ago),
    )
    assert (AlertKind.HOLD_EXPIRES in kinds(evaluated(holds=[expiring]))) == raises


@pytest.mark.parametrize("held", [hold(LETTERS), breakers_hold(MAIL)])
def test_an_old_hold_raises_an_alert(held) -> None:
    old = replace(held, placed_at=NOW - timedelta(hours=25))
    assert AlertKind.HOLD_OLD in kinds(evaluated(holds=[old]))
    assert AlertKind.HOLD_OLD not in kinds(evaluated(holds=[held]))


def test_an_alert_is_withdrawn_if_its_cause_ends_before_it_is_sent() -> None:
    expires, stale = stored(AlertKind.HOLD_EXPIRES, "x"), stored(AlertKind.GATE_STALE, "y", id=2)
    changes = evaluated(alerts=[expires, stale])
    assert [ended.withdraw for ended in changes.ended] == [True, True]
    assert not changes.raised


def test_a_stale_gate_raises_one_alert() -> None:
    changes = evaluated(silent=["pause", "resume"])
    [raised] = changes.raised
    assert (raised.kind, raised.name) == (AlertKind.GATE_STALE, "here")
    assert "sensors (pause, resume)" in raised.text.body
    assert (
        evaluated(silent=["pause"], alerts=[stored(AlertKind.GATE_STALE, "here")]) == AlertChanges()
    )


def test_a_new_gate_has_time_for_its_first_tick() -> None:
    snapshot = replace(situation(), heartbeats=[])
    new = Snapshot(snapshot, defined_at={"here": NOW - timedelta(seconds=100)})
    assert evaluate(new, SETTINGS) == AlertChanges()
    old = replace(new, defined_at={"here": NOW - timedelta(seconds=200)})
    assert kinds(evaluate(old, SETTINGS)) == [AlertKind.GATE_STALE]


def test_records_in_doubt_raise_an_alert() -> None:
    doubt = InDoubt(1, "letters/monday", 3, NOW)
    [raised] = evaluated(problems=RunProblems(in_doubt=[doubt])).raised
    assert raised.text.title == "3 records of letters/monday in doubt"
    alert = stored(AlertKind.IN_DOUBT, "letters/monday")
    assert evaluated(alerts=[alert], problems=RunProblems(in_doubt=[doubt])) == AlertChanges()
    assert evaluated(alerts=[alert]) == AlertChanges(), "problems were not read"
    assert len(evaluated(alerts=[alert], problems=RunProblems()).ended) == 1


def test_a_run_that_fails_after_resuming_raises_an_alert() -> None:
    [raised] = evaluated(problems=RunProblems(failed={"letters/monday": "KeyError: 'x'"})).raised
    assert raised.text.title == "letters/monday failed after resuming"
    assert "KeyError: 'x'" in raised.text.body


STUCK = RunProblems(paused={"letters": PausedRuns(12, LONG_AGO, LONG_AGO)})


def test_paused_runs_without_a_hold_raise_an_alert() -> None:
    [raised] = evaluated(problems=STUCK).raised
    assert raised.text.title == "letters is not resuming: 12 paused runs without a hold"


@pytest.mark.parametrize(
    "values",
    [
        {"holds": [hold(LETTERS)]},
        {"holds": [breakers_hold(MAIL)]},
        {"silent": ["resume"]},
        {"counts": {"letters": {RunStatus.PROCESSING: 1}}},
        {"counts": {"guide": {RunStatus.PROCESSING: 1}}},  # it needs mail too
        {"problems": RunProblems(paused={"letters": PausedRuns(1, LONG_AGO, NOW)})},
        {"problems": RunProblems(paused={"gone": PausedRuns(1, LONG_AGO, LONG_AGO)})},
    ],
)
def test_paused_runs_that_wait_for_something_raise_no_alert(values: dict) -> None:
    assert AlertKind.RESUME_FAILED not in kinds(evaluated(**{"problems": STUCK, **values}))


@pytest.mark.parametrize("target", [EVERYTHING, MAIL, LETTERS, MONDAY])
def test_paused_runs_have_time_to_resume_after_a_release(target) -> None:
    over = replace(hold(target), released_at=NOW - timedelta(minutes=9), released_by="bob")
    snapshot = Snapshot(situation(), problems=STUCK, ended_holds=[over])
    assert evaluate(snapshot, SETTINGS) == AlertChanges()
    long_over = replace(over, released_at=NOW - timedelta(minutes=11))
    assert kinds(evaluate(replace(snapshot, ended_holds=[long_over]), SETTINGS)) == [
        AlertKind.RESUME_FAILED
    ]


def test_names_and_reasons_are_escaped() -> None:
    evil = replace(
        hold(MONDAY, reason="\x1b[31m@everyone <!channel> \u202e<script>alert(1)</script>"),
        target=replace(MONDAY, name="letters/x; rm -rf ~"),
    )
    [raised] = evaluated(holds=[evil]).raised
    text = raised.text.title + raised.text.body
    for bad in ("\x1b", "\u202e", "@everyone"):
        assert bad not in text
    assert "tidegate release run 'letters/x; rm -rf ~'" in raised.text.body


def test_text_and_names_are_bounded() -> None:
    endless = Text("t" * 10_000, "b" * 100_000).plain()
    assert (len(endless.title), len(endless.body)) == (200, 4000)
    failed = {"n" * 600 + end: "KeyError" for end in "ab"}
    one, other = evaluated(problems=RunProblems(failed=failed)).raised
    assert len(one.name) == len(other.name) == MAX_NAME
    assert one.name != other.name


def test_alerts_of_a_newer_version_are_ignored() -> None:
    newer = replace(stored(AlertKind.TRIP), kind="of tomorrow")
    assert evaluated(alerts=[newer]) == AlertChanges()


# --- the sender ----------------------------------------------------------------------------------


def due(count: int, **values: object) -> list[Alert]:
    return [
        Alert(n, AlertKind.TRIP, f"s{n}", f"title {n}", "", NOW, **values)  # type: ignore[arg-type] -- fields of an alert
        for n in range(count)
    ]


def test_each_alert_has_its_own_message_within_the_limit() -> None:
    assert [len(message.alerts) for message in messages(due(3), 3)] == [1, 1, 1]


def test_the_last_message_within_the_limit_has_all_remaining_alerts() -> None:
    result = messages(due(40), 3)
    assert [len(message.alerts) for message in result] == [1, 1, 38]
    assert result[-1].text.title == "38 alerts"
    assert "title 39" in result[-1].text.body
    assert messages(due(40), 0) == []


def test_alerts_share_a_message_only_if_the_same_targets_have_them() -> None:
    result = messages([*due(2), *due(2, delivered_to=["ops"])], 3)
    assert [len(message.alerts) for message in result] == [1, 1, 2]
    assert all(alert.delivered_to == ["ops"] for alert in result[-1].alerts)


def test_retries_back_off_and_end() -> None:
    waits = [wait_after(tries) for tries in range(1, MAX_TRIES + 1)]
    seconds = [wait.total_seconds() for wait in waits if wait is not None]
    assert seconds == sorted(seconds)
    assert waits[-1] is None
    assert len(seconds) == MAX_TRIES - 1
    assert 3600 < sum(seconds) < 6 * 3600
