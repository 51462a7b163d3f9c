"""Somebody else's asset project: made as the how-to says, with the wheel, far from this repository.

Every trigger that Dagster has starts a run of an asset while the service that it needs fails.
"""

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from demo.up.children import Children
from demo.up.ports import LOOPBACK, free
from tests.support.python_path import QUICK_RUNS
from tests.support.wheels import build, install, run

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "add-to-a-project.md"
LOCATION = "shop"
MAX_S = 600.0
RECORDS = 30
BACKFILL = [f"2026-11-{day:02}" for day in range(2, 7)]
MOVED = "moved.txt"
MATERIALIZED, SCHEDULED, SENSED = "2026-11-01", "2026-11-08", "2026-11-09"

# What such a project has besides, each with its Dagster default but for being switched on.
TRIGGERS = """
from pathlib import Path

import dagster as dg
import httpx
from dagster_tidegate import BreakerResource

days = dg.DailyPartitionsDefinition("2026-11-01", end_offset=1)


def look_up(order: dict, key: str) -> dict:
    answer = httpx.get(f"MAILER/people/{order['customer']}", headers={"Idempotency-Key": key})
    answer.raise_for_status()
    return answer.json()


@dg.asset(partitions_def=days)
def orders(context: dg.AssetExecutionContext) -> list[dict]:
    moved = Path("MOVED").read_text() if Path("MOVED").exists() else ""
    return [{"id": n, "customer": f"{context.partition_key}-{n}{moved}"} for n in range(RECORDS)]


@dg.asset(partitions_def=days, pool="mailer")
def customers(
    context: dg.AssetExecutionContext, orders: list[dict], breakers: BreakerResource
) -> list[dict]:
    return do(context, breakers, orders)


daily = dg.define_asset_job("daily", selection=["orders", "customers"])


@dg.schedule(
    cron_schedule="* * * * *", job=daily, default_status=dg.DefaultScheduleStatus.RUNNING
)
def every_minute(context: dg.ScheduleEvaluationContext):
    if context.instance.get_runs(dg.RunsFilter(tags={"dagster/schedule_name": "every_minute"})):
        return dg.SkipReason("It has started its run")
    return dg.RunRequest(partition_key="SCHEDULED")


@dg.sensor(
    job=daily, minimum_interval_seconds=5, default_status=dg.DefaultSensorStatus.RUNNING
)
def new_file():
    return dg.RunRequest(run_key="once", partition_key="SENSED")


def do(context, breakers, orders):
    mailer = breakers.breaker("mailer")
    records = breakers.records(context, orders, key="id")
    for record in records:
        with record:
            record.result = mailer.call(look_up, record.value, record.idempotency_key)
    return records.results()


def greet(context, breakers, group):
    do(context, breakers, [{"id": n, "customer": f"{group}-{n}"} for n in range(RECORDS)])


@dg.asset
def feed() -> None: ...


@dg.asset(deps=[feed], pool="mailer", automation_condition=dg.AutomationCondition.eager())
def eager(context: dg.AssetExecutionContext, breakers: BreakerResource) -> None:
    greet(context, breakers, "eager")


@dg.asset(deps=[feed], automation_condition=dg.AutomationCondition.eager())
def unrelated() -> None: ...


@dg.asset(
    pool="mailer",
    automation_condition=dg.AutomationCondition.missing() & ~dg.AutomationCondition.in_progress(),
)
def custom(context: dg.AssetExecutionContext, breakers: BreakerResource) -> None:
    greet(context, breakers, "custom")


@dg.asset_check(asset=customers, partitions_def=days)
def all_of_them(customers: list[dict]):
    return dg.AssetCheckResult(passed=len(customers) == RECORDS)


defs = dg.Definitions(
    executor=dg.in_process_executor,
    assets=[orders, customers, feed, eager, unrelated, custom],
    asset_checks=[all_of_them],
    jobs=[daily],
    schedules=[every_minute],
    sensors=[
        new_file,
        # Dagster puts what one of them requests at the same time into one run.
        *(
            dg.AutomationConditionSensorDefinition(
                f"automation_of_{target.key.to_user_string()}",
                target=[target],
                default_status=dg.DefaultSensorStatus.RUNNING,
                minimum_interval_seconds=5,
            )
            for target in (eager, custom, unrelated)
        ),
    ],
)
"""


