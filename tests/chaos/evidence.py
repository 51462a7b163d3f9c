"""What the workers of a round write down, so that it outlives them: files, appended to."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.verdict import Listed, Sent

VARIABLE = "TIDEGATE_TEST_EVIDENCE"


class Notes:
    """The notes on one round.

    Args:
        partition: The round's partition.
        folder: Where the notes of all rounds are; what the environment says if None.
    """

    def __init__(self, partition: str, folder: Path | None = None) -> None:
        self._folder = (folder or Path(os.environ[VARIABLE])) / partition
        self._folder.mkdir(parents=True, exist_ok=True)

    def listed(self, run: str, keys: Sequence[str]) -> None:
        """Note what was in doubt when an attempt began, and that this process works on it."""
        for key in keys:
            self._append("listed", run, key)
        self._append("workers", run, str(os.getpid()))

    def sent(self, run: str, key: str, idempotency_key: str) -> None:
        """Note that a call is about to be made."""
        self._append("sent", run, key, idempotency_key)

    def results(self, results: Sequence[str]) -> None:
        """Note what the op returned."""
        (self._folder / "results").write_text(json.dumps(results))

    def again(self) -> None:
        """Ask for a run of the round's partition, once more or for the first time."""
        self._append("asked")

    def asked(self) -> int:
        """Return how often a run was asked for."""
        return len(self._lines("asked"))

    def all_listed(self) -> list[Listed]:
        """Return what was in doubt, attempt after attempt."""
        return [Listed(*line) for line in self._lines("listed")]

    def all_sent(self) -> list[Sent]:
        """Return the calls that were to be made."""
        return [Sent(*line) for line in self._lines("sent")]

    def all_results(self) -> list[str] | None:
        """Return what the op returned, or None if it did not."""
        path = self._folder / "results"
        return json.loads(path.read_text()) if path.exists() else None

    def workers(self) -> list[int]:
        """Return the process ids of those who worked, attempt after attempt."""
        return [int(pid) for _, pid in self._lines("workers")]

    def _append(self, name: str, *line: str) -> None:
        # One write at the end of the file: whole or not at all, and there after a SIGKILL.
        with (self._folder / name).open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")

    def _lines(self, name: str) -> list[list[str]]:
        path = self._folder / name
        if not path.exists():
            return []
        whole = path.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in whole]
