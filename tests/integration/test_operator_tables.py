"""The tables of the commands as people see them: in a narrow terminal, at night."""

import json
import re
from datetime import timedelta
from io import StringIO
from uuid import UUID

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from dagster_tidegate.breaker.errors import BreakerOpenError, Denied, Throttled
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.cli import main
from dagster_tidegate.cli.status import render
from dagster_tidegate.cli.tables import FirstFit
from dagster_tidegate.control import situation
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store import (
    alerts,
    breakers,
    campaigns,
    events,
    heartbeats,
    holds,
    ledger,
    runs,
    tables,
    takeovers,
)
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.takeovers import Take, TakeoverKind
from demo.__main__ import main as demo_main
from tests.integration.conftest import Run
from tests.support.databases import both_databases

SERVICES = ("apollo", "instantly", "millionverifier", "openai", "perplexity")
DAILY = Trigger(TakeoverKind.SCHEDULE, "outreach_daily", "daily-id", True)
SHAPES = (
    CampaignSpec(
        "outreach",
        "here",
        "latest",
        ops={name: name for name in SERVICES} | {"begin": "@outreach"},
        triggers=(DAILY,),
    ),
    CampaignSpec("list_hygiene", "here", "none", ops={"verify": "millionverifier"}),
    CampaignSpec("account_digest", "here", "all", ops={"write": "openai+perplexity"}),
)
SERVICE_503 = "instantly answers 503 Service Unavailable since the night; it goes on by itself"


pytestmark = pytest.mark.database_time