class Mailer:
    """The service of the how-to. It can fail, and counts what it answered."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.answered: Counter[str] = Counter()
        self.keys: dict[str, set[str | None]] = {}
        self.refused = 0
        self.fails_after: int | None = None
        """How many further calls it answers before it fails."""

    def answer(self, path: str, key: str | None) -> int:
        with self.lock:
            if self.fails_after is not None:
                if self.fails_after == 0:
                    self.refused += 1
                    return 503
                self.fails_after -= 1
            self.answered[path] += 1
            self.keys.setdefault(path, set()).add(key)
            return 200

    def of(self, group: str) -> Counter[str]:
        """How often it answered for each customer of a group."""
        prefix = f"/people/{group}-"
        with self.lock:
            return Counter({p: n for p, n in self.answered.items() if p.startswith(prefix)})


@pytest.fixture
def mailer() -> Iterator[tuple[Mailer, str]]:
    service = Mailer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(0.02)
            status = service.answer(self.path, self.headers.get("Idempotency-Key"))
            body = json.dumps({"name": self.path}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield service, f"http://{LOOPBACK}:{server.server_port}"
    server.shutdown()
    server.server_close()


class Project:
    """The project of the how-to at work: what a person does in Dagster's UI, and sees there."""

    def __init__(self, port: int, folder: Path, bin: Path, env: Mapping[str, str]) -> None:
        self._url = f"http://{LOOPBACK}:{port}/graphql"
        self.folder, self.bin, self.env = folder, bin, env
        self.moved = folder / MOVED
        """Its text is added to what the orders say about each customer."""

    def tidegate(self, *arguments: str) -> str:
        return run(self.bin / "tidegate", *arguments, cwd=self.folder, **self.env)

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = Request(self._url, body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        [value] = answer["data"].values()
        return value

    def materialize(self, *assets: str, partition: str | None = None) -> None:
        tags = [] if partition is None else [{"key": "dagster/partition", "value": partition}]
        answer = self.ask(
            "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename } }",
            p={
                "selector": {
                    "repositoryLocationName": LOCATION,
                    "repositoryName": "__repository__",
                    "jobName": "__ASSET_JOB",
                    "assetSelection": [{"path": [asset]} for asset in assets],
                },
                "executionMetadata": {"tags": tags},
            },
        )
        assert answer["__typename"] == "LaunchRunSuccess", answer

    def backfill(self, *assets: str, partitions: list[str]) -> str:
        answer = self.ask(
            "mutation($b: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $b) "
            "{ __typename ... on LaunchBackfillSuccess { backfillId } } }",
            b={
                "assetSelection": [{"path": [asset]} for asset in assets],
                "partitionNames": partitions,
            },
        )
        return answer["backfillId"]

    def backfill_status(self, backfill: str) -> str:
        query = (
            "query($id: String!) { partitionBackfillOrError(backfillId: $id) "
            "{ ... on PartitionBackfill { status } } }"
        )
        return self.ask(query, id=backfill)["status"]

    def runs(self) -> list[dict[str, Any]]:
        query = (
            "{ runsOrError(limit: 100) { ... on Runs { results "
            "{ runId status jobName assetSelection { path } tags { key value } } } } }"
        )
        results = self.ask(query)["results"]
        for each in results:
            each["tags"] = {tag["key"]: tag["value"] for tag in each["tags"]}
        return results

    def requested(self, asset: str) -> list[dict[str, Any]]:
        """The runs of an asset that Dagster's automation has requested."""
        return [
            each
            for each in self.runs()
            if {"path": [asset]} in (each["assetSelection"] or ())
            and each["tags"].get("dagster/sensor_name") == f"automation_of_{asset}"
        ]

    def automation_has_seen(self, asset: str) -> bool:
        """Whether Dagster's automation has looked since an asset was last materialized, if ever.

        A change of its input before that is lost: Dagster takes what was materialized since its
        last look for handled, whichever came first.
        """
        query = (
            "query($s: SensorSelector!) { sensorOrError(sensorSelector: $s) { ... on Sensor "
            "{ sensorState { ticks(limit: 2) { timestamp endTimestamp } } } } }"
        )
        selector = {
            "repositoryLocationName": LOCATION,
            "repositoryName": "__repository__",
            "sensorName": f"automation_of_{asset}",
        }
        ticks = self.ask(query, s=selector)["sensorState"]["ticks"]
        seen = max((t["timestamp"] for t in ticks if t["endTimestamp"] is not None), default=0)
        return all(float(m["timestamp"]) / 1000 < seen for m in self.materializations(asset)[:1])

    def statuses(self) -> Counter[str]:
        return Counter(each["status"] for each in self.runs())

    def materializations(self, asset: str, partition: str | None = None) -> list[dict[str, Any]]:
        """The materializations of an asset, or of a partition of it, the newest first."""
        query = (
            "query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset "
            "{ assetMaterializations(limit: 100) { partition timestamp runId } } } }"
        )
        events = self.ask(query, key={"path": [asset]})["assetMaterializations"]
        return [each for each in events if partition in (None, each["partition"])]

    def checks_passed(self) -> list[bool]:
        query = (
            "query($key: AssetKeyInput!) { assetCheckExecutions(assetKey: $key, "
            'checkName: "all_of_them", limit: 100) { evaluation { success } } }'
        )
        executions = self.ask(query, key={"path": ["customers"]})
        return [each["evaluation"]["success"] for each in executions if each["evaluation"]]

    def is_idle(self) -> bool:
        """Whether every campaign run has ended, as far as Tidegate knows."""
        runs = json.loads(self.tidegate("runs", "--json"))
        return {each["status"] for each in runs} <= {"completed", "cancelled"}

    def prune_ledgers(self) -> int:
        """Delete the ledgers of what has ended, as if 90 days had passed; return how many rows."""
        said = self.tidegate("store", "prune", "--keep", "ledgers=0", "--json")
        return json.loads(said)["deleted"]["ledgers"]

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = MAX_S) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until:
                runs = "\n".join(map(str, self.runs()))
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n{runs}")
            time.sleep(1)


