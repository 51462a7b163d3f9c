"""What an operator sees on the command line, of a store with a day's work in it."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli import main
from dagster_tidegate.control.models import CampaignDetails, Released
from dagster_tidegate.holds import EVERYTHING, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import breakers, campaigns, heartbeats, holds, ledger, runs
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.ledger import Entry
from dagster_tidegate.store.takeovers import TakeoverKind
from tests.integration.conftest import Run
from tests.support.databases import both_databases
from tests.support.sqlite_stores import new_sqlite_url

EVIL = "[red]x[/] \x1b[31m \u202e"


pytestmark = pytest.mark.database_time


@pytest.fixture
def store(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of two campaigns: of letters, monday was killed, tuesday is paused."""
    monkeypatch.delenv("TIDEGATE_ENABLED", raising=False)
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, ["mail", "maps"])
        daily = Trigger(TakeoverKind.SCHEDULE, "daily", "daily-id", True)
        letters = CampaignSpec(
            "letters", "here", "latest", ops={"a": "@letters", "send": "mail"}, triggers=(daily,)
        )
        guide = CampaignSpec("guide", "here", "none", ops={"look_up": "maps"})
        campaigns.save(conn, now, "here", [letters, guide])
        for part in heartbeats.PARTS:
            heartbeats.beat(conn, now, location="here", part=part, summary="nothing to do")
        began = now - timedelta(minutes=9)
        monday = runs.ensure(conn, began, "letters", "monday")
        killed = runs.begin_attempt(conn, began, monday, "run-1", owner_is_over=False)
        ledger.write(
            conn,
            began,
            killed,
            "send",
            [
                Entry("ada", 0, RecordStatus.DONE, {"id": 1}),
                Entry("alan", 1, RecordStatus.FAILED, error=f"404 {EVIL}"),
                Entry("grace", 2, RecordStatus.STARTED),
            ],
        )
        far = ledger.Progress(done=1, failed=1, total=10, rate=0.5)
        ledger.write_progress(conn, now, killed, "send", far)
        tuesday = runs.ensure(conn, now, "letters", "tuesday")
        runs.begin_attempt(conn, now, tuesday, "run-2", owner_is_over=False)
        found = runs.find(conn, "letters", "tuesday")
        assert found is not None
        runs.move(conn, now, found, RunStatus.PAUSED, reason="Paused at 3/10", actor="run-2")
    return store


def as_json(result: Result):
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def trip(store: Store, service: str) -> None:
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name=service)])
    fleet.breaker(service).open()
    fleet.close()


@both_databases
def test_why_names_each_hold_with_who_why_since_and_until(run: Run, store: Store) -> None:
    trip(store, "mail")
    run("hold", "campaign", "letters", "--reason", "new copy", "--actor", "ana", "--for", "2h")
    answer = as_json(run("why", "letters/tuesday", "--json"))
    assert (answer["status"], answer["paused"]) == ("paused", True)
    of_breaker, of_ana = answer["holds"]
    assert (of_breaker["source"], of_breaker["reason"]) == ("breaker", "opened by hand")
    assert of_breaker["retry_at"] is not None
    assert (of_ana["actor"], of_ana["reason"], of_ana["retry_at"]) == ("ana", "new copy", None)
    assert answer["retry_at"] == of_ana["expires_at"]
    assert answer["last_word"] == "Paused at 3/10"
    said = run("why", "letters/tuesday").output
    assert said.startswith("campaign run letters/tuesday is paused: mail is open (opened by hand)")
    assert "by ana" in said
    assert "on recovery; next probe in" in said


def test_why_of_what_nothing_holds_says_so(run: Run) -> None:
    assert run("why", "guide").output == "campaign guide (created) is not paused\n"
    assert run("why", "maps").output == "service maps (closed) is not paused\n"


