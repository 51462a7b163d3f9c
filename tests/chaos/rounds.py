"""Plays rounds of chaos on a stage, several at once, and judges each."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from threading import Event

from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import runs
from dagster_tidegate.store.database import UNREACHABLE, Connection
from tests.chaos.plan import Blow, Kind, Plan
from tests.chaos.stage import AT_ONCE, START_TIMEOUT_S, Stage
from tests.chaos.verdict import Evidence, findings
from tests.support.record_statuses import record_statuses

# More than work at once: some wait for their retry.
PLAYED_AT_ONCE = 2 * AT_ONCE
AT_WORKER = {Kind.WORKER, Kind.TERMINATION, Kind.FREEZE}
LOOK_EVERY_S = 0.05
ASK_EVERY_S = 0.5
ROUND_TIMEOUT_S = 600.0
RETRY_TIMEOUT_S = 15.0
LATE_RETRY_S = 120.0
ENDS = {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED}


@dataclass(frozen=True)
class Played:
    """A round that was played.

    Attributes:
        plan: What was to happen.
        struck: What struck; a blow whose moment never came is not among them.
        attempts: How many attempts worked on it.
        by_hand: How often it was started again because Dagster did not retry it.
        in_doubt: How many records an attempt found in doubt.
        repeated: How many calls arrived once more after they had taken effect.
        seconds: How long it took.
        findings: What went wrong.
    """

    plan: Plan
    struck: Sequence[Blow]
    attempts: int
    by_hand: int
    in_doubt: int
    repeated: int
    seconds: float
    findings: Sequence[str]


def play(stage: Stage, plans: Sequence[Plan]) -> Iterator[Played]:
    """Play rounds, several at once; yields each when it is over."""
    stopped = Event()
    with ThreadPoolExecutor(PLAYED_AT_ONCE) as pool:
        try:
            for done in as_completed(pool.submit(_play, stage, plan, stopped) for plan in plans):
                yield done.result()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _play(stage: Stage, plan: Plan, stopped: Event) -> Played:
    """Play a round to its end, or until its time is over, or it is stopped."""
    notes = stage.notes(plan.partition)
    stage.begin(plan.partition)
    began = alive_at = ask_at = time.monotonic()
    beginnings, todo, struck = [began], list(plan.blows), []
    status: RunStatus | None = None
    striking: list[Future] = []
    rejects = any(blow.kind is Kind.REJECTION for blow in plan.blows)
    while status is not RunStatus.COMPLETED and time.monotonic() < began + ROUND_TIMEOUT_S:
        stage.check()
        now, workers = time.monotonic(), notes.workers()
        beginnings += [now] * (len(workers) - len(beginnings) + 1)
        for blow in list(todo):
            begun = len(beginnings) > blow.attempt
            if begun and now >= beginnings[blow.attempt] + blow.after_s:
                todo.remove(blow)
                if blow.kind not in AT_WORKER:
                    striking.append(stage.strike(plan.service, blow))
                elif not stage.hit_worker(workers[blow.attempt - 1], blow):
                    continue
                struck.append(blow)
        if now >= ask_at:
            ask_at = now + ASK_EVERY_S
            status = _status(stage, plan)
            ended = status in (RunStatus.COMPLETED, RunStatus.FAILED)
            if rejects and ended and RecordStatus.FAILED in _written(stage, plan).values():
                # Until the service accepts them.
                stage.retry_records(plan.service, plan.partition)
                status = None
            if status not in (RunStatus.FAILED, RunStatus.CANCELLED):
                alive_at = now
        # What was cancelled stays so until somebody starts it again.
        wait_s = 0 if status is RunStatus.CANCELLED else RETRY_TIMEOUT_S
        if now > alive_at + wait_s:
            alive_at = now
            its = stage.dagster_runs(plan.partition)
            if any(run.is_success for run in its):
                break  # and yet it is failed: a finding
            if all(run.is_finished for run in its):
                # Dagster gives a retry up when anything goes wrong with it: a person asks again.
                notes.again()
                alive_at = now + RETRY_TIMEOUT_S
        if stopped.wait(LOOK_EVERY_S):
            break
    for blow_ended in striking:
        blow_ended.result()
    # A retry may come late; it may send nothing, and what it does is judged with the rest.
    until = time.monotonic() + LATE_RETRY_S
    while time.monotonic() < until and not stopped.wait(ASK_EVERY_S):
        over = all(run.is_finished for run in stage.dagster_runs(plan.partition))
        if over and _status(stage, plan) in ENDS:
            break
    found = _evidence(stage, plan)
    return Played(
        plan=plan,
        struck=struck,
        attempts=len(notes.workers()),
        by_hand=notes.asked() - 1,
        in_doubt=len(found.listed),
        repeated=sum(found.repeats.values()),
        seconds=time.monotonic() - began,
        findings=findings(found),
    )


def _status(stage: Stage, plan: Plan) -> RunStatus | None:
    """Return what the campaign run is; None while the store can't be read: it was struck."""
    with suppress(*UNREACHABLE), stage.store.read() as conn:
        return _status_in(conn, plan)
    return None


def _written(stage: Stage, plan: Plan) -> Mapping[str, RecordStatus]:
    """Return what the ledger has, by key; nothing while it can't be read."""
    with suppress(*UNREACHABLE), stage.store.read() as conn:
        return _written_in(conn, plan)
    return {}


def _status_in(conn: Connection, plan: Plan) -> RunStatus | None:
    found = runs.find(conn, plan.service, plan.partition)
    return None if found is None else found.status


def _written_in(conn: Connection, plan: Plan) -> Mapping[str, RecordStatus]:
    found = runs.find(conn, plan.service, plan.partition)
    return {} if found is None else record_statuses(conn, found.id, f"call_{plan.service}")


def _at_the_end(stage: Stage, plan: Plan) -> tuple[RunStatus | None, Mapping[str, RecordStatus]]:
    """Return the status and the ledger, as soon as the store can be read.

    Another round may just have struck it.
    """
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with stage.store.read() as conn:
                return _status_in(conn, plan), _written_in(conn, plan)
        except UNREACHABLE:
            if time.monotonic() > until:
                raise
            time.sleep(ASK_EVERY_S)


def _evidence(stage: Stage, plan: Plan) -> Evidence:
    notes = stage.notes(plan.partition)
    status, ledger = _at_the_end(stage, plan)
    sent = notes.all_sent()
    its = {each.idempotency_key for each in sent}
    counts = {k: v for k, v in stage.sandbox.keys(plan.service).items() if k in its}
    effects = stage.sandbox.effects(plan.service)
    prefix = f"{plan.partition}/" if plan.service == "instantly" else ""
    return Evidence(
        wanted=plan.keys,
        left_in_doubt=plan.left_in_doubt,
        grouped=plan.grouped,
        crashes=max(0, len(notes.workers()) - 1),
        sent=sent,
        listed=notes.all_listed(),
        arrivals={key: count["arrivals"] for key, count in counts.items()},
        effects={key: count["effects"] for key, count in counts.items()},
        repeats={key: count["repeats"] for key, count in counts.items()},
        subjects={key: effects.get(prefix + key, 0) for key in plan.keys},
        ledger=ledger,
        status=status,
        results=notes.all_results(),
    )
