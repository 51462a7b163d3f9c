"""The plan: which changes the gate makes, given what it observed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dagster_tidegate.dagster_api.triggers import TriggerState
from dagster_tidegate.gate.plan import (
    MAX_ENDING,
    Candidates,
    End,
    Leave,
    Observation,
    ServiceView,
    Write,
    giving_back,
    plan,
)
from dagster_tidegate.holds import EVERYTHING, Hold, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.takeovers import Take, Takeover, TakeoverKind, TakeoverOutcome
from tests.unit.situations import campaign_run

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SCHEDULE = Trigger(TakeoverKind.SCHEDULE, "nightly", "selector", runs_by_default=False)
SHAPE = CampaignSpec(
    "letters", "here", "none", ops={"send": "mail", "ask": "maps+mail"}, triggers=(SCHEDULE,)
)


def hold(
    target: Target = Target(TargetKind.SERVICE, "mail"),  # noqa: B008 -- it can't be changed
    source: HoldSource = HoldSource.BREAKER,
) -> Hold:
    return Hold(1, target, source, "503 x5", "breaker", NOW)


def taken(former: str = "unset", set_to: str = "0", **changes: object) -> Takeover:
    pool = Takeover(
        id=1,
        kind=TakeoverKind.POOL,
        name="mail",
        label="mail",
        campaign=None,
        location="here",
        former=former,
        set_from=former,
        set_to=set_to,
        pending=False,
        version=2,
        taken_at=NOW - timedelta(hours=1),
        running_since=None,
        ramp_step_at=None,
        left_at=None,
    )
    return replace(pool, **changes)  # type: ignore[arg-type] -- a test's own fields


def taken_schedule(former: str = "RUNNING", set_to: str = "STOPPED", **changes: object) -> Takeover:
    return taken(
        former,
        set_to,
        kind=TakeoverKind.SCHEDULE,
        name="selector",
        label="nightly",
        campaign="letters",
        **changes,
    )


def observed(*takeovers: Takeover, **changes: object) -> Observation:
    services = {"mail": ServiceView(ramp_interval_s=30), "maps": ServiceView(ramp_interval_s=0)}
    default = Observation(
        now=NOW, location="here", services=services, campaigns=[SHAPE], takeovers=takeovers
    )
    return replace(default, **changes)  # type: ignore[arg-type] -- a test's own fields


def test_nothing_held_and_nothing_taken_over_plans_nothing():
    assert plan(observed(pools={"mail": "3"}, triggers={"selector": TriggerState("RUNNING")})) == []


def test_a_hold_on_a_service_takes_every_pool_that_names_it():
    actions = plan(
        observed(holds=[hold()], pools={"mail": "3", "mail@digest": "default", "x": "1"})
    )
    assert {(a.name, a.former, a.set_to) for a in actions if isinstance(a, Take)} == {
        ("mail", "3", "0"),
        ("mail@digest", "default", "0"),
        ("maps+mail", "unset", "0"),
    }


def test_a_hold_on_a_service_takes_the_pools_of_its_parts_and_one_on_a_part_no_others():
    pools = {"mail": "1", "mail/batch": "2", "mail/single@letters": "3"}
    parts = {name: ServiceView(30) for name in ("mail", "mail/batch", "mail/single")}
    taken = {}
    for name in ("mail", "mail/batch"):
        held = hold(Target(TargetKind.SERVICE, name))
        actions = plan(observed(holds=[held], pools=pools, services=parts, campaigns=[]))
        taken[name] = {action.name for action in actions if isinstance(action, Take)}
    assert taken == {"mail": pools.keys(), "mail/batch": {"mail/batch"}}


EITHER = CampaignSpec("letters", "here", "none", ops={"send": "mail|maps"}, triggers=(SCHEDULE,))
MAPS = Target(TargetKind.SERVICE, "maps")


def test_an_op_that_needs_one_of_two_services_is_held_once_both_are():
    triggers = {"selector": TriggerState("RUNNING")}
    one = observed(holds=[hold()], campaigns=[EITHER], triggers=triggers)
    assert [action.name for action in plan(one) if isinstance(action, Take)] == ["mail"]
    both = replace(one, holds=[hold(), replace(hold(MAPS), id=2)])
    taken = [action.name for action in plan(both) if isinstance(action, Take)]
    assert taken == ["mail", "mail|maps", "maps", "selector"]


def test_a_held_chain_is_given_back_when_the_first_of_its_services_is_free_and_tried_by_a_canary():
    pool = taken(name="mail|maps", label="mail|maps")
    both, pools = [hold(), replace(hold(MAPS), id=2)], {"mail|maps": "0"}
    held = observed(pool, holds=both, campaigns=[EITHER], pools=pools)
    tried = replace(held, canaries={"maps"})
    assert [action.set_to for action in plan(tried) if isinstance(action, Write)] == ["1"]
    free = replace(held, holds=[hold()])
    assert [action.set_to for action in plan(free) if isinstance(action, Write)] == ["1"]


ADOPTED = {"api_pool": frozenset({"mail"})}


def test_a_hold_takes_a_pool_that_stands_for_the_service_under_another_name():
    actions = plan(
        observed(holds=[hold()], campaigns=[], adopted=ADOPTED, pools={"api_pool": "3", "x": "1"})
    )
    taken = {a.name: (a.former, a.set_to) for a in actions if isinstance(a, Take)}
    assert taken == {"api_pool": ("3", "0"), "mail": ("unset", "0")}


def test_an_adopted_pool_ramps_up_like_one_with_the_name_of_the_service():
    """Also for a gate whose own campaigns don't use it."""
    pool = taken("6", name="api_pool", label="api_pool")
    [action] = plan(observed(pool, adopted=ADOPTED, campaigns=[], pools={"api_pool": "0"}))
    assert isinstance(action, Write)
    assert action.set_to == "1"
    closed = {"api_pool": "0", "mail": "0"}
    assert plan(observed(pool, holds=[hold()], adopted=ADOPTED, campaigns=[], pools=closed)) == []


