"""Every operation of the OpenAPI document, asked what it allows and what it does not."""

from collections.abc import Iterator
from copy import deepcopy

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import allow_header_conformance, positive_data_acceptance

from dagster_tidegate.store import breakers, campaigns, runs, tokens
from dagster_tidegate.store import schema as migrations
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Role
from tests.integration.api import api_on_port, document
from tests.support.examples import share_of_examples

# The stream goes on for minutes, and has tests of its own.
schema = schemathesis.openapi.from_dict(deepcopy(document())).exclude(operation_id="stream_events")
schema.config.checks.negative_data_rejection.expected_statuses += ["408", "413", "421"]


class Anything:
    """Code locations that have every job and every partition."""

    def check(self, *_: object) -> None:
        pass

    def launch(self, job: str, **_: object) -> str:
        return f"run of {job}"

    def launch_marked(self, job: str, *_: object, **__: object) -> str:
        return f"run of {job}"

    def has_run(self, *_: object) -> bool:
        return False

    def terminate(self, *_: object) -> list[str]:
        return []

    def policies(self) -> tuple[dict[str, object], dict[str, str]]:
        return {}, {}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('schemathesis') / 'tidegate.db'}")
    migrations.upgrade(store)
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, ["0"])  # a name that the generator finds by itself
        campaigns.save(conn, now, "here", [CampaignSpec("0", "here", "none", ops={"op": "0"})])
        runs.create(conn, now, "0", "0", actor="tests")
        _, secret = tokens.create(conn, now, "tests", Role.ADMIN, actor="tests")
    with api_on_port(store, workspace=Anything) as asked:
        yield str(asked.client.base_url), secret
    store.dispose()


@schema.parametrize()
@settings(
    max_examples=share_of_examples(5),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_the_answer_is_as_described_and_no_fault_of_the_server(
    case: Case, server: tuple[str, str]
) -> None:
    address, secret = server
    case.call_and_validate(
        base_url=address,
        headers={"Authorization": f"Bearer {secret}"},
        timeout=60,
        # The document can't say which characters can't be seen, or which times are over. And to
        # GET, what is before an action is a partition with a slash.
        excluded_checks=[positive_data_acceptance]
        + ([allow_header_conformance] if "{partition}/" in case.operation.path else []),
    )
