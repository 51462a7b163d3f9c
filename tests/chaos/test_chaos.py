"""A share of the chaos, always the same; `make chaos` plays many rounds, of other seeds."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.chaos.plan import plan
from tests.chaos.rounds import play
from tests.chaos.stage import stage

# Two rounds on each database, and blows of every kind.
SEEDS = range(4271, 4275)


@pytest.fixture
def place() -> Iterator[Path]:
    # Not among pytest's own directories, which a PostgreSQL of another user may not enter.
    with TemporaryDirectory(prefix="tidegate-chaos-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_nothing_is_lost_or_sent_twice(database: str, place: Path):
    plans = [plan(seed) for seed in SEEDS]
    its = [each for each in plans if each.database == database]
    wrong = []
    with stage(place / "home", database) as made:
        for played in play(made, its):
            print(f"seed {played.plan.seed}: {played.plan}")
            wrong += [f"seed {played.plan.seed}: {finding}" for finding in played.findings]
    assert not wrong, "play a round again with: make chaos SEED=... ROUNDS=1"
