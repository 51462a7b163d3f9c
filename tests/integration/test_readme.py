"""The example of the README works as it stands there."""

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import dagster as dg
import pytest

from dagster_tidegate.store import schema
from dagster_tidegate.store.database import Store

README = Path(__file__).parents[2] / "README.md"


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


def test_the_example_sends_each_mail_once(
    mailer: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEGATE_STORE_URL", f"sqlite:///{tmp_path / 'tidegate.db'}")
    schema.upgrade(Store(f"sqlite:///{tmp_path / 'tidegate.db'}"))
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    code = code.replace("https://mailer.example", f"http://127.0.0.1:{mailer.server_port}")
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(code, str(README), "exec"), names)
    defs = names["defs"]
    assert isinstance(defs, dg.Definitions)
    job = defs.resolve_job_def("newsletter")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        for _ in range(2):
            result = job.execute_in_process(instance=instance, partition_key="monday")
            assert result.output_for_node("send") == [
                {"sent": "ada@example.org"},
                {"sent": "alan@example.org"},
            ]
    keys = mailer.RequestHandlerClass.keys  # type: ignore[attr-defined] -- set above
    assert len(keys) == len(set(keys)) == 2
