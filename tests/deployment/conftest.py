"""A deployment with the gate for each file of tests; each test leaves it settled."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.deployment.gate_stage import MAX_S, START_TIMEOUT_S, Stage, gate_stage


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: sa.URL,  # noqa: ARG001 -- gRPC's threads do not survive the fork it starts with
) -> Iterator[Stage]:
    home = tmp_path_factory.mktemp("gate") / "home"
    with gate_stage(home, f"sqlite:///{home / 'tidegate.db'}", two_locations=True) as stage:
        yield stage


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    """The deployment, with every service up and nothing under way."""
    shared.sandbox.reset()
    before = shared.settings()
    yield shared
    shared.heal("openai", "instantly")
    shared.settle(MAX_S + START_TIMEOUT_S)
    assert shared.settings() == before