def test_a_sensor_of_several_campaigns_is_stopped_while_all_of_them_are_held():
    sensor = Trigger(TakeoverKind.SENSOR, "new_files", "sensor", runs_by_default=True)
    letters = CampaignSpec("letters", "here", "none", ops={"a": "mail"}, triggers=(sensor,))
    trips = CampaignSpec("trips", "here", "none", ops={"a": "maps"}, triggers=(sensor,))
    mail, maps = hold(), hold(Target(TargetKind.SERVICE, "maps"))
    stopped = {}
    for holds in ([mail], [mail, maps]):
        actions = plan(observed(holds=holds, campaigns=[letters, trips]))
        kinds = {action.kind for action in actions if isinstance(action, Take)}
        stopped[len(holds)] = TakeoverKind.SENSOR in kinds
    assert stopped == {1: False, 2: True}


def test_a_pool_that_its_operator_closed_is_not_taken():
    assert plan(observed(holds=[hold()], pools={"mail": "0", "maps+mail": "0"})) == []


def test_a_hold_on_everything_leaves_pools_alone_that_are_not_ours():
    spec = CampaignSpec("letters", "here", "none", ops={"a": "mail", "b": "memory"})
    actions = plan(observed(holds=[hold(EVERYTHING)], campaigns=[spec], pools={"disk": "2"}))
    assert [action.name for action in actions if isinstance(action, Take)] == ["mail"]


def test_a_hold_on_a_campaign_stops_its_schedule():
    actions = plan(
        observed(
            holds=[hold(Target(TargetKind.CAMPAIGN, "letters"), HoldSource.OPERATOR)],
            triggers={"selector": TriggerState("RUNNING", NOW)},
        )
    )
    [action] = actions
    assert isinstance(action, Take)
    assert (action.label, action.former, action.set_to) == ("nightly", "RUNNING", "STOPPED")
    assert action.running_since == NOW


