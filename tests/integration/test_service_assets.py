"""Services in Dagster's own pages: their assets, what is reported about them, and automation."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from dagster_tidegate import BreakerResource, ServiceConfig, build_definitions, service_key
from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.breaker.window import WindowDelta
from dagster_tidegate.plugin import service_reporter
from dagster_tidegate.plugin.service_reporter import ServiceReporter
from dagster_tidegate.store import breakers, campaigns
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.gate_lock import gate_lock
from dagster_tidegate.store.takeovers import TakeoverKind
from tests.support.databases import both_databases

pytestmark = pytest.mark.database_time
MAIL = ServiceConfig(name="mail")
KEY = service_key("mail")
DOWN = Verdict(VerdictKind.FAILURE, reason="503 x5", answer="try later")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def resource(store_url: str) -> BreakerResource:
    return BreakerResource(services=[MAIL, ServiceConfig(name="maps")], store_url=store_url)


class Stage:
    """A store whose breaker of `mail` opens and closes, and Dagster, to which it is reported."""

    def __init__(self, instance: dg.DagsterInstance, resource: BreakerResource) -> None:
        self.instance, self.resource = instance, resource
        self.reporter = self.another()

    def another(self) -> ServiceReporter:
        """The reporter of another process."""
        return ServiceReporter(list(self.resource.fleet.policies))

    def report(self, reporter: ServiceReporter | None = None) -> str:
        snapshot = self.resource.fleet.refresh()
        return (reporter or self.reporter).report(self.instance, self.resource.store, snapshot)

    def trip(self) -> None:
        self._change(lambda now, before: machine.opened(before, MAIL, now, DOWN, 0.0))

    def half_open(self) -> None:
        self._change(lambda now, before: machine.half_opened(before, now))

    def recover(self) -> None:
        self._change(lambda now, before: machine.closed(before, now))

    def _change(self, make: Any) -> None:
        with self.resource.store.begin() as conn:
            now = self.resource.store.now(conn) + timedelta(seconds=1)
            before = breakers.read_one(conn, "mail")
            assert breakers.change(conn, now, before, make(now, before), actor="worker-1")

    def observations(self) -> list[dg.AssetObservation]:
        """The observations of `mail`, the oldest first."""
        records = self.instance.fetch_observations(KEY, limit=1000).records
        return [r.event_log_entry.asset_observation for r in reversed(records)]  # type: ignore[misc]

    def materializations(self) -> list[dg.AssetMaterialization]:
        records = self.instance.fetch_materializations(KEY, limit=1000).records
        return [r.event_log_entry.asset_materialization for r in reversed(records)]  # type: ignore[misc]

    def checks(self) -> list[dg.AssetCheckEvaluation]:
        key = dg.AssetCheckKey(KEY, "reachable")
        history = self.instance.event_log_storage.get_asset_check_execution_history(key, 1000)
        return [
            each.event.dagster_event.asset_check_evaluation_data  # type: ignore[union-attr]
            for each in reversed(history)
        ]


@pytest.fixture
def stage(instance: dg.DagsterInstance, resource: BreakerResource) -> Stage:
    stage = Stage(instance, resource)
    stage.report()
    return stage


def states(stage: Stage) -> list[Any]:
    return [each.metadata["state"].value for each in stage.observations()]


@both_databases
def test_an_outage_is_observed_at_each_change_and_materialized_at_its_end(stage: Stage) -> None:
    stage.trip()
    stage.report()
    stage.half_open()
    stage.recover()
    stage.report()
    assert states(stage) == ["open", "half_open", "closed"]
    assert len(stage.materializations()) == 2  # when it was first known, and now
    recovery = stage.materializations()[-1]
    assert "# Outage of mail" in str(recovery.metadata["report"].value)
    assert isinstance(recovery.metadata["outage_minutes"].value, float)
    assert [each.passed for each in stage.checks()] == [True, False, False, True]


def test_numbers_are_numbers_so_that_dagster_plots_them(stage: Stage) -> None:
    store = stage.resource.store
    with store.begin() as conn:
        now = store.now(conn)
        breakers.add(
            conn,
            [
                WindowDelta("mail", 0, "worker-1", now, now, ok=10, failed=5, p95_s=0.2),
                WindowDelta("mail", 0, "worker-2", now, now, ok=5, p95_s=1.0),
                WindowDelta("mail", 0, "of an older version", now, now, ok=30),
            ],
        )
        daily = Trigger(TakeoverKind.SCHEDULE, "daily", "id-daily", True)
        letters = CampaignSpec("letters", "here", "none", ops={"s": "mail"}, triggers=(daily,))
        campaigns.save(conn, now, "here", [letters])
    stage.trip()
    stage.report()
    metadata = stage.observations()[0].metadata
    assert metadata["needed_by"].value == {"letters": ["daily"]}
    names = ("calls", "failures", "failure_rate", "p95_s")
    values = {name: metadata[name].value for name in names}
    assert values == {"calls": 50, "failures": 5, "failure_rate": 0.1, "p95_s": 0.4}
    assert (metadata["reachable"].value, metadata["paused_runs"].value) == (0, 0)
    assert metadata["answer"].value == "try later"


def test_a_failed_check_says_why_and_until_when(stage: Stage) -> None:
    stage.trip()
    stage.report()
    metadata = stage.checks()[-1].metadata
    assert metadata["reason"].value == "503 x5"
    assert isinstance(metadata["retry_at"], dg.TimestampMetadataValue)


@both_databases
def test_two_daemons_report_each_change_once(stage: Stage) -> None:
    other = stage.another()
    for _ in range(3):
        stage.trip()
        stage.report()
        stage.report(other)
        stage.recover()
        stage.report(other)
        stage.report()
    assert states(stage) == ["open", "closed"] * 3
    assert len(stage.materializations()) == 4


def test_while_another_gate_reports_nothing_is_and_the_next_tick_does_it(stage: Stage) -> None:
    stage.trip()
    with gate_lock(stage.resource.store, 1.0):
        assert stage.report() == ""
    assert states(stage) == []
    stage.report()
    assert states(stage) == ["open"]


@pytest.mark.parametrize("written", range(5))
def test_a_write_that_was_lost_is_made_up_for_and_none_is_repeated(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    stage.trip()
    stage.recover()
    left, write = [written], stage.instance.report_runless_asset_event

    def failing(event: Any) -> None:
        if not left[0]:
            raise OSError("the disk is full")
        left[0] -= 1
        write(event)

    with monkeypatch.context() as patched:
        patched.setattr(stage.instance, "report_runless_asset_event", failing)
        with pytest.raises(OSError, match="disk"):
            stage.report()
    stage.report(stage.another())
    assert states(stage) == ["open", "closed"]
    assert len(stage.materializations()) == 2
    assert stage.checks()[-1].passed


def test_many_changes_are_reported_over_several_ticks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_reporter, "AT_ONCE", 3)
    for _ in range(4):
        stage.trip()
        stage.recover()
    ticks = [stage.report() for _ in range(4)]
    assert states(stage) == ["open", "closed"] * 4
    assert ticks[0] == "reported 3 changes of breakers to Dagster"
    assert ticks[3] == ""


def test_nothing_is_read_while_no_breaker_has_changed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.report()
    snapshot = stage.resource.fleet.refresh()
    monkeypatch.setattr(Store, "read", None)
    monkeypatch.setattr(Store, "begin", None)
    assert stage.reporter.report(stage.instance, stage.resource.store, snapshot) == ""


def test_what_happened_before_the_first_tick_is_not_made_up_for(
    instance: dg.DagsterInstance, resource: BreakerResource
) -> None:
    stage = Stage(instance, resource)
    stage.resource.fleet.refresh()
    stage.trip()
    stage.report()
    assert states(stage) == []
    assert stage.materializations() == []
    assert [each.passed for each in stage.checks()] == [False]
    stage.recover()
    stage.report()
    assert states(stage) == ["closed"]
    assert len(stage.materializations()) == 1


# --- two code locations that define the same service --------------------------------------------


@both_databases
def test_the_gates_of_two_code_locations_report_a_common_service_once(
    instance: dg.DagsterInstance, store_url: str
) -> None:
    here = Stage(
        instance, BreakerResource(services=[MAIL, ServiceConfig(name="maps")], store_url=store_url)
    )
    there = Stage(
        instance, BreakerResource(services=[ServiceConfig(name="geo"), MAIL], store_url=store_url)
    )
    for stage in (here, there):
        stage.report()
    here.trip()
    for stage in (there, here):  # either may be first
        stage.report()
    there.recover()
    for stage in (here, there):
        stage.report()
        stage.report(stage.another())  # its daemon was restarted
    assert states(here) == ["open", "closed"]
    assert len(here.materializations()) == 2  # when it was first known, and now
    assert [each.passed for each in here.checks()] == [True, False, True]
    for name in ("maps", "geo"):  # each is known to one location alone
        assert len(instance.fetch_materializations(service_key(name), limit=9).records) == 1


# --- definitions --------------------------------------------------------------------------------


@dg.asset(automation_condition=dg.AutomationCondition.eager())
def root() -> None: ...


@dg.asset(pool="mail", deps=[root], automation_condition=dg.AutomationCondition.eager())
def eager() -> None: ...


@dg.asset(
    pool="mail",
    deps=[root],
    partitions_def=dg.DailyPartitionsDefinition("2026-02-27"),
    automation_condition=dg.AutomationCondition.on_missing(),
)
def on_missing() -> None: ...


@dg.asset(
    pool="mail", deps=[root], automation_condition=dg.AutomationCondition.on_cron("0 0 * * *")
)
def on_cron() -> None: ...


@dg.asset(
    pool="mail",
    deps=[root],
    automation_condition=dg.AutomationCondition.eager()
    & dg.AutomationCondition.all_deps_blocking_checks_passed(),
)
def careful() -> None: ...


ASSETS = [root, eager, on_missing, on_cron, careful]
KEYS = [asset.key for asset in ASSETS]
NAMES = [key.to_user_string() for key in KEYS]


def requested(definitions: dg.Definitions, *, reachable: bool = True, first: bool = True) -> Any:
    """What automation requests as `root` is materialized before and after a midnight."""
    now, cursor, counts = datetime(2026, 3, 1, 23, 50, tzinfo=UTC), None, []
    defined = definitions.get_repository_def().asset_graph.get_all_asset_keys()
    selection = dg.AssetSelection.assets(*(key for key in KEYS if key in defined))
    with dg.DagsterInstance.ephemeral() as instance:
        if first:
            instance.report_runless_asset_event(dg.AssetMaterialization(KEY))
        evaluation = dg.AssetCheckEvaluation(
            asset_key=KEY, check_name="reachable", passed=reachable, blocking=True
        )
        instance.report_runless_asset_event(evaluation)
        for step in range(6):
            if step in (1, 4):
                instance.report_runless_asset_event(dg.AssetMaterialization(root.key))
            result = dg.evaluate_automation_conditions(
                definitions,
                instance,
                asset_selection=selection,
                cursor=cursor,
                evaluation_time=now,
            )
            counts.append(
                [k.to_user_string() for k in KEYS if k in defined and result.get_num_requested(k)]
            )
            cursor, now = result.cursor, now + timedelta(minutes=5)
    return counts


def plain() -> dg.Definitions:
    return dg.Definitions(assets=ASSETS)


def test_automation_is_the_same_with_the_plugin_as_without() -> None:
    without = requested(plain())
    assert {name for step in without for name in step} == {*NAMES} - {"root"}
    assert requested(build_definitions(plain(), [MAIL])) == without
    assert requested(build_definitions(plain(), [MAIL]), first=False, reachable=False) == without


def test_with_lineage_a_service_that_is_reachable_lets_automation_run() -> None:
    definitions = build_definitions(plain(), [MAIL], lineage=True)
    names = {name for step in requested(definitions) for name in step}
    # A service has no update since each cron tick, for which `on_cron` waits.
    assert names == {*NAMES} - {"root", "on_cron"}


def test_with_lineage_a_condition_waits_until_the_service_is_reachable() -> None:
    definitions = build_definitions(plain(), [MAIL], lineage=True)
    counts = requested(definitions, reachable=False)
    names = {name for step in counts for name in step}
    assert names == {*NAMES} - {"root", "on_cron", "careful"}


def test_with_lineage_a_cron_condition_may_ignore_the_services() -> None:
    condition = dg.AutomationCondition.on_cron("0 0 * * *").ignore(
        dg.AssetSelection.groups("services", include_sources=True)
    )
    ignoring = on_cron.map_asset_specs(
        lambda spec: spec.replace_attributes(automation_condition=condition)
    )
    definitions = build_definitions(dg.Definitions(assets=[root, ignoring]), [MAIL], lineage=True)
    assert any("on_cron" in step for step in requested(definitions))


def test_with_lineage_nothing_runs_before_a_service_is_known() -> None:
    definitions = build_definitions(plain(), [MAIL], lineage=True)
    assert not any(requested(definitions, first=False))


def test_lineage_is_only_what_was_asked_for() -> None:
    def parents(definitions: dg.Definitions) -> set[dg.AssetKey]:
        return set(definitions.get_repository_def().asset_graph.get(eager.key).parent_keys)

    assert parents(build_definitions(plain(), [MAIL])) == {root.key}
    assert parents(build_definitions(plain(), [MAIL], lineage=True)) == {root.key, KEY}


def test_the_jobs_of_a_user_select_what_they_did() -> None:
    jobs = [dg.define_asset_job("all_of_it"), dg.define_asset_job("star", selection="*")]
    definitions = build_definitions(
        dg.Definitions(assets=ASSETS, jobs=jobs), [MAIL, ServiceConfig(name="a-b"), "a_b"]
    )
    for name in ("all_of_it", "star"):
        nodes = {node.name for node in definitions.get_repository_def().get_job(name).nodes}
        assert nodes == {asset.key.to_user_string() for asset in ASSETS}


def test_the_check_can_be_executed_and_reads_the_breaker(
    instance: dg.DagsterInstance, resource: BreakerResource
) -> None:
    definitions = build_definitions(dg.Definitions(resources={"breakers": resource}))
    stage = Stage(instance, resource)
    resource.fleet.refresh()
    stage.trip()
    job = definitions.resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=instance, raise_on_error=False)
    passed = {e.asset_key: e.passed for e in result.get_asset_check_evaluations()}
    assert passed == {KEY: False, service_key("maps"): True}


def test_the_parts_of_a_service_are_assets_of_their_own() -> None:
    policy = ServiceConfig(name="apollo", parts=["people"])
    definitions = build_definitions(dg.Definitions(), [policy])
    graph = definitions.get_repository_def().asset_graph
    assert graph.get_all_asset_keys() == {
        dg.AssetKey(["tidegate", "apollo"]),
        dg.AssetKey(["tidegate", "apollo", "people"]),
    }
    assert {graph.get(key).group_name for key in graph.get_all_asset_keys()} == {"services"}


def test_a_schedule_says_which_services_its_job_needs_and_stays_as_it_is() -> None:
    @dg.op(pool="api_pool")
    def call() -> None: ...

    @dg.op
    def tidy() -> None: ...

    @dg.job
    def letters():
        call()

    @dg.job
    def housekeeping():
        tidy()

    schedules = [
        dg.ScheduleDefinition(
            name="berlin",
            job=letters,
            cron_schedule="0 9 * * *",
            execution_timezone="Europe/Berlin",
            tags={"team": "post"},
            metadata={"own": 1},
            default_status=dg.DefaultScheduleStatus.RUNNING,
        ),
        dg.ScheduleDefinition(name="nightly", job=housekeeping, cron_schedule="0 0 * * *"),
    ]
    policy = ServiceConfig(name="mail", pools=["api_pool"])
    defs = dg.Definitions(jobs=[letters, housekeeping], schedules=schedules)
    repository = build_definitions(defs, [policy]).get_repository_def()
    berlin = repository.get_schedule_def("berlin")
    assert berlin.metadata["tidegate/services"].value == "mail"
    assert berlin.metadata["own"].value == 1
    assert (berlin.tags, berlin.execution_timezone) == ({"team": "post"}, "Europe/Berlin")
    assert berlin.default_status is dg.DefaultScheduleStatus.RUNNING
    assert berlin.job is letters
    assert repository.get_schedule_def("nightly").metadata == {}


def test_what_is_not_wanted_is_left_out() -> None:
    definitions = build_definitions(
        dg.Definitions(), [MAIL], service_assets=False, operator_jobs=False
    )
    repository = definitions.get_repository_def()
    assert not repository.asset_graph.get_all_asset_keys()
    assert not repository.get_all_jobs()
    with pytest.raises(ValueError, match="needs service_assets=True"):
        build_definitions(dg.Definitions(), [MAIL], service_assets=False, lineage=True)
