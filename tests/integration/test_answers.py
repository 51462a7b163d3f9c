"""The tables of answers over real HTTP: sandbox, httpx, judge."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from demo.sandbox.client import SandboxClient
from tests.benchmarks.answers import is_right, verdict_on
from tests.support.answer_table import Row, read

TABLES = Path(__file__).parents[1] / "unit"


@pytest.fixture
def client(sandbox: SandboxClient) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sandbox.url, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("table", ["answers.json", "more_answers.json"])
def test_every_answer_is_judged_right_over_http(
    sandbox: SandboxClient, client: httpx.Client, table: str
):
    def wrong(row: Row) -> dict | None:
        verdict = verdict_on(row, sandbox, client)
        return None if is_right(row, verdict) else verdict

    rows = read(TABLES / table)
    assert {row.id: verdict for row in rows if (verdict := wrong(row))} == {}
