"""What limits cost, and how exactly they are kept: `python -m tests.benchmarks.limits`.

Options: `--json FILE` writes the figures.

`acquire_overhead_ratio`: a call that is permitted, of 8 processes / of pyrate-limiter in memory;
`acquire_vs_sql_ratio`: / of pyrate-limiter in the same kind of database. A server on loopback
counts when calls arrive. `over_limit_calls`: those beyond the limit in the worst window, of 8 and
of 32 processes that call as often as they may. `utilisation`: calls made / calls allowed.
`fairness`: by how much one of two campaigns of equal priority makes fewer calls than the other.
`refused_429`: calls that are refused by a service whose limit nobody declared, and whose headers
say what is left / those of processes that try again with a backoff.
"""

import argparse
import json
import random
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import psycopg
import pyrate_limiter
import sqlalchemy as sa
from sqlalchemy import event

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.limits import RateLimit
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from tests.benchmarks.breaker import nothing, run_fleet
from tests.benchmarks.counting_server import Client, counting_server
from tests.benchmarks.servers import Databases, databases

REPEATS = 3
CALLS = 20_000
SQL_CALLS = 100
"""Of pyrate-limiter in a database, by one process: several would wait for each other's locks."""
WORKERS = 8
MANY_WORKERS = 32
# The first is the tight one.
RATES = [RateLimit(calls=200, per_s=2), RateLimit(calls=6000, per_s=60)]
LASTS_S = 24.0
LASTS_MANY_S = 10.0
HIDDEN_CALLS, HIDDEN_WINDOW_S = 100, 4.0
HIDDEN_LASTS_S = 16.0


def _fleet(url: str, rates: list[RateLimit]) -> Fleet:
    policy = ServicePolicy(name="bench", limits=rates, linger_s=60, jitter=0)
    return Fleet(SqlBackend(Store(url)), [policy])


# --- what a permitted call costs -----------------------------------------------------------------


def _permitted(number: int, url: str, barrier: Barrier, _dead: Event) -> tuple[float, float, float]:
    """Seconds of a permitted call, without the call itself: ours, and pyrate-limiter's two."""
    fleet = _fleet(url, [RateLimit(calls=10**9, per_s=60)])
    breaker = fleet.breaker("bench")
    for _ in range(CALLS // 10):
        breaker.call(nothing)
    barrier.wait()
    ours = _seconds(lambda: breaker.call(nothing), CALLS)
    in_memory = pyrate_limiter.Limiter(pyrate_limiter.Rate(10**9, 60_000))
    barrier.wait()
    memory = _seconds(lambda: (in_memory.try_acquire("bench"), nothing()), CALLS)
    barrier.wait()
    bare = _seconds(nothing, CALLS)
    fleet.close()
    barrier.wait()
    in_sql = _seconds(_sql_limiter(url), SQL_CALLS) if number == 0 else 0.0
    return ours - bare, memory - bare, in_sql


def _seconds(step: Callable[[], Any], count: int) -> float:
    """Seconds of a step."""
    began = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - began) / count


class _Pool:
    """As much of a connection pool as pyrate-limiter uses, which takes several at once."""

    def __init__(self, url: str) -> None:
        address = sa.make_url(url).set(drivername="postgresql")
        self._address = address.render_as_string(hide_password=False)
        self._idle: list[psycopg.Connection] = []

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        conn = self._idle.pop() if self._idle else psycopg.connect(self._address)
        with conn.transaction():
            yield conn
        self._idle.append(conn)


def _sql_limiter(url: str) -> Callable[[], object]:
    """Return what acquires a call of pyrate-limiter in a database."""
    rates = [pyrate_limiter.Rate(10**9, 60_000)]
    bucket: Any
    if url.startswith("sqlite"):
        path = str(sa.make_url(url).database) + ".pyrate"
        bucket = pyrate_limiter.SQLiteBucket.init_from_file(rates, db_path=path, use_file_lock=True)
    else:
        bucket = pyrate_limiter.PostgresBucket(_Pool(url), "pyrate", rates)  # type: ignore[arg-type] -- all of a pool that it uses
    limiter = pyrate_limiter.Limiter(bucket)
    limiter.try_acquire("bench")
    return lambda: limiter.try_acquire("bench")


def acquire_overhead(url: str) -> tuple[float, float, float]:
    """Both ratios, and our microseconds a call."""
    results = run_fleet(WORKERS, _permitted, url)
    ours = statistics.median(each for each, _, _ in results)
    memory = statistics.median(each for _, each, _ in results)
    return ours / memory, ours / results[0][2], ours * 1e6


# --- how exactly limits are kept -----------------------------------------------------------------


def _eager(
    number: int, url: str, barrier: Barrier, _dead: Event, port: int, lasts_s: float
) -> tuple[int, float]:
    """How many calls it made, for one of two campaigns, and statements a second."""
    store = Store(url)
    policy = ServicePolicy(name="bench", limits=RATES, linger_s=60, jitter=0)
    fleet, client = Fleet(SqlBackend(store), [policy]), Client(port)
    breaker = fleet.breaker("bench")
    fleet.state.campaign = f"campaign-{number % 2}"
    made = statements = 0

    @event.listens_for(store.engine, "before_cursor_execute")
    def _count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    barrier.wait()
    began = time.time()
    while time.time() < began + lasts_s:
        try:
            breaker.call(client.call)
            made += 1
        except BreakerOpenError:
            time.sleep(0.05)
    per_s = statements / (time.time() - began)
    fleet.close()
    return made, per_s


