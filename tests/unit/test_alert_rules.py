"""Of what people are told, and of what not again."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from dagster_tidegate.alerts.kinds import AlertKind
from dagster_tidegate.alerts.rules import MAX_NAME, Verdict, bounded, judge
from dagster_tidegate.alerts.sender import MAX_TRIES, messages, wait_after
from dagster_tidegate.alerts.situation import InDoubt, Seen, Trouble, Waiting
from dagster_tidegate.alerts.text import Text
from dagster_tidegate.holds import EVERYTHING
from dagster_tidegate.settings import AlertSettings
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store.alerts import Alert
from dagster_tidegate.store.history import Event
from tests.unit.situations import (
    LETTERS,
    MAIL,
    MONDAY,
    NOW,
    breakers_hold,
    hold,
    open_circuit,
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


def told(
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


def kinds(verdict: Verdict) -> list[AlertKind]:
    return [raised.kind for raised in verdict.raised]


def judged(
    *events: Event,
    alerts: Sequence[Alert] = (),
    trouble: Trouble | None = None,
    **values: object,
) -> Verdict:
    seen = situation(**values)  # type: ignore[arg-type] -- what a situation takes
    return judge(Seen(seen, events, alerts, trouble), SETTINGS)


def test_a_trip_is_told_with_what_it_pauses_and_what_to_do() -> None:
    [raised] = judged(
        trip(),
        circuits=[open_circuit("mail")],
        holds=[breakers_hold(MAIL)],
        counts={"letters": {RunStatus.PROCESSING: 2, RunStatus.PAUSED: 1}},
    ).raised
    assert (raised.kind, raised.name, raised.lasts) == (AlertKind.TRIP, "mail", True)
    assert raised.text.title == "mail is down: 503 x5"
    for part in ("letters (2 processing, 1 paused), guide", "tidegate why mail", "09:00:20 UTC"):
        assert part in raised.text.body


def test_a_recovery_ends_the_trip_and_is_told() -> None:
    verdict = judged(recovery(), alerts=[told(AlertKind.TRIP)])
    assert [ended.alert.id for ended in verdict.ended] == [1]
    assert kinds(verdict) == [AlertKind.RECOVERY]
    assert verdict.raised[0].text.title == "mail is back"


def test_a_recovery_is_not_told_where_the_trip_was_not() -> None:
    assert judged(recovery()) == Verdict()
    given_up = judged(recovery(), alerts=[told(AlertKind.TRIP, given_up=True)])
    assert len(given_up.ended) == 1
    assert not given_up.raised


def test_a_trip_and_its_recovery_in_one_look_are_both_told_and_nothing_lasts() -> None:
    verdict = judged(trip(), recovery())
    assert kinds(verdict) == [AlertKind.TRIP, AlertKind.RECOVERY]
    assert not any(raised.lasts for raised in verdict.raised)


def test_a_failed_probe_is_no_trip() -> None:
    assert judged(event("open", "half_open")) == Verdict()


def test_the_third_trip_within_an_hour_is_withheld_and_counted() -> None:
    events = [each for n in range(20) for each in (trip(2 * n), recovery(2 * n + 1))]
    verdict = judged(*events)
    assert kinds(verdict).count(AlertKind.TRIP) == 2
    assert [raised.withheld for raised in verdict.raised if raised.kind is AlertKind.TRIP] == [
        0,
        18,
    ]


def test_what_was_withheld_is_summed_up_when_it_is_time() -> None:
    early = [
        told(AlertKind.TRIP, id=1, at=NOW - timedelta(minutes=12), live=False),
        told(AlertKind.TRIP, id=2, at=NOW - timedelta(minutes=9), live=False, withheld=7),
    ]
    assert judged(alerts=early) == Verdict()
    late = [replace(alert, raised_at=alert.raised_at - timedelta(minutes=1)) for alert in early]
    verdict = judged(alerts=late)
    [raised] = verdict.raised
    assert raised.text.title == "mail went down 7 more times, and is back now"
    assert not raised.lasts
    assert [(alert.id, count) for alert, count in verdict.withheld] == [(2, 0)]


def test_a_withheld_trip_that_lasts_is_told_when_it_is_time_and_so_is_its_end() -> None:
    alerts = [
        told(AlertKind.TRIP, id=n, at=NOW - timedelta(minutes=11), live=False, withheld=n - 1)
        for n in (1, 2)
    ]
    [raised] = judged(alerts=alerts, circuits=[open_circuit("mail")]).raised
    assert raised.text.title == "mail went down once more, and is down now"
    assert raised.lasts


def test_a_trip_that_may_be_told_is_told_with_those_that_were_withheld() -> None:
    alerts = [told(AlertKind.TRIP, at=NOW - timedelta(minutes=11), live=False, withheld=3)]
    verdict = judged(trip(), alerts=alerts, circuits=[open_circuit("mail")])
    [raised] = verdict.raised
    assert raised.text.title == "mail went down 4 more times, and is down now"
    assert (raised.lasts, raised.withheld) == (True, 0)
    assert [(alert.id, count) for alert, count in verdict.withheld] == [(1, 0)]


def test_trips_of_long_ago_are_summed_up() -> None:
    verdict = judged(*(trip(n, ago_s=7200 + n) for n in range(5)))
    [raised] = verdict.raised
    assert raised.text.title == "mail went down 5 times, and is back now"


def test_a_persons_hold_is_told_once_and_its_release_too() -> None:
    held = hold(LETTERS)
    [raised] = judged(holds=[held]).raised
    assert raised.text.title == "ana holds campaign letters: new copy"
    assert "tidegate release campaign letters" in raised.text.body
    alert = told(raised.kind, raised.name)
    assert judged(holds=[held], alerts=[alert]) == Verdict()
    verdict = judged(alerts=[alert])
    assert kinds(verdict) == [AlertKind.HOLD_RELEASED]
    assert [ended.withdraw for ended in verdict.ended] == [False]


def test_who_released_a_hold_is_told() -> None:
    over = replace(hold(EVERYTHING), released_at=NOW, released_by="bob")
    seen = Seen(
        situation(),
        alerts=[told(AlertKind.OPERATOR_HOLD, "everything by ana")],
        released=[over],
    )
    [raised] = judge(seen, SETTINGS).raised
    assert "was released by bob at 2026-03-01 09:00:00 UTC" in raised.text.body


def test_the_hold_of_a_breaker_is_no_persons_hold() -> None:
    assert judged(holds=[breakers_hold(MAIL)], circuits=[open_circuit("mail")]) == Verdict()


@pytest.mark.parametrize(
    ("placed_min_ago", "ends_in_min", "tells"),
    [(600, 16, False), (600, 14, True), (5, 2, False), (5, 1, True)],
)
def test_a_hold_that_ends_soon_is_told_but_not_when_it_is_placed(
    placed_min_ago: float, ends_in_min: float, tells: bool
) -> None:
    ends = replace(
        hold(LETTERS, until=NOW + timedelta(minutes=ends_in_min)),
        placed_at=NOW - timedelta(minutes=placed_min_ago),
    )
    assert (AlertKind.HOLD_EXPIRES in kinds(judged(holds=[ends]))) == tells


@pytest.mark.parametrize("held", [hold(LETTERS), breakers_hold(MAIL)])
def test_a_hold_that_lasts_for_long_is_told(held) -> None:
    old = replace(held, placed_at=NOW - timedelta(hours=25))
    assert AlertKind.HOLD_OLD in kinds(judged(holds=[old]))
    assert AlertKind.HOLD_OLD not in kinds(judged(holds=[held]))


def test_what_ended_before_anybody_was_told_is_withdrawn() -> None:
    expires, stale = told(AlertKind.HOLD_EXPIRES, "x"), told(AlertKind.GATE_STALE, "y", id=2)
    verdict = judged(alerts=[expires, stale])
    assert [ended.withdraw for ended in verdict.ended] == [True, True]
    assert not verdict.raised


def test_a_stale_gate_is_told_once() -> None:
    verdict = judged(silent=["pause", "resume"])
    [raised] = verdict.raised
    assert (raised.kind, raised.name) == (AlertKind.GATE_STALE, "here")
    assert "sensors pause, resume" in raised.text.body
    assert judged(silent=["pause"], alerts=[told(AlertKind.GATE_STALE, "here")]) == Verdict()


def test_a_gate_that_has_just_been_set_up_has_time_to_begin() -> None:
    seen = replace(situation(), heartbeats=[])
    new = Seen(seen, defined_at={"here": NOW - timedelta(seconds=100)})
    assert judge(new, SETTINGS) == Verdict()
    old = replace(new, defined_at={"here": NOW - timedelta(seconds=200)})
    assert kinds(judge(old, SETTINGS)) == [AlertKind.GATE_STALE]


def test_records_in_doubt_are_told() -> None:
    doubt = InDoubt("letters/monday", 3, NOW)
    [raised] = judged(trouble=Trouble(in_doubt=[doubt])).raised
    assert raised.text.title == "3 records of letters/monday in doubt"
    known = told(AlertKind.IN_DOUBT, "letters/monday")
    assert judged(alerts=[known], trouble=Trouble(in_doubt=[doubt])) == Verdict()
    assert judged(alerts=[known]) == Verdict(), "nobody looked: nothing is known to be over"
    assert len(judged(alerts=[known], trouble=Trouble()).ended) == 1


def test_a_run_that_failed_after_it_resumed_is_told() -> None:
    [raised] = judged(trouble=Trouble(failed={"letters/monday": "KeyError: 'x'"})).raised
    assert raised.text.title == "letters/monday failed after it resumed"
    assert "KeyError: 'x'" in raised.text.body


STUCK = Trouble(waiting={"letters": Waiting(12, LONG_AGO, LONG_AGO)})


def test_paused_runs_that_nothing_holds_are_told() -> None:
    [raised] = judged(trouble=STUCK).raised
    assert raised.text.title == "letters does not resume: 12 paused runs, and no hold"


@pytest.mark.parametrize(
    "values",
    [
        {"holds": [hold(LETTERS)]},
        {"holds": [breakers_hold(MAIL)]},
        {"silent": ["resume"]},
        {"counts": {"letters": {RunStatus.PROCESSING: 1}}},
        {"counts": {"guide": {RunStatus.PROCESSING: 1}}},  # it needs mail too
        {"trouble": Trouble(waiting={"letters": Waiting(1, LONG_AGO, NOW)})},
        {"trouble": Trouble(waiting={"gone": Waiting(1, LONG_AGO, LONG_AGO)})},
    ],
)
def test_paused_runs_that_wait_for_something_are_not_told(values: dict) -> None:
    assert AlertKind.RESUME_FAILED not in kinds(judged(**{"trouble": STUCK, **values}))


@pytest.mark.parametrize("target", [EVERYTHING, MAIL, LETTERS, MONDAY])
def test_paused_runs_have_time_after_a_release(target) -> None:
    over = replace(hold(target), released_at=NOW - timedelta(minutes=9), released_by="bob")
    seen = Seen(situation(), trouble=STUCK, released=[over])
    assert judge(seen, SETTINGS) == Verdict()
    long_over = replace(over, released_at=NOW - timedelta(minutes=11))
    assert kinds(judge(replace(seen, released=[long_over]), SETTINGS)) == [AlertKind.RESUME_FAILED]


def test_what_people_and_programs_gave_is_data() -> None:
    evil = replace(
        hold(MONDAY, reason="\x1b[31m@everyone <!channel> \u202e<script>alert(1)</script>"),
        target=replace(MONDAY, name="letters/x; rm -rf ~"),
    )
    [raised] = judged(holds=[evil]).raised
    said = raised.text.title + raised.text.body
    for bad in ("\x1b", "\u202e", "@everyone"):
        assert bad not in said
    assert "tidegate release run 'letters/x; rm -rf ~'" in raised.text.body


def test_text_and_names_are_bounded() -> None:
    endless = Text("t" * 10_000, "b" * 100_000).plain()
    assert (len(endless.title), len(endless.body)) == (200, 4000)
    one, other = (bounded("n" * 600 + end) for end in "ab")
    assert len(one) == MAX_NAME
    assert one != other


def test_a_kind_of_a_newer_version_is_left_alone() -> None:
    newer = replace(told(AlertKind.TRIP), kind="of tomorrow")
    assert judged(alerts=[newer]) == Verdict()


# --- the sender ----------------------------------------------------------------------------------


def due(count: int, **values: object) -> list[Alert]:
    return [
        Alert(n, AlertKind.TRIP, f"s{n}", f"title {n}", "", NOW, **values)  # type: ignore[arg-type] -- fields of an alert
        for n in range(count)
    ]


def test_alerts_are_told_one_by_one_where_there_is_room() -> None:
    assert [len(message.alerts) for message in messages(due(3), 3)] == [1, 1, 1]


def test_the_last_message_that_fits_has_all_the_rest() -> None:
    found = messages(due(40), 3)
    assert [len(message.alerts) for message in found] == [1, 1, 38]
    assert found[-1].text.title == "38 alerts"
    assert "title 39" in found[-1].text.body
    assert messages(due(40), 0) == []


def test_what_one_target_has_is_not_sent_to_it_in_a_common_message() -> None:
    found = messages([*due(2), *due(2, delivered_to=["ops"])], 3)
    assert [len(message.alerts) for message in found] == [1, 1, 2]
    assert all(alert.delivered_to == ["ops"] for alert in found[-1].alerts)


def test_tries_become_rarer_and_end() -> None:
    waits = [wait_after(tries) for tries in range(1, MAX_TRIES + 1)]
    known = [wait.total_seconds() for wait in waits if wait is not None]
    assert known == sorted(known)
    assert waits[-1] is None
    assert len(known) == MAX_TRIES - 1
    assert 3600 < sum(known) < 6 * 3600
