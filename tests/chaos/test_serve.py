"""A share of the rounds in which `tidegate serve` is killed; `make chaos` plays many more."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.serve import play, stage
from tests.chaos.serve_plan import Kind, plan
from tests.support.sqlite_stores import new_sqlite_url

# Two rounds on each database, and requests of every kind on both.
SEEDS = range(8585, 8589)


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_what_was_answered_is_in_effect_once_and_the_rest_as_a_whole_or_not_at_all(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
):
    if database == "postgres":
        new_postgres_url: Callable[[], str] = request.getfixturevalue("new_postgres_url")
        url = new_postgres_url()
    else:
        url = new_sqlite_url(tmp_path / "tidegate.db")
    plans = [each for each in map(plan, SEEDS) if each.database == database]
    assert {each.kind for its in plans for each in its.requests} == set(Kind)
    wrong = []
    with stage(tmp_path / "home", url) as made:
        for each in plans:
            wrong += [f"seed {each.seed}: {finding}" for finding in play(made, each).findings]
    assert not wrong, "play a round again with: python -m tests.chaos.serve --rounds 1 --seed ..."