def test_why_finds_a_campaign_run_by_its_dagster_run(run: Run, store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        found = runs.ensure(conn, now, "guide", "north")
        id_ = "0f1e2d3c-0000-4000-8000-000000000001"
        runs.begin_attempt(conn, now, found, id_, owner_is_over=False)
    answer = as_json(run("why", id_, "--json"))
    assert (answer["target_name"], answer["status"]) == ("guide/north", "processing")


def test_why_of_an_asset_is_that_of_its_unfinished_run(run: Run, store: Store) -> None:
    spec = CampaignSpec(
        "shop:assets",
        "shop",
        "none",
        ops={"welcome": "mail", "places": "maps"},
        assets={"welcome": frozenset({"crm/welcome"}), "places": frozenset({"places"})},
    )
    with store.begin() as conn:
        now = store.now(conn)
        campaigns.save(conn, now, "shop", [spec])
        runs.ensure(conn, now, "shop:assets", "monday", ["places"])
        found = runs.ensure(conn, now, "shop:assets", "monday", ["crm/welcome"])
    trip(store, "mail")
    answer = as_json(run("why", "crm/welcome", "--json"))
    assert (answer["target_name"], answer["status"]) == (found.name, "pending")
    assert answer["paused"]
    assert not as_json(run("why", "places", "--json"))["paused"]
    with store.begin() as conn:
        runs.move(conn, now, found, RunStatus.CANCELLED, actor="test")
    said = run("why", "crm/welcome").output
    assert "'crm/welcome' is an asset: name what it needs (mail)" in said.replace("\n", " ")


def test_a_campaign_is_no_run_and_one_is_named(run: Run) -> None:
    result = run("why", "letters", "--kind", "run")
    assert result.exit_code == 1
    assert "'letters' is a campaign; a run is CAMPAIGN/PARTITION, such as letters/" in result.output
    assert "such as guide/PARTITION" in run("why", "guide", "--kind", "run").output


def test_why_of_a_misspelt_name_says_what_would_be_right(run: Run) -> None:
    result = run("why", "leters")
    assert (result.exit_code, "did you mean letters?" in result.output) == (1, True)


def test_a_stale_gate_is_told_wherever_one_looks(run: Run, store: Store) -> None:
    with store.begin() as conn:
        long_ago = store.now(conn) - timedelta(hours=1)
        heartbeats.beat(conn, long_ago, location="here", part="resume", summary="")
    assert as_json(run("status", "--json"))["gate_stale"] is True
    for command in (["status"], ["why", "letters"], ["campaigns"]):
        said = run(*command).output
        assert re.search(
            r"gate of here is stale: no tick of its sensors \(resume\) has finished since", said
        )


def test_the_kill_switch_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_ENABLED", "false")
    assert "TIDEGATE_ENABLED is false here" in run("status").output
    assert "TIDEGATE_ENABLED is false here" in run("why", "letters").output
    monkeypatch.setenv("TIDEGATE_ENABLED", "maybe")
    result = run("status")
    assert (result.exit_code, "use true or false" in result.output) == (1, True)


def test_campaigns_are_listed_with_what_they_need(run: Run, store: Store) -> None:
    listed = {c["name"]: c for c in as_json(run("campaigns", "--json"))}
    assert listed["letters"]["services"] == ["mail"]
    assert listed["letters"]["runs"]["paused"] == 1
    assert listed["letters"]["triggers"] == [{"kind": "schedule", "name": "daily"}]
    assert listed["guide"]["status"] == "created"
    assert [c["name"] for c in as_json(run("campaigns", "--service", "maps", "--json"))] == [
        "guide"
    ]
    trip(store, "mail")
    paused = as_json(run("campaigns", "--status", "paused", "--json"))
    assert [c["name"] for c in paused] == ["letters"]
    assert "mail is open" in run("campaigns").output


@both_databases
def test_runs_are_listed_with_how_far_they_are(run: Run) -> None:
    listed = {r["name"]: r for r in as_json(run("runs", "letters", "--json"))}
    assert set(listed) == {"letters/monday", "letters/tuesday"}
    [progress] = listed["letters/monday"]["progress"]
    assert (progress["done"], progress["failed"], progress["total"]) == (1, 1, 10)
    assert (progress["records_per_second"], progress["seconds_left"]) == (0.5, 16)
    shown = run("runs").output
    assert re.search(r"2/10 .* 0.5/s .* 16 s", shown)
    assert "Paused at 3/10" in shown
    assert [r["name"] for r in as_json(run("runs", "--status", "paused", "--json"))] == [
        "letters/tuesday"
    ]
    assert len(as_json(run("runs", "--limit", "1", "--json"))) == 1
    assert run("runs", "guide").output == "no campaign runs\n"
    assert (
        run("hold", "campaign", "letters", "--reason", "new copy", "--actor", "bob").exit_code == 0
    )
    assert "letters is held by bob (new copy)" in " ".join(run("runs").output.split())
    assert "did you mean letters?" in run("runs", "leters").output


def test_a_run_shows_what_is_in_doubt_only_when_its_attempt_is_over(run: Run, store: Store) -> None:
    at_work = as_json(run("runs", "show", "letters/monday", "--json"))
    assert (at_work["in_doubt"], at_work["in_hand_count"]) == ([], 1)
    assert "records in flight: 1" in run("runs", "show", "letters/monday").output
    with store.begin() as conn:
        found = runs.find(conn, "letters", "monday")
        assert found is not None
        runs.move(conn, store.now(conn), found, RunStatus.FAILED, reason="killed", actor="dagster")
    killed = as_json(run("runs", "show", "letters/monday", "--json"))
    assert [(r["op"], r["key"], r["attempt"]) for r in killed["in_doubt"]] == [("send", "grace", 1)]
    assert [r["key"] for r in killed["failed"]] == ["alan"]
    assert [(a["number"], a["outcome"]) for a in killed["attempts"]] == [(1, "failed")]
    assert killed["why"]["status"] == "failed"
    said = run("runs", "show", "letters/monday").output
    assert re.search(r"In doubt.*grace.*Failed records \(1 of 1.*alan", said, re.DOTALL)


def test_what_is_in_doubt_and_in_hand_is_counted_beyond_the_limit(run: Run, store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        monday = runs.find(conn, "letters", "monday")
        assert monday is not None
        runs.move(conn, now, monday, RunStatus.FAILED, reason="killed", actor="dagster")
        for dagster_run, keys in {"run-3": ["hopper", "noether"], "run-4": ["curie"]}.items():
            attempt = runs.begin_attempt(conn, now, monday, dagster_run, owner_is_over=True)
            entries = [Entry(key, 3, RecordStatus.STARTED) for key in keys]
            ledger.write(conn, now, attempt, "send", entries)
    found = as_json(run("runs", "show", "letters/monday", "--limit", "1", "--json"))
    assert [record["key"] for record in found["in_doubt"]] == ["hopper"]
    assert (found["in_doubt_count"], found["in_hand_count"]) == (3, 1)
    said = run("runs", "show", "letters/monday", "--limit", "1").output
    assert re.search(r"In doubt \(1 of 3\).*records in flight: 1\n", said, re.DOTALL)


def test_a_run_that_is_not_there_says_what_would_be_right(run: Run) -> None:
    result = run("runs", "show", "letters/munday")
    assert result.exit_code == 1
    assert re.search("did you mean .*letters/monday", result.output)


def test_history_says_who_changed_what_and_why(run: Run) -> None:
    run("hold", "campaign", "letters", "--reason", "new copy", "--actor", "ana")
    run("release", "campaign", "letters", "--actor", "bo")
    run("hold", "service", "maps", "--reason", "quota", "--actor", "ana")
    of_letters = as_json(run("history", "letters", "--kind", "hold", "--json"))
    assert [(e["to_status"], e["actor"]) for e in of_letters] == [
        ("placed", "ana"),
        ("released", "bo"),
    ]
    everything = as_json(run("history", "letters", "--json"))
    assert {"letters/monday", "campaign letters"} <= {e["name"] for e in everything}
    assert "service maps" not in {e["name"] for e in everything}
    assert [e["name"] for e in as_json(run("history", "--limit", "1", "--json"))] == [
        "service maps"
    ]
    for neighbour in ("Letters", "etters", "monday"):
        refused = run("history", neighbour, "--json")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert f"no service, campaign or campaign run is named {neighbour!r}" in refused.stderr
    recent = as_json(run("history", "--since", "5m", "--json"))
    assert "letters/monday" not in {e["name"] for e in recent}
    assert "new copy" in run("history").output


def test_the_history_of_a_name_that_only_it_knows_can_be_read(run: Run) -> None:
    misspelt = run("history", "leters")
    assert (misspelt.exit_code, "did you mean letters?" in misspelt.output) == (1, True)
    run("hold", "service", "gone", "--reason", "flood")
    assert "flood" in run("history", "gone").output
    for quiet in (["gone", "--kind", "cancel"], ["maps"], ["letters/friday"], ["everything"]):
        result = run("history", *quiet)
        assert (result.exit_code, result.output) == (0, "no changes\n")


@both_databases
def test_services_are_listed_with_what_the_fleet_saw(run: Run, store: Store) -> None:
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name="mail", consecutive_failures=2)])
    mail = fleet.breaker("mail")
    mail.call(len, "four")
    for _ in range(5):
        with suppress(ConnectionError, BreakerOpenError):
            mail.call(_fail)
    fleet.close()
    listed = {s["name"]: s for s in as_json(run("services", "--no-policies", "--json"))}
    assert (listed["mail"]["state"], listed["maps"]["state"]) == ("open", "closed")
    numbers = listed["mail"]["numbers"]
    assert (numbers["ok"], numbers["trips"]) == (1, 1)
    assert numbers["failed"] >= 2
    assert listed["maps"]["numbers"]["failed"] == 0
    assert numbers["verdicts"]["success"] == 1
    assert numbers["verdicts"]["failure"] == numbers["failed"]
    assert "Verdicts, last hour" in run("services", "mail", "--no-policies").output
    assert "ConnectionError x" in run("services", "--no-policies").output
    unknown = run("services", "male", "--no-policies")
    assert unknown.exit_code == 1
    assert "known: mail, maps" in unknown.output


