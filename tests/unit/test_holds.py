"""What a hold covers, and how it is told."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.holds import (
    EVERYTHING,
    Hold,
    HoldSource,
    Target,
    TargetKind,
    covering,
    describe,
)
from dagster_tidegate.statuses import BreakerState

NOW = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
APOLLO = Target(TargetKind.SERVICE, "apollo")
OPEN_APOLLO = BreakerStatus("apollo", NOW, state=BreakerState.OPEN, cause=VerdictKind.DENIED)


def hold(target: Target, source: HoldSource = HoldSource.OPERATOR, **kwargs) -> Hold:
    defaults = {"id": 1, "reason": "maintenance", "actor": "ana", "placed_at": NOW}
    return Hold(target=target, source=source, **{**defaults, **kwargs})


@pytest.mark.parametrize(
    ("target", "covered"),
    [
        (EVERYTHING, True),
        (Target(TargetKind.SERVICE, "instantly"), True),
        (Target(TargetKind.SERVICE, "apollo"), False),
        (Target(TargetKind.CAMPAIGN, "outreach"), True),
        (Target(TargetKind.CAMPAIGN, "digest"), False),
        (Target(TargetKind.CAMPAIGN_RUN, "outreach/leads-1"), True),
        (Target(TargetKind.CAMPAIGN_RUN, "outreach/leads-2"), False),
    ],
)
def test_what_covers_a_campaign_run(target: Target, covered: bool) -> None:
    found = covering(
        [hold(target)], NOW, services=["instantly"], campaign="outreach", partition="leads-1"
    )
    assert bool(found) is covered


def test_a_hold_on_a_service_covers_its_parts_and_one_on_a_part_nothing_else() -> None:
    on_whole = hold(Target(TargetKind.SERVICE, "apollo"))
    on_part = hold(Target(TargetKind.SERVICE, "apollo/people_match"))
    both = [on_whole, on_part]
    assert covering(both, NOW, services=["apollo/people_match"]) == both
    assert covering(both, NOW, services=["apollo/enrich"]) == [on_whole]
    assert covering(both, NOW, services=["apollo"]) == [on_whole]


def test_a_hold_on_one_run_does_not_cover_its_campaign() -> None:
    on_run = hold(Target(TargetKind.CAMPAIGN_RUN, "outreach/leads-1"))
    assert covering([on_run], NOW, campaign="outreach") == []


def test_released_and_expired_holds_cover_nothing() -> None:
    over = [
        hold(EVERYTHING, released_at=NOW),
        hold(EVERYTHING, expires_at=NOW),
    ]
    assert covering(over, NOW) == []


def test_the_oldest_hold_is_told_first() -> None:
    late = hold(EVERYTHING, id=2, placed_at=NOW)
    early = hold(EVERYTHING, id=3, placed_at=NOW - timedelta(minutes=1))
    assert covering([late, early], NOW) == [early, late]


def test_a_breakers_hold_says_that_it_ends_by_itself() -> None:
    service = Target(TargetKind.SERVICE, "instantly")
    assert (
        describe([hold(service, HoldSource.BREAKER, reason="503 x5", actor="breaker")], {})
        == "instantly is open (503 x5); resumes automatically"
    )


def test_a_target_is_worded_for_people_and_keeps_its_name_and_its_key() -> None:
    target = Target(TargetKind.CAMPAIGN_RUN, "account_digest/next_week")
    assert str(target) == "campaign run account_digest/next_week"
    assert target.key == "campaign_run account_digest/next_week"
    assert str(EVERYTHING) == EVERYTHING.key == "everything"
    assert describe([hold(target)], {}).startswith(
        "campaign run account_digest/next_week is held by"
    )


def test_a_persons_hold_says_who_and_that_it_must_be_released() -> None:
    assert (
        describe([hold(Target(TargetKind.CAMPAIGN, "outreach"))], {})
        == "campaign outreach is held by ana (maintenance); resumes when released"
    )


def test_a_persons_hold_with_an_end_resumes_by_itself() -> None:
    text = describe([hold(EVERYTHING, expires_at=NOW + timedelta(hours=1))], {})
    assert text == "everything is held by ana (maintenance); resumes automatically"


def test_a_hold_of_a_service_that_refuses_this_client_says_what_to_repair() -> None:
    by_breaker = hold(APOLLO, HoldSource.BREAKER, reason="401 invalid_api_key", actor="breaker")
    denied = {"apollo": OPEN_APOLLO}
    refuses = "apollo refuses this client (401 invalid_api_key)"
    assert (
        describe([by_breaker], denied)
        == f"{refuses}; resumes when repaired ('tidegate services repaired apollo')"
    )
    assert describe([by_breaker, hold(EVERYTHING)], denied) == (
        f"{refuses}; everything is held by ana (maintenance); resumes when released and "
        "repaired ('tidegate services repaired apollo')"
    )


def test_a_hold_of_a_half_open_breaker_does_not_say_that_it_is_open() -> None:
    by_breaker = hold(APOLLO, HoldSource.BREAKER, reason="401 invalid_api_key", actor="breaker")
    repaired = replace(OPEN_APOLLO, state=BreakerState.HALF_OPEN)
    tried = "apollo is half open (401 invalid_api_key)"
    assert describe([by_breaker], {"apollo": repaired}) == (
        f"{tried}; resumes when trial calls succeed"
    )
    assert describe([by_breaker, hold(EVERYTHING)], {"apollo": repaired}).endswith(
        "; resumes when released and trial calls succeed"
    )
    failed = {"apollo": replace(repaired, cause=VerdictKind.FAILURE)}
    assert describe([by_breaker], failed) == f"{tried}; resumes when trial calls succeed"


def test_a_hold_of_a_throttled_service_says_until_when() -> None:
    by_breaker = hold(APOLLO, HoldSource.BREAKER, reason="600 a day used", actor="breaker")
    throttled = replace(
        OPEN_APOLLO, cause=VerdictKind.THROTTLED, open_until=NOW + timedelta(hours=9, minutes=22)
    )
    assert describe([by_breaker], {"apollo": throttled}) == (
        "apollo is throttled until 2026-03-01 18:22:00 UTC (600 a day used); resumes automatically"
    )
