"""`tidegate records` and the API: what failed, done again by one run that does only these."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_tidegate import BreakerResource, ServiceConfig
from dagster_tidegate.control import operations
from dagster_tidegate.control import records as control
from dagster_tidegate.control.operations import UnderWayError
from dagster_tidegate.control.situation import read
from dagster_tidegate.control.starting import StartVerdict, verdict
from dagster_tidegate.control.why import why
from dagster_tidegate.dagster_api import CONTINUES_TAG
from dagster_tidegate.dagster_api.lineage import ONLY_MARKED, RECORDS_TAG
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import campaigns, events, history, records, runs
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.records import RecordState, Selection
from tests.integration.api import api
from tests.integration.conftest import Run
from tests.support.databases import both_databases
from tests.support.record_statuses import record_statuses

SPEC = CampaignSpec("outreach", "here", "none", ops={"send": "mail"})
LEADS = ["ada", "alan", "grace", "kurt", "emmy"]
GOES_ON = {CONTINUES_TAG: "true"}
DONE, FAILED = RecordStatus.DONE, RecordStatus.FAILED


class Outreach:
    """A campaign run of two loops, the second behind the first, and its launcher."""

    def __init__(self, instance: dg.DagsterInstance, breakers: BreakerResource) -> None:
        self.instance, self.breakers = instance, breakers
        self.store = breakers.store
        self.leads = list(LEADS)
        self.bad: set[str] = set()
        self.sent: list[str] = []
        self.noted: list[str] = []
        self.keys: list[str] = []
        self.is_reachable = True
        with self.store.begin() as conn:
            campaigns.save(conn, self.store.now(conn), "here", [SPEC])

    def run(self, **tags: str) -> dg.ExecuteInProcessResult:
        @dg.op
        def send(context: dg.OpExecutionContext, breakers: BreakerResource) -> list:
            records = breakers.records(context, self.leads, key=str)
            for record in records:
                with record:
                    if record.key in self.bad:
                        raise ValueError(f"no mailbox of {record.key}@example.org")
                    self.sent.append(record.key)
                    self.keys.append(record.idempotency_key)
                    record.result = record.key
            return records.results()

        @dg.op
        def note(context: dg.OpExecutionContext, breakers: BreakerResource, sent: list) -> None:
            for record in breakers.records(context, sent, key=str):
                with record:
                    self.noted.append(record.key)

        @dg.job(partitions_def=dg.StaticPartitionsDefinition(["leads-1"]))
        def outreach() -> None:
            note(send())

        result = outreach.execute_in_process(
            instance=self.instance,
            resources={"breakers": self.breakers},
            partition_key="leads-1",
            raise_on_error=False,
            tags=tags,
        )
        with self.store.begin() as conn:  # as the gate does
            status = RunStatus.COMPLETED if result.success else RunStatus.FAILED
            runs.move(conn, self.store.now(conn), self.campaign_run, status, actor="gate")
        return result

    def launch_marked(self, job: str, partition: str, **options: Any) -> str:
        if not self.is_reachable:
            raise ConnectionError("no code server")
        assert (job, partition) == ("outreach", "leads-1")
        assert self.instance.get_run_by_id(options["follows"]) is not None
        self.sent.clear()
        self.noted.clear()
        return self.run(**options["tags"], **{RECORDS_TAG: ONLY_MARKED}).run_id

    @property
    def campaign_run(self) -> runs.CampaignRun:
        with self.store.read() as conn:
            run = runs.find(conn, "outreach", "leads-1")
        assert run is not None
        return run

    @property
    def decision(self) -> StartVerdict:
        with self.store.read() as conn:
            situation = read(conn, self.store.now(conn))
        target = Target(TargetKind.CAMPAIGN_RUN, "outreach/leads-1")
        return verdict(why(situation, target, self.campaign_run))

    def retry(
        self, *states: RecordState, run_id: str | None = None, **options: Any
    ) -> control.Again:
        selection = Selection(states, **options)
        return control.retry(
            self.store, self, SPEC, self.campaign_run, selection, self.decision,  # pyright: ignore[reportArgumentType] -- it has what is called
            reason="tests", actor="ana", run_id=run_id,
        )  # fmt: skip

    def statuses(self, op: str = "send") -> dict[str, RecordStatus]:
        with self.store.read() as conn:
            return dict(record_statuses(conn, self.campaign_run.id, op))


@pytest.fixture
def outreach(store_url: str, tmp_path: Path) -> Iterator[Outreach]:
    breakers = BreakerResource(services=[ServiceConfig(name="mail")], store_url=store_url)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield Outreach(instance, breakers)
    breakers.fleet.close()
    breakers.store.dispose()


@both_databases
def test_one_run_does_the_chosen_records_and_what_follows_from_them_and_nothing_else(
    outreach: Outreach,
) -> None:
    outreach.bad = {"ada", "kurt"}
    outreach.run()
    first_keys = dict(zip(outreach.sent, outreach.keys, strict=True))
    outreach.bad = set()
    outreach.leads.append("new")
    again = outreach.retry(keys=["ada"], error="NO MAILBOX")
    assert again.marked == {"send": 1}
    assert outreach.sent == ["ada"]
    assert outreach.noted == ["ada"]
    assert outreach.statuses() == {**dict.fromkeys(LEADS, DONE), "kurt": FAILED}
    assert outreach.campaign_run.status is RunStatus.COMPLETED
    outreach.retry(RecordState.DONE, keys=["alan"])
    assert outreach.sent == ["alan"]
    assert outreach.keys[-1] == first_keys["alan"]
    outreach.sent.clear()
    outreach.run(**GOES_ON)
    assert sorted(outreach.sent) == ["kurt", "new"]
    outreach.sent.clear()
    outreach.run()
    assert outreach.sent == outreach.leads, "a new run does all of them"
    assert outreach.keys[-5] != first_keys["alan"]


def test_a_campaign_run_is_not_completed_while_records_were_never_tried(outreach: Outreach) -> None:
    outreach.leads = [f"lead-{n}" for n in range(40)]
    outreach.bad = set(outreach.leads)
    outreach.run()
    failed = list(outreach.statuses())
    assert len(failed) == 10
    outreach.bad = set()
    outreach.retry()
    assert outreach.sent == failed
    assert outreach.campaign_run.status is RunStatus.FAILED
    outreach.sent.clear()
    outreach.run(**GOES_ON)
    assert outreach.sent == [lead for lead in outreach.leads if lead not in failed]
    assert outreach.statuses() == dict.fromkeys(outreach.leads, DONE)
    assert outreach.statuses("note") == dict.fromkeys(outreach.leads, DONE)
    assert outreach.campaign_run.status is RunStatus.COMPLETED


def test_a_run_that_can_not_be_launched_marks_nothing(outreach: Outreach) -> None:
    outreach.bad = {"ada"}
    outreach.run()
    before = outreach.statuses()
    outreach.is_reachable = False
    with pytest.raises(ConnectionError):
        outreach.retry()
    assert outreach.statuses() == before
    assert outreach.campaign_run.status is RunStatus.COMPLETED
    outreach.is_reachable = True
    assert outreach.retry().marked == {"send": 1}


@pytest.mark.parametrize("cleaned_up", [False, True])
def test_a_retry_whose_process_died_before_the_launch_goes_on_when_it_is_repeated(
    outreach: Outreach, monkeypatch: pytest.MonkeyPatch, cleaned_up: bool
) -> None:
    outreach.bad = {"ada"}
    outreach.run()
    outreach.bad = set()
    with monkeypatch.context() as killed:  # so that nothing is undone
        for module, name in (
            (records, "unmark"),
            (runs, "give_start_back"),
            (operations, "start_failed"),
        ):
            killed.setattr(module, name, lambda *_, **__: None)
        outreach.is_reachable = False
        with pytest.raises(ConnectionError):
            outreach.retry(run_id="r-1")
    outreach.is_reachable = True
    assert outreach.statuses()["ada"] is RecordStatus.WAITING
    with pytest.raises(UnderWayError):
        outreach.retry(run_id="r-2")
    if cleaned_up:  # as the gate does after a while
        with outreach.store.begin() as conn:
            now = outreach.store.now(conn)
            runs.move(conn, now, outreach.campaign_run, RunStatus.CANCELLED, actor="gate")
    assert outreach.retry(run_id="r-1").marked == {"send": 1}
    assert outreach.sent == ["ada"]
    assert outreach.statuses()["ada"] is DONE
    with outreach.store.read() as conn:
        assert len(history.read(conn, kinds=[events.EventKind.RECORDS], limit=9)) == 1


def test_a_retry_that_could_not_be_launched_can_be_repeated_with_its_id(outreach: Outreach) -> None:
    outreach.bad = {"ada"}
    outreach.run()
    outreach.bad = set()
    outreach.is_reachable = False
    with pytest.raises(ConnectionError):
        outreach.retry(run_id="r-1")
    outreach.is_reachable = True
    assert outreach.statuses()["ada"] is FAILED
    assert outreach.retry(run_id="r-1").marked == {"send": 1}
    assert outreach.sent == ["ada"]


def test_what_is_held_in_progress_or_not_there_is_refused(outreach: Outreach, run: Run) -> None:
    outreach.bad = {"ada"}
    outreach.run()
    with pytest.raises(control.NoRecordsError, match="no such records"):
        outreach.retry(keys=["nobody"])
    assert run("hold", "campaign", "outreach", "--reason", "copy").exit_code == 0
    with pytest.raises(control.HeldError, match="copy"):
        outreach.retry()
    assert run("release", "campaign", "outreach").exit_code == 0
    with outreach.store.begin() as conn:
        now = outreach.store.now(conn)
        runs.move(conn, now, outreach.campaign_run, RunStatus.PENDING, actor="gate")
    with pytest.raises(UnderWayError):
        outreach.retry()
    assert outreach.statuses()["ada"] is FAILED


def test_the_command_lists_what_went_wrong_and_says_what_would_be_done_again(
    outreach: Outreach, run: Run
) -> None:
    outreach.bad = {"ada", "kurt"}
    outreach.run()
    listed = json.loads(run("records", "outreach/leads-1", "--failed", "--json").output)
    assert [record["key"] for record in listed[0]["records"]] == ["ada", "kurt"]
    [group] = listed[0]["groups"]
    assert (group["count"], group["state"]) == (2, "failed")
    shown = run("records", "outreach").output
    assert "ValueError('no mailbox of ***')" in shown
    [everything] = json.loads(run("records", "outreach", "--json").output)
    assert {record["state"] for record in everything["records"]} == {"failed"}
    assert {group["state"] for group in everything["groups"]} == {"failed", "done"}
    assert "completed, 2 failed" in run("runs").output
    assert "(completed, 2 failed) is not paused" in run("runs", "show", "outreach/leads-1").output
    dry = run("records", "retry", "outreach/leads-1", "--reason", "new list", "--dry-run")
    assert dry.output == "2 records of outreach/leads-1 would be retried\n"
    assert outreach.statuses()["ada"] is FAILED
    skipped = run("records", "skip", "outreach/leads-1", "--key", "ada", "--reason", "left")
    assert skipped.output == "skipped 1 record of outreach/leads-1\n"
    assert outreach.statuses()["ada"] is RecordStatus.SKIPPED
    assert "completed, 1 failed" in run("runs").output
    outreach.bad = set()
    outreach.sent.clear()
    outreach.run(**GOES_ON)
    assert outreach.sent == ["kurt"]
    with outreach.store.read() as conn:
        [event] = history.read(conn, kinds=[events.EventKind.RECORDS], limit=9)
    assert (event.name, event.to_status, event.reason) == (
        "outreach/leads-1",
        "skip 1 record",
        "left",
    )


@both_databases
def test_the_api_lists_retries_and_skips(outreach: Outreach) -> None:
    outreach.bad = {"ada", "kurt"}
    outreach.run()
    path = "/campaigns/outreach/runs/leads-1/records"
    with api(outreach.store, lambda: outreach) as asked:
        first = asked.get(path, limit=4)
        rest = asked.get(path, limit=4, cursor=first["next_cursor"])
        listed = [(each["op"], each["key"]) for each in first["items"] + rest["items"]]
        of_note = [("note", key) for key in ("alan", "emmy", "grace")]
        assert listed == [*of_note, *(("send", key) for key in sorted(LEADS))]
        assert rest["next_cursor"] is None
        failed = asked.get(path, status="failed")["items"]
        assert [(each["key"], each["tries"]) for each in failed] == [("ada", 1), ("kurt", 1)]
        groups = asked.get(f"{path}/summary", status="failed")["groups"]
        assert [(group["state"], group["count"]) for group in groups] == [("failed", 2)]
        assert asked.get("/campaigns/outreach/runs/leads-1")["failed_records"] == 2
        body = {"reason": "new list", "keys": ["ada"]}
        assert asked.post(f"{path}/retry", body, 202, dry_run=True)["marked"] == {"send": 1}
        outreach.bad = set()
        done = asked.post(f"{path}/retry", body, 202)
        assert (done["marked"], outreach.sent) == ({"send": 1}, ["ada"])
        nothing = asked.post(f"{path}/retry", {"reason": "x", "error": "nothing"}, 404)
        assert nothing["code"] == "no_records"
        assert asked.post(f"{path}/skip", {"reason": "left"})["skipped"] == {"send": 1}
    assert outreach.statuses()["kurt"] is RecordStatus.SKIPPED