def test_a_breaker_is_kept_closed_with_a_reason_until_it_may_trip_again(
    run: Run, store: Store
) -> None:
    trip(store, "mail")
    keep = ["services", "keep-closed", "mail", "--reason", "false alarms", "--actor", "ana"]
    planned = run(*keep, "--dry-run").output
    assert "the breaker of mail would be kept closed by ana until" in planned
    assert "campaign letters resumes" in planned
    with store.read() as conn:
        assert breakers.read_one(conn, "mail").state == "open"
    made = as_json(run(*keep, "--for", "2h", "--json"))
    assert (made["dry_run"], made["service"]["state"]) == (False, "closed")
    assert (made["service"]["kept_closed_by"], made["service"]["holds"]) == ("ana", [])
    assert "kept closed by ana" in run("services", "mail", "--no-policies").output
    assert "kept closed by ana" in run("why", "mail").output
    changes = as_json(run("history", "mail", "--kind", "service", "--json"))
    kept = changes[-1]
    assert (kept["to_status"], kept["reason"]) == ("kept_closed", "false alarms")
    let = ["services", "let-trip", "mail", "--actor", "bo"]
    assert "could trip again" in run(*let, "--dry-run").output
    assert run(*let).output == "the breaker of mail can trip again\n"
    assert run(*let).output == "the breaker of mail is not kept closed\n"
    assert as_json(run("history", "mail", "--json"))[-1]["actor"] == "bo"
    for command in (keep, let):
        wrong = run(*[word.replace("mail", "mial") for word in command])
        assert (wrong.exit_code, "did you mean mail?" in wrong.output) == (1, True)
    assert run(*keep, "--for", "2h", "--until", "2999-01-01T12:00Z").exit_code == 2
    assert run(*keep, "--until", "2020-01-01T12:00Z").exit_code == 1


