"""What answers mean, over real HTTP: `python -m tests.benchmarks.answers [--table FILE]`.

Each row of a table is played by the sandbox, requested with httpx, and judged.
"""

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from dagster_tidegate.breaker.answers import answer_of
from dagster_tidegate.breaker.judge import judge_for
from dagster_tidegate.breaker.policy import ServicePolicy
from demo.sandbox.cases import PlayedAnswer
from demo.sandbox.client import SandboxClient
from demo.sandbox.faults import Fault, Mode
from tests.support.answer_table import Row, read, summary
from tests.support.sandbox import sandbox_process

TABLE = Path(__file__).parents[1] / "unit" / "answers.json"
PLAYS = "openai"
"""The service of the sandbox that plays all others."""
TOLERANCE_S = 2


def request(http: httpx.Client) -> httpx.Response:
    """Call the service as a client does that raises for what is no success."""
    response = http.get(f"/{PLAYS}/anything")
    response.raise_for_status()
    if response.content and "json" in response.headers.get("content-type", ""):
        response.json()
    return response


def verdict_on(row: Row, sandbox: SandboxClient, http: httpx.Client) -> dict[str, Any]:
    """Return the verdict on a row, as the row would have it."""
    if row.has_times:  # the dates of HTTP have whole seconds
        time.sleep(1 - time.time() % 1)
    status, headers, body = row.at(datetime.now(UTC))
    played = PlayedAnswer(status=status, headers=headers, body="" if body is None else body)
    sandbox.place(PLAYS, Fault(mode=Mode.ANSWER, answer=played))
    judge = judge_for(ServicePolicy(name=row.service, profile=row.profile))
    try:
        result: object = request(http)
    except Exception as error:  # noqa: BLE001 -- whatever a client raises is judged
        result = error
    now = datetime.now(UTC)
    answer = answer_of(result, now)
    assert answer is not None
    return summary(judge(answer), now)


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
    rows = read(options.table or TABLE)
    with sandbox_process() as sandbox, httpx.Client(base_url=sandbox.url, trust_env=False) as http:
        verdicts = {row.id: verdict_on(row, sandbox, http) for row in rows}
    wrong = [row for row in rows if row.verdict and not is_right(row, verdicts[row.id])]
    for row in wrong:
        print(f"{row.id}: {verdicts[row.id]}, and not {row.verdict} {row.until} {row.scope}")
    print(f"{len(rows) - len(wrong)} of {len(rows)} right")
    results = verdicts if options.table else {"answers_right": 1 - len(wrong) / len(rows)}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