@pytest.mark.parametrize(
    ("status", "runs_by_default", "taken_over"),
    [
        ("RUNNING", False, True),
        ("STOPPED", True, False),
        ("DECLARED_IN_CODE", True, True),
        ("DECLARED_IN_CODE", False, False),
        (None, True, True),
        (None, False, False),
    ],
)
def test_only_a_schedule_that_runs_is_stopped(
    status: str | None, runs_by_default: bool, taken_over: bool
):
    spec = replace(
        SHAPE, ops={"send": "mail"}, triggers=(replace(SCHEDULE, runs_by_default=runs_by_default),)
    )
    actions = plan(
        observed(
            holds=[hold()],
            campaigns=[spec],
            pools={"mail": "0"},
            triggers={} if status is None else {"selector": TriggerState(status)},
        )
    )
    assert bool(actions) is taken_over


# --- the way back -------------------------------------------------------------------------------


def limits(ceiling: str, interval_s: float = 30, failures: tuple[int, ...] = ()) -> list[str]:
    """The limits that a pool has, one after the other, from release to the end."""
    takeover, value, now, found = taken(ceiling), "0", NOW, []
    failed: datetime | None = None
    for step in range(60):
        if step in failures:
            failed = now - timedelta(seconds=1)
        services = {"mail": ServiceView(interval_s, failed)}
        actions = plan(observed(takeover, now=now, services=services, pools={"mail": value}))
        for action in actions:
            if isinstance(action, End):
                assert action.outcome is TakeoverOutcome.RESTORED
                return found
            assert isinstance(action, Write)
            if action.set_to != value:
                found.append(action.set_to)
            value = action.set_to
            takeover = replace(takeover, set_to=value, ramp_step_at=action.ramp_step_at)
        now += timedelta(seconds=10)
    raise AssertionError(f"no end: {found}")


def test_a_pool_ramps_up_to_exactly_what_it_was():
    assert limits("6") == ["1", "2", "4", "6"]
    assert limits("1") == ["1"]
    assert limits("unset") == ["1", "2", "4", "8", "16", "unset"]


def test_a_failure_during_the_ramp_halves_it():
    assert limits("6", failures=(4,)) == ["1", "2", "1", "2", "4", "6"]


def test_without_an_interval_the_pool_is_restored_at_once():
    assert limits("6", interval_s=0) == ["6"]


def recovered(ago_s: int, *, throttled: bool) -> ServiceView:
    return ServiceView(30, NOW, NOW - timedelta(seconds=ago_s), throttled)


def test_a_service_that_throttled_gets_its_pool_back_at_once():
    """It was well, and said when it may be called again: there is nothing to try carefully."""
    services = {"mail": recovered(5, throttled=True)}
    # The canary may be in the pool.
    for value in ("0", "1"):
        pool = taken("6", value, taken_at=NOW - timedelta(minutes=9))
        [action] = plan(observed(pool, services=services, pools={"mail": value}))
        assert isinstance(action, Write)
        assert (action.set_to, action.ramp_step_at) == ("6", None)


@pytest.mark.parametrize(
    "services",
    [
        {"mail": recovered(5, throttled=False)},
        {"mail": recovered(7200, throttled=True)},  # before this pool was taken, for another reason
        {"mail": recovered(5, throttled=True)},  # after an hour, as at the reset of a daily quota
        {"mail": recovered(5, throttled=True), "maps": recovered(9, throttled=False)},
    ],
)
def test_other_holds_end_in_a_ramp(services: dict[str, ServiceView]):
    pool = taken("6", name="maps+mail", label="maps+mail")
    [action] = plan(observed(pool, services=services, pools={"maps+mail": "0"}))
    assert isinstance(action, Write)
    assert action.set_to == "1"


def test_the_ramp_waits_for_the_interval():
    takeover = taken("6", "1", ramp_step_at=NOW - timedelta(seconds=29))
    assert plan(observed(takeover, pools={"mail": "1"})) == []