def test_json_is_that_of_the_api(run: Run) -> None:
    run("hold", "campaign", "letters", "--reason", "new copy", "--actor", "ana")
    listed = {c["name"]: c for c in as_json(run("campaigns", "--json"))}
    shown = {c["name"]: c for c in as_json(run("status", "--json"))["campaigns"]}
    assert listed == shown
    letters = listed["letters"]
    assert CampaignDetails.model_validate(letters).name == "letters"
    assert [hold["reason"] for hold in letters["holds"]] == ["new copy"]
    assert letters["why"]["paused"] is True
    released = as_json(run("release", "campaign", "letters", "--json"))
    assert Released.model_validate(released).still_held_by == []


def test_a_dry_run_says_what_would_be_affected_and_changes_nothing(run: Run, store: Store) -> None:
    said = run("hold", "service", "mail", "--reason", "quota", "--dry-run").output
    assert "service mail would be held" in said
    assert "campaign letters pauses; 1 processing run will stop after the current record" in said
    assert "stopped: daily" in said
    assert "guide" not in said
    planned = as_json(run("hold", "everything", "--reason", "x", "--dry-run", "--json"))
    assert [c["campaign"] for c in planned["campaigns"]] == ["guide", "letters"]
    with store.read() as conn:
        assert holds.live(conn, store.now(conn)) == []
    assert as_json(run("history", "--kind", "hold", "--json")) == []