def files() -> dict[str, str]:
    """The files that the how-to tells to write, by path."""
    file = r"`(src/\S+\.py)`[^`]*:\s+```python\n(.*?)```"
    return dict(re.findall(file, HOW_TO.read_text(), re.DOTALL))


def commands() -> list[str]:
    """The commands of the how-to, in order."""
    return re.findall(r"^ *\$ (.*)$", HOW_TO.read_text(), re.MULTILINE)


@pytest.fixture
def project(mailer: tuple[Mailer, str], tmp_path: Path) -> Iterator[Project]:
    """A project as `create-dagster` makes it, after the steps of the how-to."""
    installs, setting, starting = (
        "pip install ../dagster-tidegate",
        "tidegate init --yes",
        "tidegate dev",
    )
    assert [each for each in commands() if each in (installs, setting, starting)] == [
        installs,
        setting,
        starting,
    ]
    wheels = tmp_path / "wheel"
    wheels.mkdir()
    bin = install(build(wheels), tmp_path / "venv")
    folder, home = tmp_path / "shop", tmp_path / "home"
    for directory in (home, folder / "src" / "shop" / "defs"):
        directory.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "shop"\nversion = "0.1.0"\n\n'
        '[tool.dg]\ndirectory_type = "project"\n\n[tool.dg.project]\nroot_module = "shop"\n'
    )
    for package in ("src/shop", "src/shop/defs"):
        (folder / package / "__init__.py").touch()
    triggers = TRIGGERS.replace("SCHEDULED", SCHEDULED).replace("SENSED", SENSED)
    triggers = triggers.replace("RECORDS", str(RECORDS)).replace("MAILER", mailer[1])
    triggers = triggers.replace("MOVED", str(folder / MOVED))
    for path, text in {**files(), "src/shop/defs/triggers.py": triggers}.items():
        (folder / path).write_text(text.replace("http://127.0.0.1:8999", mailer[1]))
    # Each run is a process: more at once would starve Dagster's daemon.
    (home / "dagster.yaml").write_text("concurrency: {runs: {max_concurrent_runs: 2}}\n")
    env = {
        "DAGSTER_HOME": str(home),
        # Instead of `pip install --editable .`
        "PYTHONPATH": os.pathsep.join([str(folder / "src"), *QUICK_RUNS]),
        "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
    }
    run(bin / "tidegate", *setting.split()[1:], cwd=folder, **env)
    port = free()
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with Children(tmp_path / "logs") as children:
        children.start(
            "dev",
            [str(bin / "tidegate"), *starting.split()[1:], "--port", str(port)],
            env=outside | env,
            cwd=folder,
        )
        project = Project(port, folder, bin, env)

        def ready() -> bool:
            with suppress(URLError, ConnectionError, TimeoutError):
                return bool(project.runs()) or True
            return False

        children.wait_until(ready, timeout_s=MAX_S, waiting_for="dev")
        yield project