def test_a_new_hold_during_the_ramp_closes_the_pool():
    takeover = taken("6", "2", ramp_step_at=NOW)
    [action] = [
        a
        for a in plan(observed(takeover, holds=[hold()], pools={"mail": "2", "maps+mail": "0"}))
        if isinstance(a, Write)
    ]
    assert (action.set_to, action.ramp_step_at, action.tightens) == ("0", None, True)


def test_a_gate_that_does_not_know_the_policies_leaves_the_ramp_to_one_that_does():
    stranger = observed(taken("6"), location="there", services={"mail": ServiceView(None)})
    assert plan(replace(stranger, pools={"mail": "0"})) == []


def test_a_pool_taken_outside_any_location_is_restored_by_any_of_them():
    state = observed(
        taken("6", location=""), services={"mail": ServiceView(None)}, location="there"
    )
    [first] = plan(replace(state, pools={"mail": "0"}))
    assert isinstance(first, Write)
    assert first.set_to == "1"
    at_the_top = taken("6", "4", location="", ramp_step_at=NOW - timedelta(seconds=30))
    [last] = plan(replace(state, takeovers=[at_the_top], pools={"mail": "4"}))
    assert isinstance(last, Write)
    assert last.set_to == "6"


def test_a_schedule_is_restored_by_its_own_gate():
    stopped = {"selector": TriggerState("STOPPED")}
    [action] = plan(observed(taken_schedule("DECLARED_IN_CODE"), triggers=stopped))
    assert isinstance(action, Write)
    assert (action.set_to, action.tightens) == ("DECLARED_IN_CODE", False)
    assert plan(observed(taken_schedule(), triggers=stopped, location="there")) == []


# --- people -------------------------------------------------------------------------------------


def test_a_limit_that_a_person_set_is_left_alone():
    [action] = [
        a
        for a in plan(observed(taken("3"), holds=[hold()], pools={"mail": "5", "maps+mail": "0"}))
        if not isinstance(a, Take)
    ]
    assert action == Leave(taken("3"), "5")
    left = taken("3", left_at=NOW)
    assert plan(observed(left, holds=[hold()], pools={"mail": "5", "maps+mail": "0"})) == []
    assert plan(observed(left, pools={"mail": "5"})) == [
        End(left, TakeoverOutcome.LEFT_TO_OPERATOR)
    ]


def test_a_schedule_that_a_person_started_is_left_alone():
    started = {"selector": TriggerState("RUNNING", NOW)}
    takeover = taken_schedule()
    assert plan(observed(takeover, triggers=started)) == [Leave(takeover, "RUNNING")]


@pytest.mark.parametrize("kind", [TakeoverKind.SCHEDULE, TakeoverKind.SENSOR])
@pytest.mark.parametrize("since", [NOW - timedelta(hours=5), None])
def test_a_row_that_the_daemon_wrote_back_late_is_not_a_person(
    kind: TakeoverKind, since: datetime | None
):
    late = {"selector": TriggerState("RUNNING", since)}
    takeover = replace(taken_schedule(), kind=kind, running_since=since)
    holds = [hold(Target(TargetKind.CAMPAIGN, "letters"), HoldSource.OPERATOR)]
    [action] = plan(observed(takeover, holds=holds, triggers=late))
    assert isinstance(action, Write)
    assert (action.value, action.set_to) == ("RUNNING", "STOPPED")


def test_a_row_that_dagster_deleted_is_written_again():
    [action] = plan(observed(taken_schedule(), triggers={}))
    assert isinstance(action, Write)
    assert (action.value, action.set_to) == ("unset", "RUNNING")


def test_a_pool_that_dagster_made_follow_the_default_is_not_a_persons():
    pending = taken("unset", "0", pending=True)
    [action] = [
        a
        for a in plan(
            observed(
                pending,
                holds=[hold()],
                pools={"mail": "default", "maps+mail": "0"},
                default_limit=4,
            )
        )
        if isinstance(a, Write)
    ]
    assert (action.value, action.set_to) == ("default", "0")


