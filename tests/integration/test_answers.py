"""The table of answers over real HTTP: sandbox, httpx, breaker, record loop."""

from pathlib import Path

from demo.sandbox.client import SandboxClient
from tests.benchmarks.answers import Asking, is_right
from tests.support.answer_table import read
from tests.support.databases import both_databases

ROWS = read(Path(__file__).parents[1] / "unit" / "answers.json")


@both_databases
def test_every_answer_is_judged_right_over_http(sandbox: SandboxClient, store_url: str):
    asking = Asking(store_url, ROWS, sandbox)
    verdicts = {row.id: asking.ask(row) for row in ROWS}
    asking.close()
    assert {row.id: verdicts[row.id] for row in ROWS if not is_right(row, verdicts[row.id])} == {}