@pytest.mark.timeout(2400)
def test_whatever_starts_an_asset_it_pauses_and_resumes_and_does_each_row_once(
    project: Project, mailer: tuple[Mailer, str]
) -> None:
    service, _ = mailer
    once = {f"/people/{group}-{n}": 1 for group in ("eager", "custom") for n in range(RECORDS)}
    partitions = [MATERIALIZED, *BACKFILL, SCHEDULED, SENSED]
    once |= {f"/people/{day}-{n}": 1 for day in partitions for n in range(RECORDS)}
    names = ("ada", "alan", "barbara", "edsger", "grace", "kurt")
    once |= {f"/?to={name}%40example.org": 1 for name in names}
    service.fails_after = 100
    project.wait(lambda: "mailer" in project.tidegate("campaigns"), "the gate knows its campaigns")
    project.materialize("feed")
    project.materialize("orders", "customers", partition=MATERIALIZED)
    project.materialize("people", "letters")
    backfill = project.backfill("orders", "customers", partitions=BACKFILL)

    # The outage: nothing fails, nothing half done is materialized, nothing is called.
    project.wait(
        lambda: any(each["tags"].get("tidegate/state") == "paused" for each in project.runs()),
        "a run is paused",
    )
    project.wait(lambda: project.materializations("unrelated"), "other assets go on")
    project.wait(
        lambda: not {"STARTING", "STARTED", "CANCELING"} & project.statuses().keys(),
        "nothing works any more",
    )
    refused = service.refused
    assert "FAILURE" not in project.statuses()
    done = {each["partition"] for each in project.materializations("customers")}
    assert all(len(service.of(day)) == RECORDS for day in done)
    status = project.tidegate("status")
    assert "mailer" in status
    assert "__ASSET_JOB" not in status
    project.wait(
        lambda: all(map(project.automation_has_seen, ("unrelated", "eager"))), "it has been seen"
    )
    project.materialize("feed")  # what changes meanwhile
    project.wait(lambda: len(project.materializations("unrelated")) == 2, "others go on")
    changed_at = float(project.materializations("feed")[0]["timestamp"])
    assert service.refused - refused <= 10  # trial calls
    assert len(project.requested("custom")) == 1  # nothing is launched in vain
    # If it has paused, it is requested anew, since its input has changed.
    assert len(project.requested("eager")) <= 2

    # The recovery: everything by itself.
    service.fails_after = None
    # While a run of it is paused, Dagster may say that it has failed; its next run takes it back.
    project.wait(
        lambda: project.backfill_status(backfill) == "COMPLETED_SUCCESS", "the backfill completes"
    )
    project.wait(
        lambda: (
            {each["partition"] for each in project.materializations("customers")} == {*partitions}
        ),
        "every partition is materialized",
    )
    project.wait(
        lambda: float(project.materializations("eager")[0]["timestamp"]) > changed_at,
        "what changed meanwhile was requested",
    )
    project.wait(
        lambda: not {"QUEUED", "STARTED", "STARTING", "CANCELING"} & project.statuses().keys(),
        "nothing is left",
    )
    assert len(project.materializations("custom")) == 1
    answered = {path: times for path, times in service.answered.items() if "eager" not in path}
    assert answered == {path: times for path, times in once.items() if "eager" not in path}
    assert all(
        service.answered[path] == len(keys)
        for path, keys in service.keys.items()
        if "/?" not in path
    )
    assert all(project.checks_passed())
    assert "FAILURE" not in project.statuses()

    # A new materialization is new work on the input of now, also when the ledger was pruned.
    project.moved.write_text("-moved")
    moved = [f"/people/{MATERIALIZED}-{n}-moved" for n in range(RECORDS)]
    for times in (1, 2):
        project.materialize("orders", "customers", partition=MATERIALIZED)
        project.wait(
            lambda times=times: (
                len(project.materializations("customers", MATERIALIZED)) == times + 1
            ),
            "the partition is materialized again",
        )
        assert [service.answered[path] for path in moved] == [times] * RECORDS
        if times == 1:
            project.wait(project.is_idle, "the gate knows that it has completed")
            assert project.prune_ledgers() >= RECORDS * len(partitions)
    assert all(len(service.keys[path]) == 2 for path in moved)
    assert all(service.answered[path] == 1 for path in once if MATERIALIZED in path)
    assert "FAILURE" not in project.statuses()
    assert all(project.checks_passed())
