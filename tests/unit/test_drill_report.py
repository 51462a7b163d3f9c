"""What a drill finds, from evidence made up for the purpose."""

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dagster_tidegate.statuses import RunStatus
from demo.drill.report import (
    AttemptTimes,
    Evidence,
    InstanceSettings,
    Report,
    RunResult,
    Transition,
    summarize,
    violations,
)

START = datetime(2026, 3, 1, 9, tzinfo=UTC)
SETTINGS = InstanceSettings({"instantly": "3"}, {"sensor new_lead_files": "DECLARED_IN_CODE"})


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def trial(
    number: int, started: float, ended: float | None, outcome: RunStatus | None
) -> AttemptTimes:
    end = None if ended is None else at(ended)
    return AttemptTimes("outreach/a", number, at(started), end, outcome)


GOOD = Evidence(
    service="instantly",
    affected=frozenset({"outreach"}),
    unaffected=frozenset({"digest", "hygiene"}),
    expected=frozenset({"a/ann@x.example", "a/bob@x.example"}),
    effects={"a/ann@x.example": 1, "a/bob@x.example": 1},
    repeats=0,
    calls_total=12,
    # Five fail, the breaker opens at 10; one was under way; at 15 a trial fails, at 25 one works.
    arrivals=[at(s) for s in (9, 9.2, 9.4, 9.6, 9.8, 10.3, 15.1, 25.1, 26)],
    successes=[at(25.1), at(26)],
    healed_at=at(20),
    transitions=[
        Transition(at(10), "open"),
        Transition(at(15), "half_open"),
        Transition(at(15.2), "open"),
        Transition(at(25), "half_open"),
        Transition(at(25.2), "closed"),
    ],
    queue_stopped_at=at(10.5),
    schedules_stopped_at=at(11),
    all_paused_at=at(12),
    paused_campaigns=frozenset({"outreach"}),
    runs=[
        RunResult("outreach", "CANCELED", paused=True),
        RunResult("outreach", "SUCCESS", paused=False),
        RunResult("digest", "SUCCESS", paused=False),
    ],
    attempts=[
        trial(1, 0, 11, RunStatus.PAUSED),
        trial(2, 24, 30, RunStatus.COMPLETED),
        trial(3, 31, 32, RunStatus.COMPLETED),  # a person ran it again: it resumed nothing
    ],
    statuses={"outreach/a": RunStatus.COMPLETED, "digest/b": RunStatus.COMPLETED},
    completed_at=at(30),
    before=SETTINGS,
    after=SETTINGS,
    unfinished=[],
)


def test_the_figures_of_a_good_drill():
    assert summarize(GOOD) == Report(
        records_total=2,
        records_done=2,
        records_lost=0,
        records_duplicated=0,
        calls_total=12,
        calls_while_open=1,
        runs_failed=0,
        runs_paused=1,
        runs_resumed=1,
        campaigns_paused=1,
        campaigns_untouched=2,
        trip_to_last_call_s=0.3,
        trip_to_queue_stopped_s=0.5,
        trip_to_schedules_stopped_s=1.0,
        trip_to_all_paused_s=2.0,
        recovery_to_first_record_s=5.1,
        recovery_to_all_done_s=10.0,
        schedules_restored=True,
        pools_restored=True,
    )
    assert violations(GOOD) == []


CHANGED = InstanceSettings({"instantly": "unset"}, {"sensor new_lead_files": "STOPPED"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"effects": {"a/ann@x.example": 1}}, "1 records lost: a/bob@x.example"),
        ({"effects": {**GOOD.effects, "a/ann@x.example": 2}}, "took effect more than once"),
        ({"effects": {**GOOD.effects, "a/eve@x.example": 1}}, "unexpected records arrived"),
        ({"repeats": 1}, "1 records were sent again"),
        ({"arrivals": [at(11.5)]}, "1 calls arrived at instantly more than 1 s after"),
        ({"arrivals": [at(17)]}, "1 calls arrived at instantly more than 1 s after"),
        ({"runs": [RunResult("outreach", "FAILURE", paused=False)]}, "1 Dagster runs failed"),
        ({"runs": [RunResult("outreach", "SUCCESS", paused=True)]}, "are not CANCELED"),
        (
            {"paused_campaigns": frozenset({"outreach", "digest"})},
            "without depending on instantly: digest",
        ),
        ({"paused_campaigns": frozenset()}, "not paused: outreach"),
        ({"queue_stopped_at": None}, "the pools of instantly never reached 0"),
        ({"schedules_stopped_at": None}, "schedules and trigger sensors never stopped"),
        ({"all_paused_at": None}, "running work never stopped"),
        ({"statuses": {"outreach/a": RunStatus.CANCELLED}}, "outreach/a is cancelled"),
        ({"after": CHANGED}, "pool instantly was 3 and is unset"),
        ({"after": CHANGED}, "sensor new_lead_files was DECLARED_IN_CODE and is STOPPED"),
        ({"unfinished": ["hold on service instantly"]}, "not finished in time: hold on"),
        ({"transitions": []}, "did not open"),
        (
            {"attempts": [trial(1, 0, 26, RunStatus.PAUSED), trial(2, 24, 30, None)]},
            "attempt 2 of outreach/a began before attempt 1 had ended",
        ),
        (
            {"attempts": [trial(1, 0, None, None), trial(2, 24, 30, None)]},
            "attempt 2 of outreach/a began before attempt 1 had ended",
        ),
    ],
)
def test_what_did_not_hold_is_said(change: dict[str, Any], said: str):
    assert said in "\n".join(violations(replace(GOOD, **change)))


def test_the_report_has_exactly_the_keys_that_others_read():
    assert [field.name for field in fields(Report)] == [
        "records_total",
        "records_done",
        "records_lost",
        "records_duplicated",
        "calls_total",
        "calls_while_open",
        "runs_failed",
        "runs_paused",
        "runs_resumed",
        "campaigns_paused",
        "campaigns_untouched",
        "trip_to_last_call_s",
        "trip_to_queue_stopped_s",
        "trip_to_schedules_stopped_s",
        "trip_to_all_paused_s",
        "recovery_to_first_record_s",
        "recovery_to_all_done_s",
        "schedules_restored",
        "pools_restored",
    ]