@pytest.fixture
def store(store: Store) -> Store:
    """A store of three campaigns: of outreach, dach is paused and iberia-latam at work."""
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, SERVICES)
        campaigns.save(conn, now, "here", SHAPES)
        for part in heartbeats.PARTS:
            heartbeats.beat(conn, now, location="here", part=part, summary="nothing to do")
        for number, partition in enumerate(["dach", "iberia-latam"]):
            run = runs.ensure(conn, now, "outreach", partition)
            attempt = runs.begin_attempt(conn, now, run, f"run-{number}", owner_is_over=False)
            far = ledger.Progress(done=30, failed=1, total=420, rate=0.5)
            ledger.write_progress(conn, now, attempt, "hand_over", far)
        dach = runs.find(conn, "outreach", "dach")
        assert dach is not None
        runs.move(conn, now, dach, RunStatus.PAUSED, reason=SERVICE_503, actor="run-0")
        runs.create(conn, now, "list_hygiene", "may", waits_for_start=True, actor="ana")
    return store


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """A function that makes the terminal so wide."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("LINES", "24")
    return lambda columns: monkeypatch.setenv("COLUMNS", str(columns))


def rows(said: str) -> list[list[str]]:
    """The cells of the rows of tables, in one line each."""
    found: list[list[str]] = []
    for line in said.splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if line.startswith("│") and cells[0]:
            found.append(cells)
        elif line.startswith("│"):  # a row goes on
            found[-1] = [" ".join(pair).strip() for pair in zip(found[-1], cells, strict=True)]
    return found


def row(said: str, first: str) -> list[str]:
    """The cells of the row that begins with a cell."""
    return next(cells for cells in rows(said) if cells[0] == first)


def header(said: str) -> str:
    """The titles of the columns of a table."""
    return next(line for line in said.splitlines() if line.startswith("┃"))


def by_hand(store: Store, target: Target, reason: str = "invoice", **more) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        source = HoldSource.OPERATOR
        holds.place(conn, now, target, source=source, reason=reason, actor="ana", **more)


def trip(store: Store, service: str) -> None:
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name=service)])
    fleet.breaker(service).open()
    fleet.close()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    ("command", "whole"),
    [
        (["status"], ["millionverifier", "account_digest", "list_hygiene", "paused"]),
        (["runs"], ["outreach/iberia-latam", "processing", "list_hygiene/may", "31/420"]),
        (["campaigns"], ["account_digest", "list_hygiene", "processing", "paused"]),
        (["services", "--no-policies"], ["millionverifier", "perplexity", "closed"]),
        (["history", "outreach"], ["outreach/iberia-latam", "processing", "dach"]),
        (["runs", "show", "outreach/dach"], ["hand_over", "31/420", "run-0"]),
    ],
)
def test_in_a_narrow_terminal_no_name_is_broken(
    run: Run, store: Store, terminal, columns: int, command: list[str], whole: list[str]
) -> None:
    by_hand(store, Target(TargetKind.SERVICE, "openai"), "not paid; finance has it, ask them first")
    trip(store, "instantly")
    terminal(columns)
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert [each for each in whole if each not in result.output] == []
    cells = [line for line in result.output.splitlines() if line.startswith("│")]
    assert max(map(len, cells)) <= columns


def test_in_a_wide_terminal_nothing_is_left_out(run: Run, terminal) -> None:
    terminal(200)
    assert "attempt" in header(run("runs").output)
    assert "catch-up" in header(run("campaigns").output)
    terminal(80)
    assert "attempt" not in header(run("runs").output)
    assert "catch-up" not in header(run("campaigns").output)


@pytest.mark.parametrize("command", [["status"], ["campaigns"]])
def test_a_campaign_says_how_many_of_its_records_failed(run: Run, command: list[str]) -> None:
    outreach = " ".join(row(run(*command).output, "outreach"))
    assert "1 paused, 2 records failed" in outreach
    assert "failed" not in " ".join(row(run(*command).output, "list_hygiene"))
    listed = json.loads(run(*command, "--json").output)
    listed = listed["campaigns"] if isinstance(listed, dict) else listed
    assert {each["name"]: each["failed_records"] for each in listed} == {
        "outreach": 2,
        "list_hygiene": 0,
        "account_digest": 0,
    }


def test_a_run_that_nobody_has_started_is_told_from_one_in_the_queue(run: Run) -> None:
    assert row(run("runs").output, "list_hygiene/may")[1] == "pending (not started)"


def test_a_service_that_a_person_holds_is_not_shown_as_well(run: Run, store: Store) -> None:
    by_hand(store, Target(TargetKind.SERVICE, "openai"))
    by_hand(store, Target(TargetKind.SERVICE, "hubspot"), "migration")
    by_hand(store, Target(TargetKind.SERVICE, "instantly"))
    trip(store, "instantly")
    for command in (["status"], ["services", "--no-policies"]):
        said = run(*command).output
        assert row(said, "openai")[1::2][:2] == ["held", "invoice (ana)"]
        assert row(said, "hubspot")[1::2][:2] == ["held", "migration (ana)"]
        why = "opened by hand; held by ana: invoice"
        assert row(said, "instantly")[1::2][:2] == ["open", why]
    listed = {each["name"]: each for each in json.loads(run("status", "--json").output)["services"]}
    assert (listed["openai"]["state"], listed["hubspot"]["state"]) == ("closed", None)
    assert [each["reason"] for each in listed["hubspot"]["holds"]] == ["migration"]


def test_a_breaker_that_is_kept_closed_is_not_shown_as_well(run: Run, store: Store) -> None:
    with store.begin() as conn:
        now = store.now(conn)
        breakers.keep_closed(conn, now, "openai", actor="ana", until=now + timedelta(hours=2))
        past = now - timedelta(seconds=1)
        breakers.keep_closed(conn, now - timedelta(hours=1), "apollo", actor="bo", until=past)
    for command in (["status"], ["services", "--no-policies"]):
        said = run(*command).output
        assert row(said, "openai")[1] == "kept closed"
        assert "kept closed by ana until 2" in row(said, "openai")[3]
        assert row(said, "apollo")[1::2][:2] == ["closed", ""]
    assert "its breaker is kept closed by ana until 2" in run("why", "openai").output
    assert "kept closed" not in run("why", "apollo").output
    [obstacle] = json.loads(run("why", "openai", "--json").output)["obstacles"]
    assert obstacle["kind"] == "kept_closed"


def test_a_service_that_is_not_enforced_says_what_it_would_have_done(run: Run, store: Store):
    rules = ServicePolicy(name="openai", consecutive_failures=1, enforce=False)
    fleet = Fleet(SqlBackend(store), [rules])
    with pytest.raises(ConnectionError):
        fleet.breaker("openai").call(_fail)
    fleet.close()
    for command in (["status"], ["services", "--no-policies"]):
        cells = row(run(*command).output, "openai")
        assert cells[1] == "closed"
        assert "not enforced: would have opened at" in cells[3]
        assert "(ConnectionError x1) and paused 2 campaigns" in cells[3]
    [service] = json.loads(run("services", "openai", "--no-policies", "--json").output)
    assert service["would_pause"] == ["account_digest", "outreach"]
    assert not json.loads(run("why", "openai", "--json").output)["paused"]
    assert "would_open" in run("history", "openai").output


@both_databases
def test_a_part_that_is_throttled_is_shown_beside_its_service_and_pauses_those_that_need_it(
    run: Run, store: Store
):
    spec = CampaignSpec("matching", "there", "none", ops={"match": "apollo/people_match"})
    with store.begin() as conn:
        campaigns.save(conn, store.now(conn), "there", [spec])
    policy = ServicePolicy(name="apollo", parts=["people_match", "enrich"])
    fleet = Fleet(SqlBackend(store), [policy])
    until = fleet.now() + timedelta(hours=4)
    with pytest.raises(BreakerOpenError):
        fleet.breaker("apollo/people_match").call(
            _throw, Throttled("600 a day", until=until, scope="endpoint")
        )
    said = run("status").output
    assert row(said, "apollo/people_match")[1] == "throttled"
    assert "600 a day" in row(said, "apollo/people_match")[3]
    assert row(said, "apollo")[1] == "closed"
    assert row(said, "apollo/enrich")[1] == "closed"
    assert row(said, "matching")[1] == "paused"
    assert row(said, "outreach")[1] != "paused"
    paused = json.loads(run("why", "matching", "--json").output)
    assert paused["paused"]
    assert not json.loads(run("why", "outreach", "--json").output)["paused"]
    listed = json.loads(run("services", "--no-policies", "--json").output)
    causes = {service["name"]: (service["state"], service["cause"]) for service in listed}
    assert causes["apollo/people_match"] == ("open", "throttled")
    assert causes["apollo"] == ("closed", None)
    fleet.close()


def test_a_part_of_a_service_that_is_denied_is_covered_by_its_hold(run: Run, store: Store):
    spec = CampaignSpec("matching", "there", "none", ops={"match": "apollo/people_match"})
    with store.begin() as conn:
        campaigns.save(conn, store.now(conn), "there", [spec])
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name="apollo", parts=["people_match"])])
    with pytest.raises(BreakerOpenError):
        fleet.breaker("apollo/people_match").call(_throw, Denied("dead key"))
    said = run("status").output
    assert row(said, "apollo")[1] == "denied"
    assert row(said, "matching")[1] == "paused"
    assert "dead key" in run("why", "matching").output
    fleet.close()


def _throw(error: Exception) -> None:
    raise error


def _fail() -> None:
    raise ConnectionError


def test_a_probe_that_is_overdue_says_for_how_long(run: Run, store: Store) -> None:
    trip(store, "instantly")
    with store.begin() as conn:
        overdue = store.now(conn) - timedelta(minutes=9, seconds=20)
        change = tables.services.update().where(tables.services.c.name == "instantly")
        conn.execute(change.values(open_until=overdue))
    assert row(run("status").output, "instantly")[4] == "overdue by 9 min"
    assert "on recovery; next probe overdue by 9 min" in run("why", "instantly").output


def test_a_hold_without_an_end_does_not_read_as_if_it_were_over(run: Run, store: Store) -> None:
    by_hand(store, Target(TargetKind.CAMPAIGN, "outreach"))
    assert row(run("status").output, "campaign outreach")[3] == "on release"


def test_why_of_a_run_that_is_not_there_says_so_and_what_a_new_one_would_meet(
    run: Run, store: Store
) -> None:
    said = run("why", "outreach/dahc").output
    assert said == (
        "there is no campaign run outreach/dahc yet; did you mean outreach/dach?\n"
        "a new run would not be paused\n"
    )
    by_hand(store, Target(TargetKind.CAMPAIGN, "outreach"))
    said = run("why", "outreach/dahc").output
    assert "\na new run would be paused: campaign outreach is held by ana (invoice)" in said
    assert "there is no" not in run("why", "outreach/dach").output


def test_why_of_a_run_that_could_not_be_launched_says_why(run: Run, store: Store) -> None:
    assert run("why", "list_hygiene/may").output == (
        "campaign run list_hygiene/may (pending) is not paused, but it was created by hand and has "
        "not been started\n"
    )
    with store.begin() as conn:
        now = store.now(conn)
        may = runs.find(conn, "list_hygiene", "may")
        assert may is not None
        runs.claim_start(conn, now, may, actor="ana")
        runs.give_start_back(conn, now, may, "it could not be launched: no code", actor="ana")
    said = run("why", "list_hygiene/may").output
    assert said == (
        "campaign run list_hygiene/may (pending) is not paused, but its last start failed; start "
        "it again\nrecorded reason: it could not be launched: no code\n"
    )
    assert "could not be launched" in row(run("runs").output, "list_hygiene/may")[-1]


def test_campaigns_that_need_an_unknown_service_are_refused(run: Run) -> None:
    result = run("campaigns", "--service", "opnai")
    assert result.exit_code == 1
    assert "no campaign needs 'opnai'; did you mean openai?" in result.output
    assert "they need apollo, instantly" in run("campaigns", "--service", "x", "--json").output
    assert run("campaigns", "--status", "failed").output == "no campaigns\n"


@both_databases
def test_history_says_from_where_and_what_else_became_what(run: Run, store: Store) -> None:
    letters = Target(TargetKind.CAMPAIGN, "outreach")
    with store.read() as conn:
        soon = store.now(conn).replace(microsecond=0) + timedelta(hours=2)
    later = soon + timedelta(days=30)
    token = events.address.set("10.0.0.7")
    try:
        by_hand(store, letters, expires_at=soon)
    finally:
        events.address.reset(token)
    by_hand(store, letters, expires_at=later)
    by_hand(store, letters, "new copy")
    lines = rows(run("history", "--kind", "hold").output)
    assert [line[2:] for line in lines] == [
        [f"placed; ends {soon:%F %T} UTC", "ana from 10.0.0.7", "invoice"],
        [f"placed -> changed; ends {soon:%F %T} UTC -> {later:%F %T} UTC", "ana", "invoice"],
        [
            f"placed -> changed; reason invoice -> new copy; ends {later:%F %T} UTC -> never",
            "ana",
            "new copy",
        ],
    ]
    shown = json.loads(run("history", "--kind", "hold", "--json").output)
    assert shown[0]["address"] == "10.0.0.7"
    assert shown[1]["before"]["expires_at"] == soon.isoformat()
    assert shown[1]["after"]["expires_at"] == later.isoformat()


def test_history_of_a_cancel_does_not_read_as_a_change_of_status(run: Run, store: Store) -> None:
    with store.begin() as conn:
        events.write(
            conn,
            store.now(conn),
            kind=events.EventKind.CANCEL,
            name="outreach/dach",
            from_status="pending",
            to_status="requested",
            actor="ana",
        )
    said = run("history", "--kind", "cancel").output
    assert "cancel outreach/dach" in said
    assert "requested (was pending)" in said


def test_history_has_what_the_gate_took_over_of_a_service_or_campaign(
    run: Run, store: Store
) -> None:
    taken = [
        (TakeoverKind.POOL, "openai+perplexity", None),
        (TakeoverKind.POOL, "instantly@outreach", None),
        (TakeoverKind.POOL, "openai2", None),
        (TakeoverKind.SCHEDULE, "outreach_daily", "outreach"),
        (TakeoverKind.SENSOR, "digest_inbox", "account_digest"),
    ]
    with store.begin() as conn:
        for kind, label, campaign in taken:
            name = f"{label}-id" if campaign else label
            take = Take(kind, name, label, campaign, location="here", former="5", set_to="0")
            takeovers.take(conn, store.now(conn), [take], newest=takeovers.newest_id(conn))
    for name, about in {
        "openai": ["pool openai+perplexity"],
        "instantly": ["pool instantly@outreach"],
        "outreach": ["pool instantly@outreach", "schedule outreach_daily"],
        "account_digest": ["sensor digest_inbox"],
        "millionverifier": [],
    }.items():
        found = json.loads(run("history", name, "--kind", "takeover", "--json").output)
        assert [each["name"] for each in found] == about


def test_the_screen_has_what_is_wrong_first_and_says_what_is_cut(store: Store) -> None:
    by_hand(store, Target(TargetKind.SERVICE, "openai"), "not paid; finance has it, ask them first")
    with store.begin() as conn:
        long_ago = store.now(conn) - timedelta(hours=1)
        heartbeats.beat(conn, long_ago, location="here", part="resume", summary="")
    with store.read() as conn:
        now = store.now(conn)
        seen, told = situation.read(conn, now), alerts.counts(conn, now)
    tellings = [render(seen, told, short=short) for short in (False, True)]

    def shown(height: int) -> list[str]:
        console = Console(width=80, height=height, file=StringIO(), force_terminal=True)
        with console.capture() as captured:
            console.print(FirstFit(tellings, instead="tidegate status"), end="")
        return re.sub(r"\x1b\[[0-9;]*m", "", captured.get()).splitlines()

    whole, counted, cut = shown(60), shown(24), shown(12)
    for lines in (whole, counted, cut):
        assert lines[0].startswith("The gate of here is stale")
        order = ["stale", "Services", "openai", "Holds", "service openai"]
        places = [next(n for n, line in enumerate(lines) if each in line) for each in order]
        assert places == sorted(places)
    assert any("apollo" in line for line in whole if line.startswith("│"))
    assert counted[-2:] == [
        "4 services closed: apollo, instantly, millionverifier, perplexity",
        "1 campaigns not paused: list_hygiene",
    ]
    assert len(cut) == 12
    assert cut[-1] == f"{len(counted) - 11} more lines: enlarge the window or run tidegate status"


def completed(store_url: str, *words: str) -> list[str]:
    """What the shell offers for the last of some words."""
    environment = {
        "_TIDEGATE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["tidegate", *words]),
        "COMP_CWORD": str(len(words)),
        "TIDEGATE_STORE_URL": store_url,
    }
    result = CliRunner().invoke(main, [], env=environment, prog_name="tidegate")
    return [line.partition(",")[2] for line in result.output.splitlines() if line]


def test_the_shell_completes_names_of_services_and_campaigns(store: Store) -> None:
    url = store.url.render_as_string(hide_password=False)
    assert completed(url, "services", "m") == ["millionverifier"]
    assert completed(url, "runs", "list", "o") == ["outreach"]
    assert completed(url, "why", "o") == ["openai", "outreach"]
    assert completed(url, "hold", "service", "o") == ["openai"]
    assert completed(url, "start", "a") == ["account_digest"]
    assert completed(url, "campaigns", "--service", "ap") == ["apollo"]
    assert completed("sqlite:////nowhere/at/all.db", "why", "o") == []


@pytest.mark.parametrize(
    ("program", "command"),
    [
        (main, ["serve", "--port"]),
        (demo_main, ["up", "--port"]),
        (demo_main, ["sandbox", "serve", "--port"]),
    ],
)
def test_an_invalid_port_is_refused_as_such(program: click.Group, command: list[str]) -> None:
    for wrong in ("abc", "70000"):
        result = CliRunner().invoke(program, [*command, wrong])
        assert result.exit_code == 2, result.output
    assert "'abc' is not a valid port" in CliRunner().invoke(program, [*command, "abc"]).output


def test_without_a_workspace_services_say_what_works_without_one(run: Run, tmp_path) -> None:
    result = run("services", "--workspace", str(tmp_path / "workspace.yaml"))
    assert result.exit_code == 1
    assert "--no-policies works without one" in result.output


def test_without_a_dagster_home_it_is_said_in_one_line(
    run: Run, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workspace.yaml").touch()
    for command in (["services"], ["start", "list_hygiene"], ["why", str(UUID(int=1))]):
        result = run(*command)
        assert result.exit_code == 1, result.output
        assert "$DAGSTER_HOME is not set" in result.output
        assert len(result.output.splitlines()) == 1
