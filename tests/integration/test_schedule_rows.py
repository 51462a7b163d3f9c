"""What the gate writes of a schedule is not overwritten by Dagster's scheduler."""

from datetime import UTC, datetime
from pathlib import Path

from dagster_tidegate.holds import EVERYTHING, HoldSource
from dagster_tidegate.store import holds
from tests.integration.gate_deployment import Deployment, deployment


def rows(deployed: Deployment) -> dict[str, object]:
    return {
        state.name: state
        for state in deployed.instance.all_instigator_state()
        if state.name in ("hourly_letters", "daily_atlas")
    }


def test_the_scheduler_has_nothing_to_write_into_a_row_that_the_gate_wrote(
    sqlite_url: str, tmp_path: Path
):
    # It writes whole rows, as it read them before: a write of the gate in between would be lost.
    with deployment(tmp_path / "home", sqlite_url) as deployed:
        store = deployed.store
        deployed.start("hourly_letters")
        deployed.schedules(datetime.now(UTC))
        deployed.gate()
        with store.begin() as conn:
            holds.place(
                conn,
                store.now(conn),
                EVERYTHING,
                source=HoldSource.OPERATOR,
                reason="test",
                actor="ann",
            )
        deployed.tick("tidegate_pause")
        stopped = rows(deployed)
        assert {deployed.trigger_states()[name] for name in stopped} == {"STOPPED"}
        deployed.schedules(datetime.now(UTC))
        assert rows(deployed) == stopped

        with store.begin() as conn:
            holds.release(
                conn, store.now(conn), EVERYTHING, source=HoldSource.OPERATOR, actor="ann"
            )
        deployed.tick("tidegate_resume")
        given_back = rows(deployed)
        assert deployed.trigger_states()["hourly_letters"] == "RUNNING"
        deployed.schedules(datetime.now(UTC))
        assert rows(deployed) == given_back