def test_a_dry_run_of_a_release_says_what_stays_held(run: Run, store: Store) -> None:
    trip(store, "mail")
    run("hold", "everything", "--reason", "storm", "--actor", "ana")
    said = run("release", "everything", "--dry-run").output
    assert "would be released: everything, held by ana (storm)" in said
    assert "campaign guide resumes" in said
    assert "campaign letters stays paused: mail is open" in said
    forced = run("release", "service", "mail", "--dry-run", "--force").output
    assert "would be released: service mail, held by breaker" in forced
    with store.read() as conn:
        assert len(holds.live(conn, store.now(conn))) == 2
        assert breakers.read_one(conn, "mail").state == "open"
    refused = run("release", "service", "mail", "--dry-run")
    assert (refused.exit_code, "use --force" in refused.output) == (1, True)


def test_a_release_says_what_stays_paused_and_why(run: Run, store: Store) -> None:
    trip(store, "mail")
    run("hold", "campaign", "letters", "--reason", "new copy", "--actor", "ana")
    paused = "campaign letters stays paused: mail is open (opened by hand)"
    said = run("release", "campaign", "letters").output
    assert ("released: campaign letters" in said, paused in said) == (True, True)
    again = run("release", "campaign", "letters").output
    assert ("no operator holds campaign letters" in again, paused in again) == (True, True)
    assert paused in run("release", "everything").output
    refused = run("release", "campaign", "letters", "--force")
    assert (refused.exit_code, "use it with a service" in refused.output) == (2, True)


def test_a_hold_that_nothing_acts_on_says_so(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.begin() as conn:
        long_ago = store.now(conn) - timedelta(hours=1)
        heartbeats.beat(conn, long_ago, location="here", part="pause", summary="")
    assert "gate of here is stale" in run("hold", "service", "mail", "--reason", "x").stderr
    monkeypatch.setenv("TIDEGATE_ENABLED", "false")
    assert "TIDEGATE_ENABLED is false here" in run("release", "service", "mail").stderr


def test_a_dry_run_on_one_run_says_what_becomes_of_it(run: Run) -> None:
    said = run("hold", "run", "letters/monday", "--reason", "x", "--dry-run").output
    assert "run letters/monday pauses; 1 processing run will stop after the current record" in said


def test_a_hold_can_end_at_a_time(run: Run) -> None:
    run("hold", "service", "mail", "--reason", "x", "--until", "2999-01-01T12:00+02:00")
    [hold] = as_json(run("status", "--json"))["holds"]
    assert hold["expires_at"] == "2999-01-01T10:00:00+00:00"
    for wrong in ("2999-01-01T12:00", "tomorrow", "2999-99-01T12:00Z", "9999-12-31T23:59-10:00"):
        result = run("hold", "service", "mail", "--reason", "x", "--until", wrong)
        assert (result.exit_code, "is not a time with time zone" in result.output) == (2, True)
    past = run("hold", "service", "mail", "--reason", "x", "--until", "2020-01-01T12:00Z")
    assert (past.exit_code, "at 2020-01-01 12:00:00 UTC: it is" in past.output) == (1, True)
    both = ["--until", "2999-01-01T12:00Z", "--for", "2h"]
    assert run("hold", "service", "mail", "--reason", "x", *both).exit_code == 2


def test_a_hold_on_what_nobody_knows_is_placed_and_noted(run: Run) -> None:
    result = run("hold", "campaign", "leters", "--reason", "x", "--actor", "ana")
    assert (result.exit_code, result.stdout) == (
        0,
        "campaign leters is held by ana until it is released: x\n",
    )
    assert "no campaign named 'leters' is known yet; did you mean letters?" in result.stderr
    assert run("hold", "campaign", "letters", "--reason", "x").stderr == ""
    early = run("hold", "run", "letters/mondya", "--reason", "x").stderr
    assert "campaign letters has no run 'mondya' yet; did you mean monday?" in early
    refused = run("hold", "campaign", "letters/monday", "--reason", "x")
    assert (refused.exit_code, "is a campaign run, not a campaign" in refused.output) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["hold", "service", "mail", "--reason", "a\x1b[31mb"],
        ["hold", "service", "mail", "--reason", "\u202eevil"],
        ["hold", "service", "mail", "--reason", "x" * 1001],
        ["hold", "service", "m\nail", "--reason", "x"],
        ["hold", "service", "mail", "--reason", "x", "--actor", "a\x00b"],
        ["hold", "campaign", "x" * 1026, "--reason", "x"],
        ["release", "service", "x\x07"],
        ["why", "x\x1b]0;title\x07"],
        ["runs", "show", "a/b\r"],
        ["history", "\u2066x"],
    ],
)
def test_text_that_could_do_harm_is_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, [*arguments, "--url", "sqlite://"])
    assert result.exit_code == 2, result.output
    assert not re.search("[\x00\x07\x1b\u202e\u2066]", result.output)


