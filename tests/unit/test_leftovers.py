"""What the code no longer defines and nothing clears by itself is named, and nothing else is."""

from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta

import pytest

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.control.leftovers import leftovers
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.holds import Target, TargetKind
from tests.unit.situations import (
    NOW,
    SHAPES,
    breakers_hold,
    half_open,
    hold,
    open_breaker,
    situation,
)

FAX = Target(TargetKind.SERVICE, "fax")


def held(breaker: BreakerStatus, silent: Collection[str] = ()) -> Situation:
    return situation([breakers_hold(FAX)], breakers=[breaker], silent=list(silent))


def test_a_campaign_without_a_definition_is_named_with_the_command_that_cancels_its_runs() -> None:
    [left] = leftovers(replace(situation(), undefined={"old letters": 2}))
    assert (left.name, left.do) == ("old letters", "tidegate runs cancel 'old letters'")
    assert left.what.startswith(
        "has 2 paused runs that nothing resumes, because no gate knows the campaign"
    )


@pytest.mark.parametrize("breaker", [open_breaker("fax", due_in_s=-180), half_open("fax")])
def test_a_service_that_nothing_tries_is_named_with_the_command_that_releases_it(
    breaker: BreakerStatus,
) -> None:
    [left] = leftovers(held(breaker))
    assert (left.name, left.do) == ("fax", "tidegate release service fax --force")


def test_a_service_that_is_about_to_be_tried_is_not_named() -> None:
    assert leftovers(held(open_breaker("fax", due_in_s=-60))) == []
    just_now = replace(half_open("fax"), changed_at=NOW - timedelta(seconds=30))
    assert leftovers(held(just_now)) == []
    needed = situation([breakers_hold(FAX)], breakers=[half_open("fax")], specs=[
        *SHAPES, replace(SHAPES[2], name="faxes", ops={"send": "fax"})
    ])  # fmt: skip
    assert leftovers(needed) == []


def test_a_stale_gate_is_no_sign_that_a_service_is_gone() -> None:
    assert leftovers(held(open_breaker("fax", due_in_s=-180), silent=["breaker"])) == []


def test_a_hold_of_a_person_is_no_leftover() -> None:
    assert leftovers(situation([hold(FAX)], breakers=[open_breaker("fax", due_in_s=-180)])) == []
