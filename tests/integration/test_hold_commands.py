"""An operator holds and releases from the command line, and sees what is paused and why."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli import main
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import breakers, campaigns, holds, runs
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from tests.integration.conftest import Run
from tests.support.databases import both_databases
from tests.support.denied import deny

pytestmark = pytest.mark.database_time


@both_databases
def test_a_hold_is_placed_seen_and_released(run: Run) -> None:
    placed = run("hold", "campaign", "outreach", "--reason", "new copy", "--actor", "ana")
    assert placed.exit_code == 0, placed.output
    assert placed.stdout == "campaign outreach is held by ana until it is released: new copy\n"
    assert "campaign outreach" in run("status").output
    released = run("release", "campaign", "outreach", "--actor", "bo")
    assert released.stdout == "released: campaign outreach, held by ana (new copy)\n"
    assert json.loads(run("status", "--json").output)["holds"] == []


def test_holding_and_releasing_twice_is_harmless_and_says_so(run: Run) -> None:
    run("hold", "everything", "--reason", "storm", "--actor", "ana")
    again = run("hold", "everything", "--reason", "storm", "--actor", "ana")
    assert (again.exit_code, "already in place" in again.output) == (0, True)
    run("release", "everything")
    again = run("release", "everything")
    assert (again.exit_code, again.stdout) == (0, "there is no hold on everything\n")


def test_a_hold_can_end_by_itself(run: Run, store: Store) -> None:
    assert run("hold", "service", "openai", "--reason", "quota", "--for", "2h").exit_code == 0
    with store.read() as conn:
        (hold,) = holds.live(conn, store.now(conn))
    assert hold.expires_at is not None
    assert (hold.expires_at - hold.placed_at).total_seconds() == 7200


def test_a_hold_placed_again_says_what_holds_now_and_what_does_no_more(run: Run) -> None:
    run("hold", "everything", "--reason", "storm", "--actor", "ana", "--for", "2h")
    again = run("hold", "everything", "--reason", "flood", "--actor", "ana")
    now, before = again.output.splitlines()
    assert now == "everything is held by ana until it is released: flood"
    assert before.startswith("it replaces your hold until 2")
    assert before.endswith(" UTC: storm")
    (hold,) = json.loads(run("status", "--json").output)["holds"]
    assert (hold["reason"], hold["expires_at"]) == ("flood", None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["hold", "campaign", "outreach"], "Missing option '--reason'"),
        (["hold", "campaign", "--reason", "x"], "name the campaign, for example"),
        (["hold", "run", "outreach", "--reason", "x"], "use campaign/partition"),
        (["hold", "everything", "all", "--reason", "x"], "takes no name"),
        (["hold", "ship", "x", "--reason", "x"], "'service', 'campaign', 'run', 'everything'"),
        (["hold", "service", "x", "--reason", "x", "--for", "soon"], "use 90s, 30m, 2h or 1d"),
        (["hold", "service", "x", "--reason", "x", "--for", "0s"], "use 90s, 30m, 2h or 1d"),
        (["hold", "service", "x", "--reason", "x", "--for", "0s"], "'0s' is not 1s to 3660d"),
        (["hold", "service", "x", "--reason", "x", "--for", "3661d"], "'3661d' is not 1s to 3660d"),
        (["history", "--since", f"{'9' * 9999}d"], "is not 1s to 3660d"),
        (["hold", "service", "x" * 513, "--reason", "x"], "service has at most 512 characters"),
        (["hold", "campaign", "x" * 513, "--reason", "x"], "campaign has at most 512 characters"),
        (["report", "--service", "x" * 513], "the limit is 512"),
        (["start", "x", "--partition", "x" * 513], "the limit is 512"),
        (["start", "x/dach", "--partition", "y"], "x/dach names the partition 'dach' already"),
    ],
)
def test_a_wrong_command_says_what_would_be_right(
    run: Run, arguments: list[str], says: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.output


def test_the_longest_names_and_durations_are_accepted(run: Run) -> None:
    run_name = f"{'x' * 512}/{'y' * 512}"
    for kind, name in (("service", "x" * 512), ("campaign", "x" * 512), ("run", run_name)):
        held = run("hold", kind, name, "--reason", "x", "--for", "3660d")
        assert held.exit_code == 0, held.output
    assert run("history", "--since", "3660d").exit_code == 0


def test_a_blank_reason_is_refused(run: Run) -> None:
    result = run("hold", "service", "openai", "--reason", " ")
    assert (result.exit_code, "the reason is empty" in result.output) == (2, True)


def test_a_breakers_hold_needs_force_which_closes_the_breaker(run: Run, store: Store) -> None:
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name="openai")])
    fleet.breaker("openai").open()
    refused = run("release", "service", "openai")
    assert refused.exit_code == 1
    assert "held by breaker (opened by hand); use --force" in refused.output
    assert run("release", "service", "openai", "--force").exit_code == 0
    assert fleet.refresh().services["openai"].state is BreakerState.CLOSED
    assert fleet.holds_on(services=["openai"]) == []
    fleet.close()


def test_status_names_each_paused_campaign_and_why(run: Run, store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, ["openai", "apollo"])
        campaigns.save(
            conn,
            now,
            "here",
            [
                CampaignSpec("digest", "here", "none", ops={"write": "openai"}),
                CampaignSpec("finder", "here", "none", ops={"find": "apollo"}),
            ],
        )
        found = runs.ensure(conn, now, "digest", "monday")
        runs.move(conn, now, found, RunStatus.PAUSED, actor="gate")
    run("hold", "service", "openai", "--reason", "quota", "--actor", "ana")
    listed = {c["name"]: c for c in json.loads(run("status", "--json").output)["campaigns"]}
    assert listed["digest"]["status"] == "paused"
    assert listed["digest"]["runs"]["paused"] == 1
    assert listed["finder"]["status"] == "created"
    assert "service openai is held" in run("status").output


def test_a_reason_is_shown_as_it_was_given(run: Run) -> None:
    run("hold", "everything", "--reason", "[red]storm[/]", "--actor", "ana")
    assert "[red]storm[/]" in run("status").output


def test_a_store_that_was_never_made_says_what_to_do(empty_store_url: str) -> None:
    result = CliRunner().invoke(main, ["status", "--url", empty_store_url])
    assert result.exit_code == 1
    assert "run 'tidegate store upgrade'" in result.output


def test_a_file_that_is_no_database_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("these are notes, and no database\n" * 100)
    result = CliRunner().invoke(main, ["status", "--url", f"sqlite:///{tmp_path / 'notes.db'}"])
    assert result.output == (
        "Error: the store can't be read: file is not a database; name another one, or restore its "
        "backup\n"
    )


def test_postgresql_without_its_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "dagster_tidegate.store.postgres", raising=False)
    monkeypatch.delattr("dagster_tidegate.store.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    result = CliRunner().invoke(main, ["status", "--url", "postgresql://me:hunter2@db/tide"])
    assert (result.exit_code, "hunter2" in result.output) == (1, False)
    assert result.output.startswith("Error: PostgreSQL needs an extra (")
    assert result.output.endswith("pip install 'dagster-tidegate[postgres]'\n")


def test_a_part_of_a_service_is_held_and_explained_by_its_name(run: Run, store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, ["openai", "openai/batch"])
        specs = [
            CampaignSpec("nightly", "there", "none", ops={"write": "openai/batch"}),
            CampaignSpec("chat", "there", "none", ops={"write": "openai"}),
        ]
        campaigns.save(conn, now, "there", specs)
    held = run("hold", "service", "openai/batch", "--reason", "quota", "--actor", "ana")
    assert held.stdout == "service openai/batch is held by ana until it is released: quota\n"
    assert run("why", "openai/batch").output.startswith("service openai/batch (closed) is paused")
    assert run("why", "nightly").output.startswith("campaign nightly is paused")
    assert "is not paused" in run("why", "chat").output
    assert "hold service openai/batch" in run("history", "openai").output
    run("release", "service", "openai/batch")
    run("hold", "service", "openai", "--reason", "quota")
    for name in ("openai/batch", "nightly", "chat"):
        assert "service openai is held" in run("why", name).output
    refused = run("hold", "service", "openai/batch/eu", "--reason", "quota")
    assert "a part is named service/part" in refused.output


def test_a_service_that_refuses_this_client_is_tried_once_it_is_repaired(
    run: Run, store: Store
) -> None:
    deny(store, "apollo")
    with store.begin() as conn:
        spec = CampaignSpec("outreach", "here", "none", ops={"find": "apollo"})
        campaigns.save(conn, store.now(conn), "here", [spec])
    for command in (["status"], ["why", "outreach"], ["services", "apollo", "--no-policies"]):
        assert "tidegate services repaired apollo" in run(*command).output, command
    assert "apollo answered: invalid key" in run("why", "outreach").output
    refused = run("services", "repaired", "openai")
    assert (refused.exit_code, "no service with a breaker" in refused.output) == (1, True)
    assert "would be tried" in run("services", "repaired", "apollo", "--dry-run").output
    said = run("services", "repaired", "apollo", "--reason", "new key", "--actor", "ana")
    assert said.stdout == "apollo is tried with one call; if it succeeds, its campaigns resume\n"
    assert "new key" in run("history", "apollo").output
    refused = run("services", "repaired", "apollo")
    assert (refused.exit_code, "its breaker is half open" in refused.output) == (1, True)
