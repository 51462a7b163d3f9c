"""Each thing that can be wrong with a deployment is found, and a healthy one has no finding."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli.status import warnings
from dagster_tidegate.dagster_api.deployment import Daemon, InstanceSettings
from dagster_tidegate.dagster_api.locations import LocationCode, OpCode, SensorCode
from dagster_tidegate.doctor.checks import CODES, Severity, diagnose, unchecked
from dagster_tidegate.doctor.facts import Facts, StoreFacts, Version
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.takeovers import TakeoverKind
from dagster_tidegate.text import utc
from tests.unit.situations import (
    NOW,
    SHAPES,
    breakers_hold,
    denied,
    open_breaker,
    situation,
    takeover,
)

DOCS = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
SETTINGS = InstanceSettings("QueuedRunCoordinator", True, "run", 0, True, 10)
SENSORS = [SensorCode(f"tidegate_{p}", p, True, None) for p in ("breaker", "pause", "resume")]


def op(name: str, pool: str | None, *resources: str) -> OpCode:
    return OpCode(name, pool, frozenset(resources))


HERE = LocationCode(
    name="here",
    dagster_version="1.13.27",
    sensors=SENSORS,
    jobs={
        "letters": [op("begin", "@letters"), op("send", "mail", "breakers", "mail")],
        "guide": [op("post", "mail+maps@guide", "breakers")],
        "tour": [op("look_up", "maps@tour", "breakers")],
        "somebody_elses": [op("load", "their_pool", "warehouse"), op("tidy", None)],
    },
    reaches_breakers=frozenset({"breakers", "mail"}),
    policies={name: ServicePolicy(name=name) for name in ("mail", "maps")},
)
STORE = StoreFacts(
    "sqlite:////home/tidegate.db", situation=situation(),
    called=frozenset({"mail"}),
)  # fmt: skip
WELL = Facts(
    now=NOW,
    python=Version("3.11.7", ">=3.11,<3.14"),
    dagster=Version("1.13.27", ">=1.13.26,<2"),
    enabled=True,
    store=STORE,
    settings=SETTINGS,
    daemons=[Daemon("SENSOR", True, NOW, None)],
    locations=[HERE],
)


def with_settings(**values: object) -> Facts:
    return replace(WELL, settings=replace(SETTINGS, **values))


def with_location(**values: object) -> Facts:
    return replace(WELL, locations=[replace(HERE, **values)])


def with_job(name: str, *ops: OpCode) -> Facts:
    return with_location(jobs={**HERE.jobs, name: ops})


def with_store(**values: object) -> Facts:
    return replace(WELL, store=replace(STORE, **values))


def sensors(**values: object) -> Sequence[SensorCode]:
    return [SENSORS[0], SENSORS[1], replace(SENSORS[2], **values)]


GONE = CampaignSpec("flood", "there", "none", ops={"pump": "maps"})
FAX = Target(TargetKind.SERVICE, "fax")
OTHER_MAIL = ServicePolicy(name="mail", consecutive_failures=2)
ILL = {
    "python_version": replace(WELL, python=Version("3.10.1", ">=3.11,<3.14")),
    "dagster_version": with_location(dagster_version="1.12.0"),
    "kill_switch": replace(WELL, enabled=False),
    "instance_unreadable": replace(WELL, settings=None, instance_error="no DAGSTER_HOME"),
    "run_coordinator": with_settings(run_coordinator="DefaultRunCoordinator", queues=False),
    "pool_granularity": with_settings(pool_granularity="op"),
    "run_buffer": with_settings(run_buffer=1),
    "run_monitoring": with_settings(run_monitoring=False),
    "free_slots": with_settings(free_slots_after_s=None),
    "daemon_dead": replace(WELL, daemons=[Daemon("SENSOR", False, None, None)]),
    "daemon_silent": replace(
        WELL, daemons=[Daemon("SENSOR", True, NOW - timedelta(minutes=3), None)]
    ),
    "daemon_failing": replace(WELL, daemons=[Daemon("SENSOR", True, None, "boom")]),
    "workspace_unreadable": replace(WELL, locations=[], workspace_error="no file"),
    "location_broken": replace(WELL, locations=[LocationCode("here", error="a\nSyntaxError: b\n")]),
    "location_gone": with_store(situation=situation(specs=[*SHAPES, GONE])),
    "campaign_gone": with_store(situation=replace(situation(), undefined={"old": 1})),
    "service_gone": with_store(
        situation=situation([breakers_hold(FAX)], breakers=[open_breaker("fax")])
    ),
    "service_denied": with_store(situation=situation(breakers=[denied("mail")])),
    "sensor_missing": with_location(sensors=SENSORS[:2]),
    "sensor_stopped": with_location(sensors=sensors(runs=False)),
    "sensor_failing": with_location(sensors=sensors(error="boom")),
    "store_unreachable": with_store(situation=None, error="connection refused"),
    "store_revision": with_store(
        situation=None, refusal="the store has revision none: run 'tidegate store upgrade'"
    ),
    "store_elsewhere": with_location(store_url="sqlite:////elsewhere/tidegate.db"),
    "gate_stale": with_store(situation=situation(silent=["resume"])),
    "no_campaigns": replace(
        with_location(jobs={}), store=StoreFacts(STORE.url, situation=situation(specs=()))
    ),
    "policies_unreadable": with_location(policy_error="resource breakers: ..."),
    "policies_differ": replace(
        WELL, locations=[HERE, LocationCode("there", policies={"mail": OTHER_MAIL})]
    ),
    "pool_missing": with_job("tour", op("look_up", "maps@tour", "breakers"), op("x", None, "mail")),
    "pool_unknown": with_job("tour", op("look_up", "maps+mial@tour", "breakers")),
    "pool_lacks_service": with_job("tour", op("look_up", "maps@tour", "breakers", "mail")),
    "campaign_pool": with_job("tour", op("look_up", "maps@tuor", "breakers")),
    "not_a_campaign": with_job("new", op("look_up", "maps", "breakers")),
    "calls_without_pool": with_store(called=frozenset({"mail", "fax"})),
}


def test_a_healthy_deployment_has_no_finding():
    assert diagnose(WELL) == []


@pytest.mark.parametrize("code", CODES)
def test_each_illness_has_its_finding_and_no_other(code: str):
    [finding] = diagnose(ILL[code])
    assert finding.code == code
    assert finding.about
    assert finding.what
    assert finding.do


def test_a_finding_says_what_to_do():
    def do(code: str) -> str:
        return diagnose(ILL[code])[0].do

    assert do("store_revision") == "run 'tidegate store upgrade'"
    assert "concurrency: {pools: {granularity: run}}" in do("pool_granularity")
    assert do("sensor_stopped").startswith("dagster sensor start tidegate_resume")
    assert do("pool_missing") == "@dg.op(pool=pool('mail'))"
    assert do("service_denied").endswith("then: tidegate services repaired mail")
    assert "The API key is invalid" in diagnose(ILL["service_denied"])[0].what
    assert "did you mean 'mail'" in diagnose(ILL["pool_unknown"])[0].what
    assert diagnose(ILL["location_broken"])[0].what == "it can't be loaded: SyntaxError: b"


def test_a_gate_without_campaigns_is_told_from_one_that_does_not_tick():
    silent = situation(specs=(), silent=["breaker", "pause", "resume"])
    [finding] = diagnose(with_store(situation=silent, called=frozenset()))
    assert (finding.code, finding.what) == (
        "gate_stale",
        "its gate has not registered its campaigns yet",
    )
    [finding] = diagnose(ILL["no_campaigns"])
    assert "pool='mail'" in finding.do
    [line] = warnings(silent)
    assert "check that the daemon" in line.plain
    [line] = warnings(situation(specs=()))
    assert line.plain.startswith("There is no campaign: no op or asset has the pool of a service.")


def test_one_process_that_is_silent_is_one_finding():
    first, second = NOW - timedelta(minutes=4), NOW - timedelta(minutes=3)
    daemons = [Daemon("SENSOR", True, first, None), Daemon("SCHEDULER", True, second, None)]
    [finding] = diagnose(replace(WELL, daemons=[*daemons, Daemon("ASSET", True, NOW, None)]))
    assert (finding.code, finding.about) == ("daemon_silent", "SENSOR, SCHEDULER")
    assert f"last heartbeat at {utc(second)}" in finding.what
    assert "dagster-daemon run" in finding.do


def test_a_stale_gate_points_to_a_daemon_that_died_just_now():
    [finding] = diagnose(with_store(situation=situation(silent=["breaker", "pause", "resume"])))
    assert finding.code == "gate_stale"
    assert "check that the dagster-daemon process is running" in finding.do
    assert "its log" in finding.do


def test_of_an_error_with_a_stack_trace_behind_it_the_error_is_named():
    trace = '  File "a.py", line 3, in load\n    return load()\n           ^^^^^^\n'
    error = f"Traceback:\n{trace}shop.OrderError: no orders\n\nStack Trace:\n{trace}"
    [finding] = diagnose(replace(WELL, locations=[LocationCode("here", error=error)]))
    assert finding.what == "it can't be loaded: shop.OrderError: no orders"


def test_a_pool_that_looks_like_a_service_is_taken_for_a_typo_where_there_is_a_gate():
    [finding] = diagnose(with_job("tour", op("look_up", "maps@tour"), op("post", "mial")))
    assert (finding.code, "did you mean 'mail'" in finding.what) == ("pool_unknown", True)
    # With the typo, no pool of the job names a service, so that it is no campaign.
    [finding] = diagnose(with_job("new", op("post", "mial")))
    assert (finding.code, finding.about) == ("pool_unknown", "here: new.post")
    assert diagnose(with_job("tour", op("look_up", "maps@tour"), op("x", "warehouse"))) == []


def asset(name: str, pool: str | None, *resources: str) -> OpCode:
    return replace(op(f"op_of_{name}", pool, *resources), assets=(name,))


def test_an_asset_outside_of_jobs_is_named_once_and_as_an_asset():
    jobs = {**HERE.jobs, "here:assets": [asset("rows", None, "breakers")]}
    jobs["nightly"] = jobs["here:assets"]
    [finding] = diagnose(with_location(jobs=jobs))
    assert (finding.code, finding.about) == ("pool_missing", "here: asset rows")
    assert finding.do.startswith("@dg.asset(pool=")
    jobs = {**HERE.jobs, "here:assets": [asset("rows", "mial")]}
    [finding] = diagnose(with_location(jobs=jobs))
    assert (finding.code, "did you mean 'mail'" in finding.what) == ("pool_unknown", True)
    jobs = {**HERE.jobs, "here:assets": [asset("rows", "mail", "breakers")]}
    assert diagnose(with_location(jobs=jobs)) == []


def test_a_pool_of_the_users_own_may_stand_for_the_service():
    jobs = {**HERE.jobs, "here:assets": [asset("rows", "api_pool", "breakers")]}
    found = diagnose(with_location(jobs=jobs))
    assert [finding.code for finding in found] == ["pool_missing", "pool_unknown"]
    for finding in found:
        assert """ServiceConfig(name="<service>", pools=['api_pool'])""" in finding.do


def test_a_location_whose_gate_runs_is_not_to_be_forgotten():
    here = replace(HERE, name="shop.definitions", jobs={})
    [finding] = [
        each
        for each in diagnose(replace(WELL, locations=[here]))
        if each.code == "location_gone" and each.about == "here"
    ]
    assert "its gate is running" in finding.what
    assert "forget" not in finding.do
    assert "location_name: here" in finding.do


def test_what_a_gone_location_left_is_to_be_given_back_first():
    taken = takeover(TakeoverKind.POOL, "mail", location="there")
    facts = with_store(situation=replace(situation(), takeovers=[taken]))
    [finding] = diagnose(facts)
    assert (finding.code, finding.about) == ("location_gone", "there")
    assert "pool mail" in finding.what
    assert "tidegate detach --location there, then tidegate store forget there" in finding.do


def test_errors_come_before_warnings():
    facts = replace(ILL["kill_switch"], settings=replace(SETTINGS, run_buffer=2))
    assert [f.severity for f in diagnose(facts)] == [Severity.ERROR, Severity.WARNING]


def test_a_password_is_never_shown():
    store_url = "postgresql://me:secret@db/tidegate"
    [finding] = diagnose(with_location(store_url=store_url))
    assert "secret" not in str(finding)
    same = StoreFacts("postgresql+psycopg://me:***@db/tidegate", "")
    facts = replace(with_location(store_url=store_url), store=same)
    assert "store_elsewhere" not in [finding.code for finding in diagnose(facts)]


def test_what_could_not_be_looked_at_is_said():
    assert "Code locations" in " ".join(unchecked(ILL["workspace_unreadable"]))
    assert "campaigns were not checked" in " ".join(unchecked(ILL["store_unreachable"]))
    assert len(unchecked(WELL)) < len(unchecked(ILL["instance_unreadable"]))


@pytest.mark.parametrize("code", CODES)
def test_every_finding_is_documented(code: str):
    assert f"| `{code}` | {CODES[code]}" in DOCS
