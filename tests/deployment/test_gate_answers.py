"""What the answers of services mean to the gate: quotas, dead keys, bad records; and windows.

As in `test_gate.py`: Dagster's daemon, code server, run workers, the sandbox.
"""

import json
from datetime import datetime, timedelta

from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import breakers, windows
from dagster_tidegate.store.windows import PlannedWindow
from demo.sandbox.faults import Fault, Mode
from tests.deployment.gate_stage import PAUSED_ONCE, RECORDS, TICKS, Stage, new_partitions

BUDGET = 3 * RECORDS // 2  # as tests/deployment/gate_project has it


# --- quotas and windows ------------------------------------------------------------------------


def test_a_quota_that_runs_out_at_half_pauses_all_until_its_reset_and_none_asks_before(
    stage: Stage,
):
    jobs, [partition] = ("letters", "essays", "digests"), new_partitions(1)
    runs = {job: stage.launch(job, partition) for job in jobs}
    stage.let_begin("openai", *((job, partition) for job in jobs))
    # Of 75 calls. The rest fits into the next day, which begins in 45 seconds.
    placed = stage.sandbox.place("openai", Fault(mode=Mode.LIMIT, calls=40, per_s=45))
    stage.wait(lambda: "openai is throttled until" in stage.tidegate("status"), "it is throttled")
    paused = set()
    for job, run in runs.items():
        stage.wait(
            lambda job=job, run=run: (
                stage.is_paused(run) or stage.campaign_run(job, partition) == "completed"
            ),
            f"run {run} is paused, or was done before",
        )
        paused |= {job} if stage.is_paused(run) else set()
    assert paused, "40 calls are not enough for all"
    refusals = stage.sandbox.stats()["openai"]["over_limit"]
    assert refusals <= 1, "the first one, if its headers have not said before that none is left"
    stage.settle()
    for job in jobs:
        expected = PAUSED_ONCE if job in paused else [RunStatus.COMPLETED]
        assert stage.outcomes(job, partition) == expected
    openai = stage.sandbox.stats()["openai"]
    assert (openai["effects"], openai["over_limit"]) == (3 * RECORDS, refusals)
    assert stage.sent_twice() == {}
    stage.assert_each_arrived_once("letters", partition)
    begins_at = datetime.fromisoformat(placed["placed_at"])
    resets_at = begins_at + timedelta(seconds=45)
    times = [datetime.fromisoformat(each["at"]) for each in stage.sandbox.calls(service="openai")]
    on_their_way = len(jobs)  # when the limit came
    assert sum(begins_at <= at < resets_at for at in times) <= 40 + refusals + on_their_way


def test_a_budget_that_is_used_up_pauses_until_its_reset_or_until_a_person_exceeds_it(
    stage: Stage,
):
    partitions = new_partitions(2)
    runs = [stage.launch("news", partition) for partition in partitions]
    stage.wait(lambda: any(map(stage.is_paused, runs)), "one of them is paused")
    stage.wait(lambda: not stage.at_work(), "none works any more")
    assert stage.sandbox.stats()["perplexity"]["calls"] == BUDGET
    assert stage.held() == {"service perplexity by breaker"}
    month_ends = (stage.now().replace(day=1) + timedelta(days=31)).strftime("%Y-%m-01 00:00")
    [reason] = {stage.reason(run) for run in runs if stage.is_paused(run)}
    assert f"its budget of {BUDGET} credits per month is used up" in reason
    assert f"until {month_ends}" in stage.tidegate("status")
    paused_at = stage.now()
    stage.wait(lambda: stage.ticked_since(paused_at + TICKS), "the gate has looked again")
    assert stage.sandbox.stats()["perplexity"]["calls"] == BUDGET, "nobody tries before"
    spent = json.loads(stage.tidegate("budgets", "perplexity", "--json"))
    assert [(each["campaign"], each["amount"]) for each in spent] == [("news", BUDGET)]

    keep = ("services", "keep-closed", "perplexity", "--for", "1h", "--reason", "a deadline")
    stage.tidegate(*keep)
    stage.settle()
    for run, partition in zip(runs, partitions, strict=True):
        paused = [RunStatus.PAUSED] if stage.is_resumed(run) else []
        assert stage.outcomes("news", partition) == [*paused, RunStatus.COMPLETED]
    perplexity = stage.sandbox.stats()["perplexity"]
    assert (perplexity["calls"], perplexity["effects"]) == (2 * RECORDS, 2 * RECORDS)
    assert stage.sent_twice() == {}
    stage.tidegate("services", "let-trip", "perplexity")


def test_a_window_that_begins_in_the_middle_of_runs_pauses_them_at_a_record(stage: Stage):
    [partition, later] = new_partitions(2)
    runs = {job: stage.launch(job, partition) for job in ("letters", "essays")}
    stage.let_begin("openai", *((job, partition) for job in runs))
    begins = stage.now() + timedelta(seconds=1)
    ends = begins + timedelta(seconds=30)
    upgrade = PlannedWindow(
        windows.BY_HAND, "openai", "0 0 29 2 *", "UTC", 30, "their upgrade", begins, ends
    )
    with stage.store.begin() as conn:
        windows.add(conn, upgrade)
    for job, run in runs.items():
        stage.wait(lambda run=run: stage.is_paused(run), f"{job} is paused")
        assert "their upgrade" in stage.reason(run)
    assert stage.held() == {"service openai by operator"}
    done = stage.sandbox.stats()["openai"]["effects"]
    assert 2 < done < 2 * RECORDS
    waiting = stage.launch("essays", later)
    stage.wait(lambda: stage.now() > ends, "it ends")
    assert stage.sandbox.stats()["openai"]["effects"] == done
    assert stage.launches(waiting) == 0
    stage.heal("openai")
    stage.settle()
    assert stage.outcomes("letters", partition) == PAUSED_ONCE
    assert stage.outcomes("essays", partition) == PAUSED_ONCE
    assert stage.outcomes("essays", later) == [RunStatus.COMPLETED]
    assert stage.sandbox.stats()["openai"]["calls"] == 3 * RECORDS, "nothing was done again"
    stage.assert_each_arrived_once("letters", partition)
    assert "is removed: their upgrade" in stage.tidegate("windows", "remove", "openai")