def test_what_is_in_the_store_can_do_nothing_to_a_terminal(run: Run, store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        target = Target(TargetKind.CAMPAIGN, "letters")
        for name in (target, EVERYTHING):
            holds.place(conn, now, name, source=HoldSource.OPERATOR, reason=EVIL, actor=EVIL)
        breakers.ensure(conn, now, [EVIL])
        campaigns.save(conn, now, "there", [CampaignSpec(EVIL, EVIL, "none", ops={EVIL: EVIL})])
        runs.ensure(conn, now, EVIL, EVIL)
    for command in (
        ["status"],
        ["why", "letters"],
        ["campaigns"],
        ["runs"],
        ["runs", "show", "letters/monday"],
        ["history"],
        ["services", "--no-policies"],
        ["services", "no such", "--no-policies"],
        ["hold", "everything", "--reason", "x", "--dry-run"],
        ["release", "campaign", "letters", "--dry-run"],
        ["release", "campaign", "letters"],
    ):
        said = run(*command).output
        assert not re.search("[\x1b\u202e]", said), command
    assert "[red]x[/] \\x1b[31m \\u202e" in run("why", "letters").output


def test_watch_shows_what_changes_until_it_is_stopped(store: Store) -> None:
    url = store.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "dagster_tidegate.cli", "status", "--watch", "--json"]
    with subprocess.Popen(
        [*command, "--interval", "0.2", "--url", url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["holds"] == []
        with store.begin() as conn:
            now = store.now(conn)
            holds.place(
                conn, now, EVERYTHING, source=HoldSource.OPERATOR, reason="storm", actor="ana"
            )
        seen = next(line for line in watching.stdout if json.loads(line)["holds"])
        assert json.loads(seen)["holds"][0]["reason"] == "storm"
        os.kill(watching.pid, signal.SIGINT)
        _, errors = watching.communicate(timeout=30)
    assert (watching.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["why", "x"],
        ["campaigns"],
        ["runs"],
        ["history"],
        ["services", "--no-policies"],
        ["hold", "everything", "--reason", "x"],
        ["release", "everything"],
    ],
)
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://127.0.0.1:9/none", "the store is unreachable"),
        ("sqlite:////nowhere/at/all.db", "the store is unreachable"),
        ("mysql://127.0.0.1/x", "the store can't be mysql: use sqlite or postgresql"),
        ("what", "the store's URL is invalid"),
    ],
)
def test_a_store_that_can_t_be_read_is_told_in_one_line(
    command: list[str], url: str, says: str
) -> None:
    result = CliRunner().invoke(main, [*command, "--url", url])
    assert result.exit_code == 1
    assert says in result.output
    assert len(result.output.splitlines()) == 1


def test_beside_a_running_deployment_no_variable_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ".tidegate" / "home"
    home.mkdir(parents=True)
    new_sqlite_url(home / "tidegate.db")
    monkeypatch.delenv("TIDEGATE_STORE_URL", raising=False)
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(main, ["status"]).exit_code == 0


def _fail() -> None:
    raise ConnectionError("refused")