@pytest.mark.parametrize("arrived", [True, False])
def test_whether_a_killed_gates_write_arrived_is_found_out(arrived: bool):
    pending = taken("3", "0", pending=True)
    pools = {"mail": "0" if arrived else "3", "maps+mail": "0"}
    [action] = plan(observed(pending, holds=[hold()], pools=pools))
    assert isinstance(action, Write)
    assert (action.value, action.set_to) == ("0" if arrived else "3", "0")


# --- half open ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_progress", "former", "limit"), [(0, "unset", "1"), (4, "unset", "5"), (4, "3", "3")]
)
def test_a_waiting_canary_gets_a_slot_in_addition_to_the_launched_runs(
    in_progress: int, former: str, limit: str
):
    [action] = [
        a
        for a in plan(
            observed(
                taken(former),
                holds=[hold()],
                canaries={"mail"},
                in_progress={"mail": in_progress},
                pools={"mail": "0", "maps+mail": "0"},
            )
        )
        if isinstance(a, Write)
    ]
    assert (action.set_to, action.tightens) == (limit, False)


def test_a_canary_gets_no_slot_while_something_else_is_held():
    holds = [hold(), hold(EVERYTHING, HoldSource.OPERATOR)]
    pools = {"mail": "0", "maps+mail": "0"}
    assert not plan(observed(taken(), holds=holds, canaries={"mail"}, pools=pools))


def test_a_canary_of_two_services_gets_a_slot_once_both_are_half_open():
    holds = [hold(), hold(Target(TargetKind.SERVICE, "maps"))]
    state = observed(
        taken(name="maps+mail", label="maps+mail"), holds=holds, pools={"maps+mail": "0"}
    )

    def opened(canaries: set[str]) -> list[str]:
        actions = plan(replace(state, canaries=canaries))
        return [action.set_to for action in actions if isinstance(action, Write)]

    assert opened({"mail"}) == opened({"maps"}) == []
    assert opened({"mail", "maps"}) == ["1"]


def test_when_the_canary_has_left_the_queue_the_pool_is_closed_again():
    pools = {"mail": "1", "maps+mail": "0"}
    [action] = plan(observed(taken(set_to="1"), holds=[hold()], pools=pools))
    assert isinstance(action, Write)
    assert (action.set_to, action.tightens) == ("0", True)


def test_schedules_run_if_no_run_could_try_a_half_open_service():
    pools = {"mail": "0", "maps+mail": "0"}
    running = {"selector": TriggerState("RUNNING")}
    starving = {"mail": Candidates()}
    state = observed(holds=[hold()], pools=pools, triggers=running)
    assert plan(state)
    assert plan(replace(state, candidates=starving)) == []


def test_schedules_stay_stopped_while_dagster_ends_the_run_that_will_try_a_half_open_service():
    pools = {"mail": "0", "maps+mail": "0"}
    stopped = taken_schedule(set_to="STOPPED")

    def restored(paused_for: timedelta) -> bool:
        ending = replace(campaign_run(RunStatus.PAUSED), paused_at=NOW - paused_for)
        state = observed(
            stopped,
            holds=[hold()],
            pools=pools,
            triggers={"selector": TriggerState("STOPPED")},
            candidates={"mail": Candidates(ending=[ending])},
        )
        return any(
            isinstance(action, Write) and action.takeover == stopped for action in plan(state)
        )

    assert not restored(timedelta(minutes=3))
    assert restored(MAX_ENDING)


def test_a_schedule_that_a_person_stopped_after_it_was_given_back_stays_stopped():
    takeover = taken_schedule(set_to="RUNNING")
    observation = observed(takeover, triggers={"selector": TriggerState("STOPPED")})
    assert plan(observation) == giving_back(observation) == [Leave(takeover, "STOPPED")]