# --- what an answer means -----------------------------------------------------------------------


def test_records_that_always_fail_stop_nobody_and_are_named(stage: Stage):
    one, three, [healthy] = "190", "191", new_partitions(1)
    bad = {one: ["17"], three: ["0", "100", "250"]}
    keys = [f"essays/{part}/{n}@acme.example" for part, numbers in bad.items() for n in numbers]
    stage.sandbox.place("openai", Fault(mode=Mode.ANSWER, case="one-record", keys=keys))
    launched = {}
    # Bad records of two runs might fail one after the other, which opens a breaker of this project.
    for together in ([one, healthy], [three]):
        launched |= {partition: stage.launch("essays", partition) for partition in together}
        for partition in together:
            stage.wait(
                lambda p=partition: stage.campaign_run("essays", p) == "completed", "it completes"
            )
            outcomes = stage.outcomes("essays", partition)
            assert outcomes == [RunStatus.COMPLETED], stage.history("essays", partition)
    assert stage.sandbox.stats()["openai"]["effects"] == 2 * 300 - 4 + RECORDS
    for partition, numbers in bad.items():
        name = f"essays/{partition}"
        [run] = json.loads(stage.tidegate("records", name, "--failed", "--json"))
        suspects = {(record["key"], record["state"]) for record in run["records"]}
        assert suspects == {(f"{n}@acme.example", "suspect") for n in numbers}
        assert all("others succeeded" in record["error"] for record in run["records"])
        failed = len(numbers)
        dagster_run = stage.instance.get_run_by_id(launched[partition])
        assert dagster_run is not None
        assert dagster_run.tags["tidegate/failed"] == str(failed)
        assert f"{failed} failed" in stage.tidegate("runs", "show", name)


def test_a_dead_key_pauses_at_its_first_call_until_a_person_repaired_it(stage: Stage):
    [partition] = new_partitions(1)
    run = stage.launch("essays", partition)
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "it is at work")
    stage.sandbox.place("openai", Fault(mode=Mode.ANSWER, case="dead-key"))
    stage.wait(lambda: stage.is_paused(run), "the run is paused")
    paused_at = stage.now()
    stage.wait(lambda: stage.ticked_since(paused_at + TICKS), "the gate has looked again")
    assert stage.sandbox.stats()["openai"]["by_status"]["401"] == 1
    assert "tidegate services repaired openai" in stage.tidegate("why", f"essays/{partition}")

    stage.heal("openai")
    stage.tidegate("services", "repaired", "openai", "--reason", "a new key")
    stage.settle()
    assert stage.outcomes("essays", partition) == PAUSED_ONCE
    assert stage.sandbox.stats()["openai"]["effects"] == RECORDS


def test_a_quota_that_is_used_up_pauses_until_its_reset_and_nothing_is_tried_before(stage: Stage):
    [partition] = new_partitions(1)
    run = stage.launch("essays", partition)
    stage.wait(lambda: stage.sandbox.stats()["openai"]["effects"] > 4, "it is at work")
    quota = Fault(mode=Mode.ANSWER, case="day-used", retry_after_s=15)
    stage.sandbox.place("openai", quota)
    stage.wait(lambda: stage.is_paused(run), "the run is paused")
    assert "until" in stage.tidegate("why", f"essays/{partition}")
    stage.settle()
    assert stage.sandbox.stats()["openai"]["by_status"]["429"] == 1
    assert stage.outcomes("essays", partition) == PAUSED_ONCE
    assert stage.sandbox.stats()["openai"]["effects"] == RECORDS


def test_a_used_up_quota_of_one_endpoint_pauses_the_campaign_that_needs_it_and_no_other(
    stage: Stage,
):
    part, [partition] = "apollo/people_match", new_partitions(1)
    run = stage.launch("matches", partition)
    stage.wait(lambda: stage.sandbox.stats()["apollo"]["effects"] > 4, "it is at work")
    quota = Fault(mode=Mode.ANSWER, case="day-used", retry_after_s=15, keys=["matches-"])
    stage.sandbox.place("apollo", quota)
    stage.wait(lambda: stage.is_paused(run), "the run is paused")
    with stage.store.read() as conn:
        until = breakers.read_one(conn, part).throttled_until
    assert until is not None
    assert stage.held() == {f"service {part} by breaker"}
    assert stage.breaker("apollo") is BreakerState.CLOSED
    shown = json.loads(stage.tidegate("why", f"matches/{partition}", "--json"))
    assert f"{until:%FT%T}" in json.dumps(shown)

    other = stage.launch("enrichments", partition)
    stage.settle()
    assert stage.status(other) == "SUCCESS"
    assert stage.outcomes("enrichments", partition) == [RunStatus.COMPLETED], "it never paused"
    assert stage.outcomes("matches", partition) == PAUSED_ONCE
    apollo = stage.sandbox.stats()["apollo"]
    assert apollo["by_status"]["429"] == 1, "nothing was tried before the reset"
    assert apollo["effects"] == 2 * RECORDS
