"""The examples of the README and of docs/campaigns.md work as they stand there."""

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import dagster as dg
import pytest

from dagster_tidegate import BreakerResource, ServiceConfig

PROJECT = Path(__file__).parents[2]
README = PROJECT / "README.md"
CAMPAIGNS = PROJECT / "docs" / "campaigns.md"


def examples(document: Path) -> str:
    """The Python in a document, as one module."""
    return "\n".join(re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL))


@pytest.fixture(autouse=True)
def store_of_the_example(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEGATE_STORE_URL", sqlite_url)


@pytest.fixture
def mailer() -> Iterator[ThreadingHTTPServer]:
    """A service that takes every mail."""

    class Mailer(BaseHTTPRequestHandler):
        keys: list[str | None] = []  # noqa: RUF012 -- one server a test

        def do_POST(self) -> None:
            self.keys.append(self.headers["Idempotency-Key"])
            mail = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps({"sent": mail["email"]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Mailer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_example_sends_each_mail_once_per_run(
    mailer: ThreadingHTTPServer, tmp_path: Path
) -> None:
    code = examples(README).replace(
        "https://mailer.example", f"http://127.0.0.1:{mailer.server_port}"
    )
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(code, str(README), "exec"), names)
    defs = names["defs"]
    assert isinstance(defs, dg.Definitions)
    job = defs.resolve_job_def("newsletter")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        for _ in range(2):  # the second is new work, with keys of its own
            result = job.execute_in_process(instance=instance, partition_key="monday")
            assert result.output_for_node("send") == [
                {"sent": "ada@example.org"},
                {"sent": "alan@example.org"},
            ]
    keys = mailer.RequestHandlerClass.keys  # type: ignore[attr-defined] -- set above
    assert len(keys) == len(set(keys)) == 4


def test_the_campaign_of_the_docs_runs_and_a_hook_tells_a_pause_from_a_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names: dict[str, Any] = {"__name__": "campaigns"}
    exec(compile(examples(CAMPAIGNS), str(CAMPAIGNS), "exec"), names)
    breakers = BreakerResource(services=[ServiceConfig(name="crm"), ServiceConfig(name="mailer")])
    job: dg.JobDefinition = names["newsletter_with_alerts"]
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        resources = {"breakers": breakers}
        result = job.execute_in_process(instance=instance, resources=resources)
        assert result.output_for_node("find") == [
            {"id": 1, "name": "Ada"},
            {"id": 2, "name": "Ada"},
        ]
        breakers.breaker("mailer").open()
        paused = job.execute_in_process(
            instance=instance, resources=resources, raise_on_error=False
        )
        run = instance.get_run_by_id(paused.run_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.CANCELED
    assert "someone should look" not in caplog.text


def test_the_loops_and_the_unit_test_of_the_docs_work() -> None:
    names: dict[str, Any] = {"__name__": "campaigns"}
    exec(compile(examples(CAMPAIGNS), str(CAMPAIGNS), "exec"), names)
    names["test_nightly"]()

    @dg.job
    def asynchronous() -> None:
        names["follow"]()

    breakers = BreakerResource.in_memory([ServiceConfig(name="crm")])
    result = asynchronous.execute_in_process(resources={"breakers": breakers})
    assert result.output_for_node("follow") == [
        {"id": 1, "name": "Ada"},
        {"id": 2, "name": "Ada"},
    ]
