"""Hold, release and check, from Dagster's launchpad."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from dagster_tidegate import BreakerResource, ServiceConfig, build_definitions
from dagster_tidegate.control.operations import ACTOR_TAG
from dagster_tidegate.holds import Hold
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import breakers, history, holds
from dagster_tidegate.store.database import Store

pytestmark = pytest.mark.database_time


@dg.op(pool="mail")
def send() -> None: ...


@dg.job
def letters():
    send()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


class Launchpad:
    def __init__(self, instance: dg.DagsterInstance, store: Store) -> None:
        url = store.url.render_as_string(hide_password=False)
        resource = BreakerResource(services=[ServiceConfig(name="mail")], store_url=url)
        defs = build_definitions(dg.Definitions(jobs=[letters], resources={"breakers": resource}))
        self.repository = defs.get_repository_def()
        self.instance, self.store = instance, store
        resource.fleet.refresh()  # the service has a breaker

    def launch(self, action: str, *, by: str | None = None, **config: Any) -> Any:
        job = self.repository.get_job(f"tidegate_{action}")
        return job.execute_in_process(
            run_config={"ops": {action: {"config": config}}},
            instance=self.instance,
            tags={ACTOR_TAG: by} if by else None,
            raise_on_error=False,
        )

    def holds(self) -> list[Hold]:
        with self.store.read() as conn:
            return list(holds.live(conn, self.store.now(conn)))

    def log(self, result: Any) -> str:
        entries = self.instance.all_logs(result.run_id)
        return "\n".join(entry.user_message for entry in entries)


@pytest.fixture
def launchpad(instance: dg.DagsterInstance, store: Store) -> Launchpad:
    return Launchpad(instance, store)


def test_a_hold_from_the_launchpad_is_audited_with_its_run(launchpad: Launchpad) -> None:
    result = launchpad.launch("hold", name="mail", reason="new copy", hours=2)
    assert result.success
    [hold] = launchpad.holds()
    assert (str(hold.target), hold.reason) == ("service mail", "new copy")
    assert hold.actor == f"Dagster run {result.run_id}"
    assert hold.expires_at is not None
    assert (hold.expires_at - hold.placed_at).total_seconds() == 7200
    with launchpad.store.read() as conn:
        [event] = history.read(conn, kinds=["hold"], limit=10)
    assert event.actor == hold.actor


def test_who_started_the_run_is_named_if_that_is_known(launchpad: Launchpad) -> None:
    result = launchpad.launch("hold", by="ana", kind="EVERYTHING", reason="storm")
    assert [hold.actor for hold in launchpad.holds()] == [f"ana in Dagster run {result.run_id}"]


def test_a_release_frees_what_any_person_holds(launchpad: Launchpad) -> None:
    launchpad.launch("hold", name="mail", reason="new copy")
    launchpad.launch("hold", name="mail", reason="another")
    assert len(launchpad.holds()) == 2
    assert launchpad.launch("release", name="mail").success
    assert launchpad.holds() == []


def test_a_dry_run_changes_nothing(launchpad: Launchpad) -> None:
    result = launchpad.launch("hold", name="mail", reason="new copy", dry_run=True)
    assert result.success
    assert "Dry run: service mail is held" in launchpad.log(result)
    assert launchpad.holds() == []


def test_a_breakers_own_hold_is_released_by_force_alone(launchpad: Launchpad) -> None:
    with launchpad.store.begin() as conn:
        breakers.half_open(conn, launchpad.store.now(conn), "mail", actor="ana", reason="try")
    refused = launchpad.launch("release", name="mail")
    assert not refused.success
    assert "use force" in refused.failure_data_for_node("release").user_failure_data.description
    assert launchpad.launch("release", name="mail", force=True).success
    with launchpad.store.read() as conn:
        assert breakers.read_one(conn, "mail").state is BreakerState.CLOSED


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "mial", "reason": "x"}, "did you mean mail?"),
        ({"kind": "EVERYTHING", "name": "mail", "reason": "x"}, "everything takes no name"),
        ({"kind": "CAMPAIGN_RUN", "name": "letters", "reason": "x"}, "use campaign/partition"),
    ],
)
def test_what_can_not_be_held_is_refused_with_what_to_do(
    launchpad: Launchpad, config: dict[str, Any], message: str
) -> None:
    result = launchpad.launch("hold", **config)
    assert not result.success
    assert message in result.failure_data_for_node("hold").user_failure_data.description
    assert launchpad.holds() == []


def test_the_doctor_says_in_the_log_what_is_wrong_and_how_to_fix_it(launchpad: Launchpad) -> None:
    result = launchpad.launch("doctor", workspace="/nowhere/workspace.yaml")
    assert not result.success  # no daemon, no queue
    log = launchpad.log(result)
    assert "To fix it:" in log
    assert "see the log" in result.failure_data_for_node("doctor").user_failure_data.description


def test_the_launchpad_describes_every_field(launchpad: Launchpad) -> None:
    for action in ("hold", "release", "doctor"):
        op = launchpad.repository.get_job(f"tidegate_{action}").graph.node_defs[0]
        fields = op.config_schema.config_type.fields  # type: ignore[union-attr]
        assert fields
        assert all(field.description for field in fields.values())