def kept(url: str, workers: int, lasts_s: float) -> dict[str, float]:
    """Calls beyond the limit in the worst window, and how much of it is used by whom."""
    with counting_server() as port:
        results = run_fleet(workers, _eager, url, port, lasts_s)
        made, _refused = Client(port).made()
    made.sort()
    over = max(
        bisect_right(made, at + (rate.per_s or 0) - 1e-9) - first - rate.calls
        for rate in RATES
        for first, at in enumerate(made)
    )
    # In the long run: from the first call to the first of those that the last window permits.
    tight = RATES[0]
    before = len(made) - tight.calls
    windows = (made[before] - made[0]) / (tight.per_s or 1)
    halves = [sum(calls for calls, _ in results[half::2]) for half in (0, 1)]
    return {
        "over_limit_calls": max(0, over),
        "utilisation": before / (windows * tight.calls),
        "fairness": 1 - min(halves) / max(halves),
        "statements_per_second": statistics.median(per_s for _, per_s in results),
    }


# --- a limit that nobody declared ----------------------------------------------------------------


def _heeding(
    _number: int, url: str, barrier: Barrier, _dead: Event, port: int, lasts_s: float
) -> None:
    policy = ServicePolicy(name="bench", linger_s=60, jitter=0)
    fleet, client = Fleet(SqlBackend(Store(url)), [policy]), Client(port)
    breaker = fleet.breaker("bench")
    barrier.wait()
    until = time.time() + lasts_s
    while time.time() < until:
        with suppress(BreakerOpenError):
            breaker.call(client.call)
            continue
        fleet.wait_for_change(0.2)
    fleet.close()


def _retrying(
    _number: int, _url: str, barrier: Barrier, _dead: Event, port: int, lasts_s: float
) -> None:
    client = Client(port)
    barrier.wait()
    until, backoff_s = time.time() + lasts_s, 0.1
    while time.time() < until:
        if client.call().status == 200:
            backoff_s = 0.1
        else:
            time.sleep(backoff_s * (0.5 + random.random()))
            backoff_s = min(2 * backoff_s, 2.0)


def refused(url: str, body: Callable[..., None]) -> tuple[int, int]:
    """How many calls a service with a hidden limit refused, and permitted."""
    with counting_server(HIDDEN_CALLS, HIDDEN_WINDOW_S) as port:
        run_fleet(WORKERS, body, url, port, HIDDEN_LASTS_S)
        made, refusals = Client(port).made()
    return refusals, len(made)


def measure(made: Databases) -> dict[str, float]:
    """Return the figures, and print them."""
    figures: dict[str, float] = {}

    def note(name: str, value: float, bar: str = "") -> None:
        figures[name] = round(value, 4)
        print(f"{name:36} {value:10.4f}   {bar}", flush=True)

    plain, _ = refused("", _retrying)
    note("plain_retries_refused", plain, "so many calls; refused_429 is a share of them")
    for kind in ("sqlite", "postgres"):
        ratios = [acquire_overhead(made.make(kind)) for _ in range(REPEATS)]
        in_memory, in_sql, us = (statistics.median(each) for each in zip(*ratios, strict=True))
        note(f"acquire_overhead_ratio_{kind}", in_memory, "at most 1.0")
        note(f"acquire_vs_sql_ratio_{kind}", in_sql, "at most 0.05")
        note(f"acquire_us_{kind}", us)
        few = kept(made.make(kind), WORKERS, LASTS_S)
        many = kept(made.make(kind), MANY_WORKERS, LASTS_MANY_S)
        note(f"over_limit_calls_{kind}", few["over_limit_calls"], "0")
        note(f"over_limit_calls_{kind}_of_{MANY_WORKERS}", many["over_limit_calls"], "0")
        note(f"utilisation_{kind}", few["utilisation"], "at least 0.97")
        note(f"fairness_{kind}", few["fairness"], "at most 0.10")
        note(f"statements_per_second_{kind}", few["statements_per_second"])
        refusals, permitted = refused(made.make(kind), _heeding)
        note(f"refused_429_{kind}", refusals / max(1, plain), f"at most 0.01; {permitted} made")
    worst = {
        "acquire_overhead_ratio": max,
        "acquire_vs_sql_ratio": max,
        "utilisation": min,
        "fairness": max,
        "statements_per_second": max,
        "refused_429": max,
    }
    for name, pick in worst.items():
        figures[name] = pick(figures[f"{name}_{kind}"] for kind in ("sqlite", "postgres"))
    figures["over_limit_calls"] = max(
        value for name, value in figures.items() if name.startswith("over_limit_calls_")
    )
    return figures


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with databases() as made:
        figures = measure(made)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
