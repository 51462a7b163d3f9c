"""What a hold or its release does, as a dry run tells it."""

from dagster_tidegate.breaker.state_machine import BreakerStatus
from dagster_tidegate.control.effects import effects, if_held, if_released, in_words
from dagster_tidegate.holds import EVERYTHING, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store.campaigns import CampaignSpec
from tests.unit.situations import LETTERS, MAIL, MONDAY, NOW, campaign_run, hold, situation


def test_a_hold_on_a_service_pauses_the_campaigns_that_need_it_and_no_others():
    found = effects(situation(), situation([hold(MAIL)]), MAIL)
    assert {effect.campaign for effect in found} == {"letters", "guide"}
    assert all(effect.changes and effect.held_after and effect.queue_waits for effect in found)
    assert {effect.campaign: effect.triggers for effect in found}["letters"] == ("daily",)


def test_a_release_frees_only_what_nothing_else_holds():
    both = situation([hold(EVERYTHING), hold(LETTERS, id=2)])
    found = {e.campaign: e for e in effects(both, situation([hold(LETTERS, id=2)]), EVERYTHING)}
    assert found["guide"].changes
    assert not found["letters"].changes
    assert [h.target for h in found["letters"].still_held_by] == [LETTERS]


def test_a_hold_on_what_is_paused_already_says_by_what_and_that_it_waits_for_both():
    down = situation([hold(MAIL, source=HoldSource.BREAKER, reason="503 x5")])
    found = {each.campaign: each for each in if_held(down, MAIL)}
    assert in_words(found["letters"], MAIL, {}) == (
        "campaign letters is paused already: mail is open (503 x5); it will also wait for this hold"
    )
    found = {each.campaign: each for each in if_released(down, MAIL)}
    assert in_words(found["letters"], MAIL, {}) == (
        "campaign letters stays paused: mail is open (503 x5); resumes automatically"
    )


def test_a_campaign_whose_queue_a_hold_can_t_reach_is_told_apart():
    guide = LETTERS.__class__(LETTERS.kind, "guide")
    [of_guide] = effects(situation(), situation([hold(guide)]), guide)
    [of_letters] = effects(situation(), situation([hold(LETTERS)]), LETTERS)
    assert (of_guide.queue_waits, of_letters.queue_waits) == (False, True)


def test_a_part_of_a_service_concerns_only_the_campaigns_that_need_it_by_name():
    whole, part = (Target(TargetKind.SERVICE, name) for name in ("mail", "mail/batch"))
    shapes = [
        CampaignSpec("letters", "here", "none", ops={"send": "mail"}),
        CampaignSpec("leaflets", "here", "none", ops={"send": "mail/batch"}),
        CampaignSpec("cards", "here", "none", ops={"send": "mail/single@cards"}),
    ]
    parts = [BreakerStatus(f"mail/{part}", changed_at=NOW) for part in ("batch", "single")]
    paused = {}
    for target in (whole, part):
        changes = effects(
            situation(specs=shapes, breakers=parts),
            situation([hold(target)], specs=shapes, breakers=parts),
            target,
        )
        paused[target] = {effect.campaign for effect in changes if effect.changes}
    assert paused == {whole: {"letters", "leaflets", "cards"}, part: {"leaflets"}}


def test_a_hold_on_one_run_is_about_that_run():
    run = campaign_run(RunStatus.PROCESSING)
    [effect] = effects(situation(), situation([hold(MONDAY)]), MONDAY, run)
    assert (effect.run, effect.changes, effect.queue_waits) == ("letters/monday", True, False)
    assert effect.runs == {RunStatus.PROCESSING: 1}
