"""The front door: what `build_definitions` adds, and which campaigns it finds."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin

from dagster_tidegate import (
    ASSETS,
    BreakerResource,
    Campaign,
    CatchUp,
    ServiceConfig,
    build_definitions,
    build_pause_sensor,
    pool,
)
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.dagster_api.repository import Repository
from dagster_tidegate.plugin.campaign import AllCampaigns
from dagster_tidegate.store.campaigns import CampaignSpec

LOCATION = "shop"
MAILER = ["mailer"]


@dg.op(pool="mailer")
def send() -> None: ...


@dg.op
def tidy() -> None: ...


@dg.job
def letters():
    send()


@dg.job
def housekeeping():
    tidy()


@dg.graph
def inner():
    send()


@dg.graph
def outer():
    inner()


@dg.asset(pool="mailer")
def newsletter() -> None: ...


@dg.asset
def archive() -> None: ...


def campaigns(
    definitions: dg.Definitions,
    *stated: Campaign,
    services: Sequence[str | ServicePolicy] = MAILER,
) -> dict[str, CampaignSpec]:
    """The campaigns that the gate of a code location with these Definitions has."""
    origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(LOCATION), "__repository__")
    policies = [ServicePolicy(name=s) if isinstance(s, str) else s for s in services]
    with dg.DagsterInstance.ephemeral() as instance:
        repository = Repository(
            origin, definitions.get_repository_def(), "tidegate_pause", instance
        )
        specs = AllCampaigns(stated).specs(repository, {p.name: p for p in policies})
    return {spec.name: spec for spec in specs}


def test_a_job_that_needs_a_service_is_a_campaign_and_another_is_not() -> None:
    specs = campaigns(dg.Definitions(jobs=[letters, housekeeping]))
    assert {name: spec.ops for name, spec in specs.items()} == {"letters": {"send": "mailer"}}
    assert specs["letters"].location == LOCATION


def test_an_op_of_a_nested_graph_makes_its_job_a_campaign() -> None:
    specs = campaigns(dg.Definitions(jobs=[outer.to_job(name="nested")]))
    assert specs["nested"].ops == {"inner.send": "mailer"}


def test_a_pool_of_an_unknown_service_makes_no_campaign() -> None:
    assert campaigns(dg.Definitions(jobs=[letters]), services=["crm"]) == {}


def test_a_pool_that_a_policy_adopts_makes_its_jobs_campaigns() -> None:
    specs = campaigns(
        dg.Definitions(jobs=[letters]), services=[ServicePolicy(name="crm", pools=["mailer"])]
    )
    assert specs["letters"].services(["crm", "mailer"]) == {"crm", "mailer"}
    assert specs["letters"].adopted == {"mailer": {"crm"}}


def test_a_job_with_the_pool_of_its_campaign_alone_is_a_campaign() -> None:
    @dg.op(pool=pool(campaign="report"))
    def write() -> None: ...

    @dg.job
    def report():
        write()

    assert list(campaigns(dg.Definitions(jobs=[report]))) == ["report"]


def test_an_asset_job_is_a_campaign_if_its_selection_needs_a_service() -> None:
    definitions = dg.Definitions(
        assets=[newsletter, archive],
        jobs=[
            dg.define_asset_job("news", selection=["newsletter"]),
            dg.define_asset_job("all_assets"),
            dg.define_asset_job("old", selection=["archive"]),
        ],
    )
    specs = campaigns(definitions)
    assert {"news", "all_assets"} <= specs.keys()
    assert "old" not in specs


@dg.multi_asset(
    specs=[dg.AssetSpec("opened", skippable=True), dg.AssetSpec("clicked", skippable=True)],
    can_subset=True,
    pool="mailer",
)
def statistics(context: dg.AssetExecutionContext): ...


@dg.op(pool="crm")
def look_up() -> int:
    return 1


@dg.op
def double(number: int) -> int:
    return 2 * number


@dg.graph_asset
def customers():
    return double(look_up())


def test_the_assets_that_run_outside_of_a_job_are_a_campaign_named_after_the_location() -> None:
    assets = [newsletter, archive, statistics, customers]
    spec = campaigns(dg.Definitions(assets=assets), services=["mailer", "crm"])["shop:assets"]
    assert spec.ops == {
        "newsletter": "mailer",
        "statistics": "mailer",
        "customers.look_up": "crm",
    }
    assert spec.part(["opened"]).pools == {"mailer"}
    assert spec.part(["customers", "archive"]).pools == {"crm"}
    assert spec.part(["archive"]).pools == set()
    assert campaigns(dg.Definitions(assets=[archive])) == {}


def test_a_schedule_whose_target_is_assets_has_a_campaign_named_after_it() -> None:
    hourly = dg.ScheduleDefinition("hourly", target=[newsletter], cron_schedule="0 * * * *")
    specs = campaigns(dg.Definitions(assets=[newsletter], schedules=[hourly]))
    assert [trigger.name for trigger in specs["shop:hourly"].triggers] == ["hourly"]


def test_missed_partitions_are_caught_up_by_default_and_other_ticks_are_not() -> None:
    days = dg.DailyPartitionsDefinition(start_date="2026-01-01")
    regions = dg.StaticPartitionsDefinition(["eu", "us"])
    both = dg.MultiPartitionsDefinition({"day": days, "region": regions})
    jobs = [
        outer.to_job(name=name, partitions_def=partitions)
        for name, partitions in [("daily", days), ("regional", regions), ("both", both)]
    ]
    specs = campaigns(dg.Definitions(jobs=[*jobs, letters]))
    assert {name: spec.catch_up for name, spec in specs.items()} == {
        "daily": "partitions",
        "both": "partitions",
        "regional": "none",
        "letters": "none",
    }


def test_automation_is_not_stopped_since_it_starts_other_assets_too() -> None:
    automation = dg.AutomationConditionSensorDefinition(
        "automation", target=dg.AssetSelection.all()
    )
    definitions = dg.Definitions(assets=[newsletter, archive], sensors=[automation])
    assert campaigns(definitions)["shop:assets"].triggers == ()


def test_several_jobs_over_the_same_assets_are_campaigns_of_their_own() -> None:
    jobs = [dg.define_asset_job(name, selection=["newsletter"]) for name in ("one", "two")]
    definitions = dg.Definitions(assets=[newsletter], jobs=jobs)
    assert campaigns(definitions).keys() == {"one", "two", "shop:assets"}


def test_the_campaign_of_assets_can_be_stated_too() -> None:
    stated = Campaign(job=ASSETS, priority=7, owners=["ana"])
    spec = campaigns(dg.Definitions(assets=[newsletter]), stated)["shop:assets"]
    assert (spec.priority, spec.owners) == (7, {"ana"})


def test_a_schedule_and_a_sensor_of_a_campaign_are_its_triggers() -> None:
    @dg.sensor(job=letters)
    def new_letters() -> None: ...

    hourly = dg.ScheduleDefinition(name="hourly", job=letters, cron_schedule="0 * * * *")
    specs = campaigns(dg.Definitions(jobs=[letters], schedules=[hourly], sensors=[new_letters]))
    assert {t.name for t in specs["letters"].triggers} == {"hourly", "new_letters"}


def test_a_sensor_that_starts_another_job_too_is_not_stopped() -> None:
    @dg.sensor(jobs=[letters, housekeeping])
    def everything() -> None: ...

    assert campaigns(dg.Definitions(sensors=[everything]))["letters"].triggers == ()


def test_what_is_stated_about_a_campaign_is_added_to_what_is_found() -> None:
    @dg.sensor()
    def by_hand() -> None: ...

    hourly = dg.ScheduleDefinition(name="hourly", job=letters, cron_schedule="0 * * * *")
    stated = Campaign(job="letters", catch_up=CatchUp.ALL, priority=3, triggers=[by_hand])
    definitions = dg.Definitions(jobs=[letters], schedules=[hourly], sensors=[by_hand])
    spec = campaigns(definitions, stated)["letters"]
    assert (spec.catch_up, spec.priority, spec.ops) == ("all", 3, {"send": "mailer"})
    assert {trigger.name for trigger in spec.triggers} == {"by_hand", "hourly"}


def test_an_unknown_job_is_refused_with_the_names_of_those_that_there_are() -> None:
    definitions = dg.Definitions(jobs=[letters, housekeeping])
    with pytest.raises(ValueError, match=r"no job 'leters'.*letters\?.*housekeeping, letters"):
        build_definitions(definitions, MAILER, campaigns=[Campaign(job="leters")])


def test_definitions_get_the_resource_and_the_gate_and_keep_what_they_have() -> None:
    definitions = build_definitions(
        dg.Definitions(
            jobs=[letters],
            assets=[newsletter],
            resources={"crm": dg.ResourceDefinition.hardcoded_resource(1)},
            executor=dg.in_process_executor,
        ),
        [ServiceConfig(name="mailer", linger_s=3), "crm"],
    )
    repository = definitions.get_repository_def()
    assert {sensor.name for sensor in repository.sensor_defs} == {
        "tidegate_pause",
        "tidegate_resume",
        "tidegate_breaker",
    }
    assert all(sensor.description for sensor in repository.sensor_defs)
    resources = definitions.resources or {}
    assert set(resources) == {"crm", "breakers"}
    breakers = resources["breakers"]
    assert [service.name for service in breakers.services] == ["mailer", "crm"]
    assert repository.has_job("letters")
    assert definitions.executor is dg.in_process_executor


def test_the_resume_sensor_may_launch_every_job_that_may_be_a_campaign() -> None:
    @dg.sensor(target=[newsletter])
    def on_news() -> None: ...

    days = dg.DailyPartitionsDefinition(start_date="2026-01-01")

    @dg.asset(partitions_def=days)
    def archive() -> None: ...

    partitioned = dg.define_asset_job("daily", selection=[archive])
    definitions = build_definitions(
        dg.Definitions(
            assets=[archive],
            jobs=[letters],
            sensors=[on_news],
            schedules=[
                dg.build_schedule_from_partitioned_job(partitioned),
                dg.ScheduleDefinition(job=housekeeping, cron_schedule="0 * * * *"),
            ],
        ),
        MAILER,
    )
    resume = definitions.get_repository_def().get_sensor_def("tidegate_resume")
    assert {target.job_name for target in resume.targets} == {
        "letters",
        "housekeeping",
        "daily",
        "__anonymous_asset_job_on_news",
        "__ASSET_JOB",
    }


def test_a_resource_of_the_users_own_is_used() -> None:
    own = BreakerResource(services=[ServiceConfig(name="mailer")])
    definitions = build_definitions(dg.Definitions(jobs=[letters], resources={"breakers": own}))
    assert (definitions.resources or {})["breakers"] is own


REFUSALS: list[tuple[str, Callable[[], object]]] = [
    ("at least one service", lambda: build_definitions(dg.Definitions())),
    ("use a list", lambda: build_definitions(dg.Definitions(), "mailer")),
    (
        "name the services and the store there",
        lambda: build_definitions(
            dg.Definitions(resources={"breakers": BreakerResource(services=[])}), MAILER
        ),
    ),
    (
        "pass a different resource_key",
        lambda: build_definitions(dg.Definitions(resources={"breakers": 1}), MAILER),
    ),
    (
        "pass resource_key='tidegate' to build_definitions",
        lambda: build_definitions(
            dg.Definitions(resources={"tidegate": BreakerResource(services=[])})
        ),
    ),
    (
        "tidegate_pause of the gate already",
        lambda: build_definitions(
            dg.Definitions(sensors=[build_pause_sensor(campaigns=[])]), MAILER
        ),
    ),
]


@pytest.mark.parametrize(("message", "build"), REFUSALS, ids=[name for name, _ in REFUSALS])
def test_definitions_that_contradict_are_refused(message: str, build: Callable) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_definitions_can_be_merged_and_given_metadata_afterwards() -> None:
    definitions = build_definitions(dg.Definitions(jobs=[letters], assets=[newsletter]), MAILER)
    merged = dg.Definitions.merge(definitions, dg.Definitions(jobs=[housekeeping]))
    assert merged.get_repository_def().has_sensor_def("tidegate_resume")
    with_metadata = definitions.permissive_map_resolved_asset_specs(
        func=lambda spec: spec.replace_attributes(group_name="mail"), selection=None
    )
    assert with_metadata.get_repository_def().has_sensor_def("tidegate_resume")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project as `create-dagster` makes it, with an asset and its schedule."""
    package = tmp_path / "src" / "bookshop"
    (package / "defs").mkdir(parents=True)
    for path in (package, package / "defs"):
        (path / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "bookshop"\nversion = "1"\n\n[tool.dg]\ndirectory_type = "project"\n\n'
        '[tool.dg.project]\nroot_module = "bookshop"\n'
    )
    (package / "defs" / "books.py").write_text(
        "import dagster as dg\n\n\n"
        '@dg.asset(pool="mailer")\ndef books() -> None: ...\n\n\n'
        'job = dg.define_asset_job("books_job", selection=["books"])\n'
        'nightly = dg.ScheduleDefinition(job=job, cron_schedule="0 3 * * *")\n'
    )
    monkeypatch.syspath_prepend(package.parent)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "bookshop"]:
        del sys.modules[name]


def test_a_defs_folder_goes_through_the_front_door(project: Path) -> None:
    definitions = build_definitions(
        dg.load_from_defs_folder(path_within_project=project), services=MAILER
    )
    specs = campaigns(definitions)
    assert specs.keys() == {"books_job", "shop:assets"}
    assert [trigger.name for trigger in specs["books_job"].triggers] == ["books_job_schedule"]


def test_definitions_with_the_gate_may_be_in_a_defs_folder(project: Path) -> None:
    """Dagster then gives the sensors metadata of the file they are from."""
    (project / "src" / "bookshop" / "defs" / "gate.py").write_text(
        "import dagster as dg\n"
        "from dagster_tidegate import build_definitions\n\n\n"
        '@dg.op(pool="mailer")\ndef send() -> None: ...\n\n\n'
        "@dg.job\ndef letters():\n    send()\n\n\n"
        "@dg.job\ndef bills():\n    send()\n\n\n"
        'defs = build_definitions(dg.Definitions(jobs=[letters, bills]), ["mailer"])\n'
    )
    definitions = dg.load_from_defs_folder(path_within_project=project)
    resume = definitions.get_repository_def().get_sensor_def("tidegate_resume")
    assert {target.job_name for target in resume.targets} == {"letters", "bills"}
