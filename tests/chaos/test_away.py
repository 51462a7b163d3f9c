"""PostgreSQL goes away under load and comes back."""

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.chaos.away import play

# Even the busiest waits between two tries, and longer each time.
MAX_TRIES = 40


def test_postgres_away_for_seconds_loses_nothing_and_frees_nothing():
    # Not among pytest's own directories: the server of tests that run as root is another user.
    with TemporaryDirectory(prefix="tidegate-away-") as folder:
        Path(folder).chmod(0o755)
        result = play(Path(folder), workers=4, records=150, away_s=8)
    assert result.findings() == []
    code, said = result.command
    assert code == 1
    assert "the store is unreachable" in said
    assert 1 <= min(result.tries_away) <= max(result.tries_away) <= MAX_TRIES
    assert len(result.expected) == 600
