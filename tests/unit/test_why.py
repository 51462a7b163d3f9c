"""Why something is paused: one answer, from the live holds and nothing else."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_tidegate.cli.why import show_answer
from dagster_tidegate.control.situation import Situation
from dagster_tidegate.control.starting import Refusal, verdict
from dagster_tidegate.control.why import ObstacleKind, UnknownNameError, find, why, why_waiting
from dagster_tidegate.holds import EVERYTHING, Target, TargetKind
from dagster_tidegate.statuses import CampaignStatus, RunStatus
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.takeovers import TakeoverKind
from tests.unit.situations import (
    LETTERS,
    MAIL,
    MAPS,
    MONDAY,
    NOW,
    TARGETS,
    breakers_hold,
    campaign_run,
    denied,
    half_open,
    hold,
    open_breaker,
    situation,
    takeover,
)


def kinds(answer) -> list[ObstacleKind]:
    return [obstacle.kind for obstacle in answer.obstacles]


@given(
    held=st.lists(st.sampled_from(TARGETS), unique=True, max_size=5),
    asked=st.sampled_from(TARGETS),
)
def test_a_thing_is_paused_if_and_only_if_a_live_hold_covers_it(held, asked):
    seen = situation([hold(target, id=n) for n, target in enumerate(held)])
    covers = {
        EVERYTHING: {EVERYTHING},
        MAIL: {EVERYTHING, MAIL},
        MAPS: {EVERYTHING, MAPS},
        LETTERS: {EVERYTHING, MAIL, LETTERS},
        MONDAY: {EVERYTHING, MAIL, LETTERS, MONDAY},
    }
    answer = why(seen, asked)
    assert {reason.hold.target for reason in answer.reasons} == covers[asked] & set(held)
    assert answer.paused == bool(covers[asked] & set(held))


def test_a_hold_whose_time_is_over_covers_nothing():
    over = hold(LETTERS, until=NOW - timedelta(seconds=1))
    assert not why(situation([over]), LETTERS).paused


def test_of_an_open_breaker_the_answer_says_when_it_is_probed():
    seen = situation([breakers_hold(MAIL)], breakers=[open_breaker("mail", 20)])
    answer = why(seen, LETTERS)
    assert answer.retry_at == NOW + timedelta(seconds=20)
    assert answer.summary == "paused: mail is open (503 x5); resumes automatically"


def test_the_latest_of_several_ends_counts_and_a_hold_without_end_has_none():
    seen = situation(
        [breakers_hold(MAIL), hold(LETTERS, until=NOW + timedelta(hours=2))],
        breakers=[open_breaker("mail", 20)],
    )
    assert why(seen, LETTERS).retry_at == NOW + timedelta(hours=2)
    seen = situation([breakers_hold(MAIL), hold(LETTERS)], breakers=[open_breaker("mail", 20)])
    assert why(seen, LETTERS).retry_at is None


def test_a_service_that_refuses_this_client_has_no_next_probe_and_says_what_to_do():
    answer = why(situation([breakers_hold(MAIL)], breakers=[denied("mail")]), LETTERS)
    assert (answer.retry_at, answer.reasons[0].retry_at) == (None, None)
    assert answer.summary.startswith("paused: mail refuses this client (503 x5)")
    assert answer.summary.endswith("resumes when repaired ('tidegate services repaired mail')")


def test_a_half_open_service_is_being_tried():
    seen = situation([breakers_hold(MAIL)], breakers=[half_open("mail")], trials={"mail": 1})
    answer = why(seen, LETTERS)
    assert (answer.reasons[0].being_tried, answer.retry_at) == (True, None)
    assert answer.summary == "paused: mail is half open (503 x5); resumes when trial calls succeed"
    assert kinds(answer) == [ObstacleKind.CANARY]
    assert "1 trial call in flight" in answer.obstacles[0].text


def test_a_service_is_being_probed_only_while_a_trial_call_is_in_flight(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    for trials, says in ({}, "once a trial call succeeds"), ({"mail": 1}, "being probed now"):
        seen = situation([breakers_hold(MAIL)], breakers=[half_open("mail")], trials=trials)
        show_answer(why(seen, MAIL), seen)
        assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (situation([breakers_hold(MAIL)], breakers=[denied("mail")]), "service mail (denied) is"),
        (
            situation([breakers_hold(MAIL)], breakers=[half_open("mail")]),
            "service mail (half open) is",
        ),
        (
            situation([breakers_hold(MAIL)], breakers=[open_breaker("mail")]),
            "service mail (open) is",
        ),
        (situation([hold(MAIL)]), "service mail (closed) is paused: service mail"),
        (situation(), "service mail (closed) is not paused"),
    ],
)
def test_the_state_of_a_service_is_named_as_in_the_status(
    capsys: pytest.CaptureFixture[str], seen: Situation, line: str
):
    show_answer(why(seen, MAIL), seen)
    assert capsys.readouterr().out.startswith(line)


def test_what_is_not_held_may_still_be_on_its_way_back():
    ramping = takeover(TakeoverKind.POOL, "mail", set_to="2", former="8")
    answer = why(situation(takeovers=[ramping]), LETTERS)
    assert kinds(answer) == [ObstacleKind.RAMP]
    assert answer.summary == (
        "not paused, but pool mail is ramping up: its limit is 2, on the way to 8"
    )
    assert kinds(why(situation(takeovers=[ramping]), MAPS)) == []


@pytest.mark.parametrize(
    ("status", "how"),
    [(RunStatus.FAILED, "it failed"), (RunStatus.CANCELLED, "it was cancelled")],
)
def test_a_run_that_has_ended_waits_for_nothing_and_says_how_to_start_it_again(status, how):
    ramping = takeover(TakeoverKind.POOL, "mail", set_to="2", former="8")
    seen = situation(takeovers=[ramping])
    answer = why(seen, MONDAY, campaign_run(status))
    assert kinds(answer) == [ObstacleKind.ENDED]
    assert answer.summary == (
        f"over: {how}; start it again with 'tidegate start letters/monday', or re-execute it in "
        "Dagster"
    )
    assert verdict(answer).answer.obstacles == ()
    completed = why(seen, MONDAY, campaign_run(RunStatus.COMPLETED))
    assert completed.summary == "not paused"


def test_a_pool_that_is_held_is_not_on_its_way_back():
    stopped = takeover(TakeoverKind.POOL, "mail", set_to="0")
    seen = situation([hold(MAIL)], takeovers=[stopped])
    assert kinds(why(seen, LETTERS)) == []


def test_a_pool_that_a_person_changed_and_a_schedule_that_is_not_back_are_told():
    seen = situation(
        takeovers=[
            takeover(TakeoverKind.POOL, "mail", left_at=NOW),
            takeover(TakeoverKind.SCHEDULE, "id-daily", label="daily", campaign="letters"),
        ]
    )
    expected = {ObstacleKind.LEFT_TO_OPERATOR, ObstacleKind.TRIGGER_STOPPED}
    assert set(kinds(why(seen, LETTERS))) == expected


def test_a_stale_gate_and_the_kill_switch_are_told_with_every_answer():
    seen = situation(silent=["pause"], enabled=False)
    for target in TARGETS:
        answer = why(seen, target)
        assert kinds(answer) == [ObstacleKind.KILL_SWITCH, ObstacleKind.GATE_STALE]
        # The guard in their processes is no part of the gate.
        assert "runs in progress still pause" in answer.obstacles[1].text


def test_a_paused_run_that_nothing_holds_resumes_with_a_tick():
    answer = why(situation(), MONDAY, campaign_run(RunStatus.PAUSED, reason="Paused at 3/10"))
    assert kinds(answer) == [ObstacleKind.NEXT_TICK]
    assert answer.last_word == "Paused at 3/10"
    assert answer.summary.endswith("once Dagster has ended its last run")


def test_of_a_run_in_a_list_the_reason_is_that_of_now_and_not_of_when_it_paused():
    recorded = "Paused at 3/10: mail is open (503 x5); resumes automatically"
    paused = campaign_run(RunStatus.PAUSED, reason=recorded)
    held = situation([hold(LETTERS)])
    assert why_waiting(held, paused) == (
        "Paused at 3/10: campaign letters is held by ana (new copy); resumes when released"
    )
    assert (why_waiting(situation(), paused) or "").startswith("Paused at 3/10: its next attempt")
    queued = campaign_run(RunStatus.PENDING, reason="Dagster run 1 is QUEUED")
    assert why_waiting(held, queued) == (
        "campaign letters is held by ana (new copy); resumes when released"
    )
    assert why_waiting(situation(), queued) == "Dagster run 1 is QUEUED"
    failed = campaign_run(RunStatus.FAILED, reason="boom")
    assert why_waiting(held, failed) == "boom"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("mail", TargetKind.SERVICE),
        ("letters", TargetKind.CAMPAIGN),
        ("letters/monday", TargetKind.CAMPAIGN_RUN),
        ("letters/2026/03", TargetKind.CAMPAIGN_RUN),
        ("everything", TargetKind.EVERYTHING),
    ],
)
def test_a_name_is_found_whatever_it_names(name, kind):
    assert find(situation(), name, {}).kind is kind


def test_a_misspelt_name_gets_the_right_one_suggested():
    with pytest.raises(UnknownNameError, match="did you mean letters"):
        find(situation(), "leters", {})
    with pytest.raises(UnknownNameError, match="did you mean letters"):
        find(situation(), "leters/monday", {})
    with pytest.raises(UnknownNameError, match="known: guide, letters"):
        find(situation(), "zzz", {})


def test_the_name_of_an_asset_gets_what_to_ask_for_instead():
    spec = CampaignSpec(
        "shop:assets",
        "here",
        "none",
        ops={"welcome": "mail", "places": "maps"},
        assets={"welcome": frozenset({"mail/welcome"}), "places": frozenset({"places"})},
    )
    with pytest.raises(UnknownNameError) as error:
        find(situation(specs=[spec]), "mail/welcome", {})
    assert str(error.value) == (
        "'mail/welcome' is an asset: name what it needs (mail), or a run of it, which 'tidegate "
        "runs' lists (shop:assets/...)"
    )


def test_a_name_of_two_things_is_not_guessed():
    seen = situation([hold(LETTERS), hold(MAIL.__class__(TargetKind.SERVICE, "letters"), id=2)])
    with pytest.raises(UnknownNameError, match="a service and a campaign: name the kind"):
        find(seen, "letters", {})
    assert find(seen, "letters", {}, TargetKind.CAMPAIGN) == LETTERS


@pytest.mark.parametrize(
    ("held", "status", "refusal"),
    [
        ([], None, None),
        ([], RunStatus.COMPLETED, None),
        ([], RunStatus.FAILED, None),
        ([], RunStatus.PENDING, Refusal.UNDER_WAY),
        ([], RunStatus.PROCESSING, Refusal.UNDER_WAY),
        ([], RunStatus.PAUSED, Refusal.UNDER_WAY),
        ([MAIL], None, Refusal.HELD),
        ([MAIL], RunStatus.PAUSED, Refusal.HELD),
        ([MAIL], RunStatus.PENDING, Refusal.UNDER_WAY),
        ([MAPS], None, None),
    ],
)
def test_what_may_be_started(held, status, refusal):
    seen = situation([hold(target) for target in held])
    run = None if status is None else campaign_run(status)
    judged = verdict(why(seen, MONDAY, run))
    assert judged.refusal is refusal
    if refusal is Refusal.HELD:
        assert "service mail is held by ana (new copy)" in judged.text


def test_a_running_campaign_without_partitions_may_be_started_again():
    seen = situation(counts={"letters": {RunStatus.PROCESSING: 1}})
    assert verdict(why(seen, LETTERS)).refusal is None


def test_of_a_paused_run_whose_campaign_no_gate_has_the_answer_is_that_nothing_resumes_it():
    """Such as after its job was renamed."""
    renamed = campaign_run(RunStatus.PAUSED, "bulletins/monday")
    answer = why(situation(), Target(TargetKind.CAMPAIGN_RUN, renamed.name), renamed)
    assert kinds(answer) == [ObstacleKind.NO_GATE]


ASSETS = CampaignSpec(
    "shop:assets",
    "here",
    "none",
    ops={"newsletter": "mail", "places": "maps"},
    assets={"newsletter": frozenset({"newsletter"}), "places": frozenset({"places"})},
)


@pytest.mark.parametrize(("asset", "is_paused"), [("newsletter", True), ("places", False)])
def test_a_run_of_some_assets_waits_for_what_these_assets_need(asset: str, is_paused: bool):
    run = replace(campaign_run(RunStatus.PAUSED, "shop:assets/d1"), assets=(asset,))
    seen = situation([breakers_hold(MAIL)], specs=[ASSETS])
    assert why(seen, Target(TargetKind.CAMPAIGN_RUN, run.name), run).paused == is_paused


def test_the_assets_of_a_code_location_are_not_paused_by_a_service_that_some_of_them_need():
    seen = situation(
        [breakers_hold(MAIL)], specs=[ASSETS], counts={ASSETS.name: {RunStatus.PROCESSING: 1}}
    )
    assert seen.campaigns[ASSETS.name].status is CampaignStatus.RUNNING
