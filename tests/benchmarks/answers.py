"""What answers mean, over real HTTP: `python -m tests.benchmarks.answers [--table FILE]`.

Each row of a table is played by the sandbox, and requested with httpx through a breaker, by a
record loop whose ledger is in a real database: on SQLite and on PostgreSQL. Without `--table`, the
figures of `record_loops` follow.
"""

import argparse
import json
import logging
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from dagster_tidegate.breaker.events import CallFailed, CallJudged, Event
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.store.breakers import SqlBackend
from demo.sandbox.cases import PlayedAnswer
from demo.sandbox.client import SandboxClient
from demo.sandbox.faults import Fault, Mode
from tests.benchmarks import record_loops
from tests.benchmarks.servers import databases
from tests.integration.record_loop import Stopped, Work
from tests.support.answer_table import Row, read, summary
from tests.support.sandbox import sandbox_process

TABLE = Path(__file__).parents[1] / "unit" / "answers.json"
PLAYS = "openai"
"""The service of the sandbox that plays all others."""
TOLERANCE_S = 2


class Asking:
    """Asks the services of a table, each through its breaker and from a record loop of its own."""

    def __init__(self, url: str, rows: list[Row], sandbox: SandboxClient) -> None:
        self.sandbox = sandbox
        self.http = httpx.Client(base_url=sandbox.url, trust_env=False)
        self.verdict = Verdict(VerdictKind.SUCCESS)
        self.at = datetime.now(UTC)
        self.work = Work(url)
        self.services = {row.id: f"service{n}" for n, row in enumerate(rows)}
        policies = [ServicePolicy(name=self.services[row.id], profile=row.profile) for row in rows]
        self.work.fleet.close()
        self.work.fleet = Fleet(SqlBackend(self.work.store), policies, hooks=[self.judged])

    def close(self) -> None:
        self.http.close()
        self.work.close()

    def judged(self, event: Event) -> None:
        self.at = self.work.fleet.now()
        if isinstance(event, CallJudged):
            self.verdict = event.verdict
        elif isinstance(event, CallFailed):
            self.verdict = Verdict(VerdictKind.FAILURE, event.retry_at, reason=event.label)

    def request(self) -> httpx.Response:
        """Call the service as a client does that raises for what is no success."""
        response = self.http.get(f"/{PLAYS}/anything")
        response.raise_for_status()
        if response.content and "json" in response.headers.get("content-type", ""):
            response.json()
        return response

    def ask(self, row: Row) -> dict[str, Any]:
        """Return the verdict on a row, as the row would have it."""
        if row.has_times:  # the dates of HTTP have whole seconds
            time.sleep(1 - time.time() % 1)
        status, headers, body = row.at(datetime.now(UTC))
        played = PlayedAnswer(status=status, headers=headers, body="" if body is None else body)
        self.sandbox.place(PLAYS, Fault(mode=Mode.ANSWER, answer=played))
        self.verdict = Verdict(VerdictKind.SUCCESS)
        self.work.services = [self.services[row.id]]
        breaker = self.work.fleet.breaker(self.services[row.id])
        with suppress(Stopped):
            for record in self.work.records([row.id], op=row.id):
                with record:
                    record.result = breaker.call(self.request).status_code
                break  # one try is enough to be judged
        return summary(self.verdict, self.at)


def is_right(row: Row, given: dict[str, Any]) -> bool:
    """Return whether a verdict is the row's."""
    if (given["verdict"], given["scope"]) != (row.verdict, row.scope):
        return False
    if given["until"] is None or row.until is None:
        return given["until"] == row.until
    return abs(given["until"] - row.until) <= TOLERANCE_S


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, help="write the verdict on each row of this file")
    parser.add_argument("--json", type=Path, help="where to write the results")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # most records fail, as they should
    rows = read(options.table or TABLE)
    verdicts: dict[str, dict[str, Any]] = {}
    wrong: set[str] = set()
    with sandbox_process() as sandbox, databases() as made:
        for name in ("sqlite", "postgres"):
            asking = Asking(made.make(name), rows, sandbox)
            verdicts = {row.id: asking.ask(row) for row in rows}
            asking.close()
            for row in rows:
                if row.verdict and not is_right(row, verdicts[row.id]):
                    wrong.add(row.id)
                    right = f"{row.verdict} {row.until} {row.scope}"
                    print(f"{row.id} on {name}: {verdicts[row.id]}, and not {right}")
    print(f"{len(rows) - len(wrong)} of {len(rows)} right")
    results: dict[str, Any] = verdicts
    if not options.table:
        results = {"answers_right": 1 - len(wrong) / len(rows)}
        with sandbox_process() as sandbox:
            results |= record_loops.figures(sandbox)
        for name, value in results.items():
            print(f"{name}: {value:g}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
