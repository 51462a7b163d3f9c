"""Maintenance windows: when one begins and ends, also on the days on which the clocks change."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from dagster_tidegate import BreakerResource, ServiceConfig, Window
from dagster_tidegate.gate.windows import spans
from dagster_tidegate.holds import HoldSource, SystemActor, describe
from tests.unit.situations import MAIL, NOW, hold

# Each with its changes in 2026, UTC. All begin summer time at night, not at midnight.
CHANGES = {
    "UTC": [datetime(2026, 6, 1, tzinfo=UTC)],
    "Europe/Berlin": [datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)],
    "America/New_York": [datetime(2026, 3, 8, 7, tzinfo=UTC), datetime(2026, 11, 1, 6, tzinfo=UTC)],
    "Australia/Lord_Howe": [  # by half an hour
        datetime(2026, 4, 4, 15, tzinfo=UTC),
        datetime(2026, 10, 3, 15, 30, tzinfo=UTC),
    ],
    "Asia/Kolkata": [datetime(2026, 6, 1, 18, 30, tzinfo=UTC)],
}
CRONS = ["0 2 * * SUN", "30 */2 * * *", "15,45 1-3 * * *", "0 0 1 * *", "*/5 * * * *", "@daily"]
near_a_change = st.sampled_from(list(CHANGES)).flatmap(
    lambda zone: st.tuples(
        st.just(zone),
        st.sampled_from(CHANGES[zone]),
        st.integers(-3 * 86400, 3 * 86400).map(lambda seconds: timedelta(seconds=seconds)),
    )
)
lengths = st.integers(1, 3 * 86400).map(lambda seconds: timedelta(seconds=seconds))


def begins(zone: str, hour: int, minute: int, around: datetime) -> list[datetime]:
    """When a daily window begins, minute by minute: the model that the cron library must match."""
    zoneinfo, times = ZoneInfo(zone), []
    for days in range(-6, 7):
        day = around.astimezone(zoneinfo).date() + timedelta(days=days)
        nominal = datetime(day.year, day.month, day.day, hour, minute)  # noqa: DTZ001 -- local
        at = nominal.replace(tzinfo=zoneinfo, fold=1).astimezone(UTC)
        if at.astimezone(zoneinfo).replace(tzinfo=None) != nominal:  # skipped by summer time
            at = nominal.replace(tzinfo=zoneinfo).astimezone(UTC) - timedelta(hours=1)
            while at.astimezone(zoneinfo).replace(tzinfo=None, fold=0) < nominal:
                at += timedelta(minutes=1)
        times.append(at)
    return sorted(set(times))


@given(near_a_change, st.integers(0, 23), st.sampled_from([0, 15, 30]), lengths)
def test_a_daily_window_is_where_the_clock_on_the_wall_says(
    near: tuple[str, datetime, timedelta], hour: int, minute: int, length: timedelta
) -> None:
    zone, change, offset = near
    now = change + offset
    starts = begins(zone, hour, minute, now)
    current, following = spans(f"{minute} {hour} * * *", zone, length, now)
    here = [start for start in starts if start <= now < start + length]
    assert (current and current.starts_at) == (max(here) if here else None)
    assert following.starts_at == min(start for start in starts if start > now)
    assert following.ends_at - following.starts_at == length


# Seven times, three days of every five minutes: 150 ms of work, too close to 200 on a busy machine.
@settings(deadline=None)
@given(near_a_change, st.sampled_from(CRONS), lengths)
def test_windows_follow_each_other_without_a_gap_and_none_comes_twice(
    near: tuple[str, datetime, timedelta], cron: str, length: timedelta
) -> None:
    zone, change, offset = near
    now = change + offset
    current, following = spans(cron, zone, length, now)
    assert following.starts_at > now
    if current is not None:
        assert current.starts_at <= now < current.ends_at
    for _ in range(3):
        just_before = following.starts_at - timedelta(microseconds=1)
        assert spans(cron, zone, length, just_before)[1] == following
        current, later = spans(cron, zone, length, following.starts_at)
        assert current == following
        assert later.starts_at > following.starts_at
        following = later


def test_a_window_in_the_hour_that_summer_time_skips_begins_when_that_hour_is_over() -> None:
    evening = datetime(2026, 3, 28, 20, tzinfo=UTC)
    _, following = spans("0 2 * * SUN", "Europe/Berlin", timedelta(hours=2), evening)
    assert following == (
        datetime(2026, 3, 29, 1, tzinfo=UTC),
        datetime(2026, 3, 29, 3, tzinfo=UTC),
    )


def test_a_window_in_the_hour_that_comes_twice_is_held_once() -> None:
    evening = datetime(2026, 10, 24, 20, tzinfo=UTC)
    _, following = spans("30 2 * * SUN", "Europe/Berlin", timedelta(minutes=10), evening)
    assert following.starts_at == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)
    _, later = spans("30 2 * * SUN", "Europe/Berlin", timedelta(minutes=10), following.starts_at)
    assert later.starts_at == datetime(2026, 11, 1, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize("cron", ["", "nightly", "0 25 * * *", "0 2 30 2 *", "* * * * * *"])
def test_an_expression_without_times_is_refused_when_the_code_is_loaded(cron: str) -> None:
    with pytest.raises(ValidationError, match="cron"):
        Window(cron=cron, duration_s=60)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", ""])
def test_a_time_zone_that_does_not_exist_is_refused(zone: str) -> None:
    with pytest.raises(ValidationError, match="time zone"):
        Window(cron="0 2 * * *", duration_s=60, timezone=zone)


def test_windows_reach_the_fleet_and_are_the_whole_services_alone() -> None:
    window = Window(cron="0 2 * * SUN", duration_s=7200, timezone="Europe/Berlin", reason="theirs")
    mail = ServiceConfig(name="mail", parts=["bulk"], windows=[window])
    policies = BreakerResource.in_memory([mail]).fleet.policies
    assert [each.model_dump() for each in policies["mail"].windows] == [window.model_dump()]
    assert not policies["mail/bulk"].windows


def test_why_says_until_when() -> None:
    until = NOW.replace(hour=11)
    held = hold(MAIL, actor=SystemActor.WINDOW, reason="their database", until=until)
    assert describe([held], {}) == (
        "mail is in a maintenance window until 2026-03-01 11:00:00 UTC (their database); "
        "resumes automatically"
    )
    assert held.source is HoldSource.OPERATOR  # which workers of earlier versions understand
