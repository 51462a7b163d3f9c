"""Which ticks a schedule missed, and which of them are run."""

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from dagster_tidegate.dagster_api.repository import tick_times
from dagster_tidegate.gate.missed_ticks import MAX_RECORDED, evaluate
from dagster_tidegate.store.campaigns import CatchUp


@dg.op
def nothing(): ...


@dg.job
def job():
    nothing()


def schedule(cron: str | list[str], zone: str | None = None) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(name="s", job=job, cron_schedule=cron, execution_timezone=zone)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def missed(definition: dg.ScheduleDefinition, after: str, before: str) -> list[str]:
    times = tick_times(definition, at(after), at(before))
    return [time.astimezone(UTC).strftime("%d %H:%M") for time in times]


def test_ticks_at_the_limits_are_not_missed():
    found = missed(schedule("0 * * * *"), "2026-01-01 10:00", "2026-01-01 13:00")
    assert found == ["01 11:00", "01 12:00"]


def test_ticks_are_in_the_time_zone_of_the_schedule():
    nightly = schedule("30 3 * * *", "Europe/Berlin")
    assert missed(nightly, "2026-01-01 00:00", "2026-01-03 00:00") == ["01 02:30", "02 02:30"]


def test_when_the_clocks_go_forward_a_day_has_one_tick():
    # On 29 March 2026 there is no 02:30 in Berlin.
    nightly = schedule("30 2 * * *", "Europe/Berlin")
    found = missed(nightly, "2026-03-28 00:00", "2026-03-31 00:00")
    assert len(found) == 3
    assert found[0] == "28 01:30"
    assert found[2] == "30 00:30"


def test_when_the_clocks_go_back_a_day_has_one_tick():
    # On 25 October 2026 there are two 02:30 in Berlin.
    nightly = schedule("30 2 * * *", "Europe/Berlin")
    found = missed(nightly, "2026-10-24 00:00", "2026-10-27 00:00")
    assert len(found) == 3
    assert (found[0], found[2]) == ("24 00:30", "26 01:30")


def test_when_the_clocks_go_back_every_hour_has_its_tick():
    hourly = schedule("0 * * * *", "Europe/Berlin")
    assert len(missed(hourly, "2026-10-24 22:30", "2026-10-25 22:30")) == 24


def test_a_schedule_with_several_crons_has_one_sequence_of_ticks():
    found = missed(schedule(["0 6 * * *", "0 18 * * *"]), "2026-01-01 00:00", "2026-01-02 00:00")
    assert found == ["01 06:00", "01 18:00"]


@pytest.mark.parametrize(
    ("catch_up", "waiting"),
    [
        (CatchUp.NONE, []),
        (CatchUp.LATEST, [4]),
        (CatchUp.PARTITIONS, [4]),
        (CatchUp.ALL, [2, 3, 4]),
    ],
)
def test_every_tick_is_evaluated_and_the_newest_are_run(catch_up: CatchUp, waiting: list[int]):
    times = [at("2026-01-01 00:00") + timedelta(hours=hour) for hour in range(5)]
    evaluated = evaluate(times, catch_up, max_ticks=3)
    assert [time for time, _, _ in evaluated] == times
    assert [n for n, (_, outcome, _) in enumerate(evaluated) if outcome is None] == waiting
    assert all(reason for _, outcome, reason in evaluated if outcome is not None)


def test_each_partition_that_was_missed_is_run_once_by_the_latest_of_its_ticks():
    times = [at("2026-01-01 20:00") + timedelta(hours=2 * n) for n in range(6)]  # until 06:00
    days = evaluate(times, CatchUp.PARTITIONS, 100, lambda time: f"{time:%Y-%m-%d}")
    assert [f"{time:%d %H}" for time, outcome, _ in days if outcome is None] == ["01 22", "02 06"]
    assert all("same partition" in (reason or "") for _, outcome, reason in days if outcome)
    hours = evaluate(times, CatchUp.PARTITIONS, 4, lambda time: f"{time:%d %H}")
    assert [n for n, (_, outcome, _) in enumerate(hours) if outcome is None] == [2, 3, 4, 5]


def test_no_tick_was_missed():
    assert evaluate([], CatchUp.ALL, max_ticks=3) == []


def test_after_a_very_long_stop_only_the_newest_ticks_are_recorded():
    times = (at("2026-01-01 00:00") + timedelta(minutes=m) for m in range(MAX_RECORDED + 5))
    assert len(evaluate(times, CatchUp.LATEST, max_ticks=3)) == MAX_RECORDED
