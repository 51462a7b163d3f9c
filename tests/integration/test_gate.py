"""The gate against a real Dagster: what pauses, and that all of it comes back as it was."""

from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import Store
from tests.integration.gate_deployment import Deployment, deployment


@pytest.fixture
def deployed(
    tmp_path: Path, store_url: str, request: pytest.FixtureRequest
) -> Iterator[Deployment]:
    store = Store(store_url)
    database = None
    if not store.is_sqlite:
        make: Callable[[], sa.URL] = request.getfixturevalue("make_database")
        database = make().set(drivername="postgresql").render_as_string(hide_password=False)
    with deployment(tmp_path / "home", store, dagster_database=database) as deployed:
        yield deployed
    store.dispose()


def test_a_run_pauses_in_an_outage_and_its_next_attempt_finishes_it(deployed: Deployment):
    run_id = deployed.launch("letters", "a")
    deployed.gate()
    deployed.dequeue()
    assert deployed.wait(run_id) == "CANCELED"
    deployed.gate()
    assert deployed.dagster.pools()["mail@letters"] == "0"
    queued = deployed.launch("postcard")
    deployed.dequeue()
    assert deployed.status(queued) is dg.DagsterRunStatus.QUEUED

    deployed.up("mail")
    deployed.until(lambda: deployed.status(queued) is dg.DagsterRunStatus.SUCCESS)
    deployed.until(lambda: not deployed.dagster.pools())
    deployed.gate()
    with deployed.store.read() as conn:
        run = runs.find(conn, "letters", "a")
        assert run is not None
        outcomes = [attempt.outcome for attempt in runs.attempts(conn, run.id)]
    assert run.status is RunStatus.COMPLETED
    assert outcomes == [RunStatus.PAUSED, RunStatus.COMPLETED]
    assert sorted(deployed.calls()) == sorted([*(f"mail a-{n}" for n in range(10)), "mail one"])
