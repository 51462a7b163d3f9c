"""Rounds of chaos without a pause: `python -m tests.chaos.soak [--minutes 60] [--seed S]`.

On PostgreSQL, for as long as it is told to. Each round is judged as always; and the memory, the
open files and the threads of the processes that live all the time, the connections to the
database and its size are sampled, and may not grow from the second quarter to the last one.
"""

import argparse
import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import psutil
import sqlalchemy as sa

from dagster_tidegate.store import retention
from dagster_tidegate.store.database import UNREACHABLE
from tests.chaos.__main__ import tell
from tests.chaos.plan import Kind, Plan, plan
from tests.chaos.rounds import PLAYED_AT_ONCE, Played, play
from tests.chaos.stage import Stage, stage

SAMPLE_EVERY_S = 5.0
PRUNE_EVERY_S = 60.0
AGE = timedelta(minutes=2)
KEEP = retention.Keep(
    **dict.fromkeys(set(retention.KINDS) - {"spending"}, AGE), spending=retention.MIN_SPENDING
)
MAX_GROWTH = {"MB": 1.1, "files": 1.1, "threads": 1.1, "connections": 1.2, "rows": 1.5}
"""By unit, how much more the last quarter may have than the second."""

Sample = Mapping[str, float]


def growth(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Return what each figure was in the second quarter, and what in the last: medians. Pure.

    Example:
        >>> growth([{"MB of daemon": mb} for mb in (100, 150, 150, 152)])
        {'MB of daemon': (150, 152)}
    """
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[3 * quarter :]
    return {
        name: (
            statistics.median(sample[name] for sample in second),
            statistics.median(sample[name] for sample in last),
        )
        for name in samples[-1]
    }


def grown(figures: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return what grew by more than `MAX_GROWTH`, and by more than a handful. Pure.

    Example:
        >>> grown({"MB of daemon": (150, 200), "files of daemon": (20, 22)})
        ['MB of daemon: from 150 to 200']
    """
    return [
        f"{name}: from {before:.4g} to {after:.4g}"
        for name, (before, after) in figures.items()
        if after > before * MAX_GROWTH[name.split()[0]] and after > before + 5
    ]


def _plans(first: int) -> Iterator[Plan]:
    """Rounds on PostgreSQL, without end; the daemon stays, so that its memory tells something."""
    for seed in itertools.count(first | 1, step=2):
        drawn = plan(seed)
        blows = tuple(blow for blow in drawn.blows if blow.kind is not Kind.DAEMON)
        yield replace(drawn, blows=blows)


def _sample(made: Stage) -> Sample:
    taken: dict[str, float] = {}
    for name, process in made.processes().items():
        with process.oneshot():
            taken[f"MB of {name}"] = process.memory_info().rss / 2**20
            taken[f"files of {name}"] = process.num_fds()
            taken[f"threads of {name}"] = process.num_threads()
    with made.store.read() as conn:
        taken["connections to the store"] = conn.scalar(_CONNECTIONS) or 0
        taken["MB of the store"] = (conn.scalar(_BYTES) or 0) / 2**20
        taken["rows of the ledger"] = conn.scalar(_LEDGER) or 0
    return taken


def _watch(made: Stage, samples: list[Sample], stopped: Event) -> None:
    pruned_at = 0.0
    while not stopped.wait(SAMPLE_EVERY_S):
        # The database is killed now and then.
        with suppress(*UNREACHABLE, psutil.NoSuchProcess):
            if time.monotonic() > pruned_at + PRUNE_EVERY_S:
                with made.store.read() as conn:
                    now = made.store.now(conn)
                retention.prune(made.store, now, KEEP, batches=100)
                pruned_at = time.monotonic()
            samples.append(_sample(made))


def soak(made: Stage, first: int, minutes: float) -> tuple[list[Played], list[Sample]]:
    """Play rounds for some minutes; return them and what was sampled."""
    played: list[Played] = []
    samples: list[Sample] = []
    stopped = Event()
    watcher = Thread(target=_watch, args=(made, samples, stopped))
    watcher.start()
    until = time.monotonic() + 60 * minutes
    plans = _plans(first)
    try:
        while time.monotonic() < until:
            for each in play(made, list(itertools.islice(plans, PLAYED_AT_ONCE))):
                tell(each)
                played.append(each)
                # Its sensor looks at every partition there is.
                made.instance.delete_dynamic_partition("rounds", each.plan.partition)
    finally:
        stopped.set()
        watcher.join()
    return played, samples


def main() -> None:
    """Play, sample, and judge; ends with 1 if something went wrong or grew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, help="seed of the first round; the others count on")
    arguments = parser.parse_args()
    first = random.randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"rounds from seed {first} on, for {arguments.minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="tidegate-soak-") as folder:
        Path(folder).chmod(0o755)  # the database server may be another user
        with stage(Path(folder) / "home", "postgres") as made:
            played, samples = soak(made, first, arguments.minutes)
    figures = growth(samples)
    for name, (before, after) in figures.items():
        print(f"{name:28} {before:10.1f} {after:10.1f}")
    records = sum(each.plan.records for each in played)
    wrong = sorted(each.plan.seed for each in played if each.findings)
    print(
        f"{len(played)} rounds, {records} records, {sum(len(p.struck) for p in played)} blows, "
        f"{len(samples)} samples; wrong: {wrong or 'none'}; grown: {grown(figures) or 'nothing'}"
    )
    sys.exit(1 if wrong or grown(figures) else 0)


_CONNECTIONS = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
_BYTES = sa.text("SELECT pg_database_size(current_database())")
_LEDGER = sa.text("SELECT count(*) FROM ledger")


if __name__ == "__main__":
    main()
