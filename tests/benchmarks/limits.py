"""What limits cost, and how exactly they are kept.

    python -m tests.benchmarks.limits [--json FILE]

`acquire_overhead_ratio`: a call that is permitted, of 8 processes / of pyrate-limiter in memory.
`over_limit_calls`: calls beyond the limit, in the worst window of 8 processes that call as often as
they may. `utilisation`: calls made / calls allowed.
"""

import argparse
import json
import statistics
import time
from bisect import bisect_right
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pyrate_limiter

from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.limits import RateLimit
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from tests.benchmarks.breaker import nothing, run_fleet
from tests.benchmarks.servers import databases

REPEATS = 3
CALLS = 20_000
WORKERS = 8
# The first is the tight one.
RATES = [RateLimit(calls=200, per_s=2), RateLimit(calls=6000, per_s=60)]
LASTS_S = 40.0


def _fleet(url: str, rates: list[RateLimit]) -> Fleet:
    policy = ServicePolicy(name="bench", limits=rates, linger_s=60)
    return Fleet(SqlBackend(Store(url)), [policy])


def _permitted(_number: int, url: str, barrier: Barrier, _dead: Event) -> tuple[float, float]:
    """Seconds of a permitted call, without the call itself; then pyrate-limiter's."""
    fleet = _fleet(url, [RateLimit(calls=10**9, per_s=60)])
    breaker = fleet.breaker("bench")
    for _ in range(CALLS // 10):
        breaker.call(nothing)
    barrier.wait()
    began = time.perf_counter()
    for _ in range(CALLS):
        breaker.call(nothing)
    ours = time.perf_counter() - began
    theirs = pyrate_limiter.Limiter(pyrate_limiter.Rate(10**9, 60_000))
    barrier.wait()
    began = time.perf_counter()
    for _ in range(CALLS):
        theirs.try_acquire("bench")
        nothing()
    other = time.perf_counter() - began
    barrier.wait()
    began = time.perf_counter()
    for _ in range(CALLS):
        nothing()
    bare = time.perf_counter() - began
    fleet.close()
    return (ours - bare) / CALLS, (other - bare) / CALLS


def acquire_overhead(url: str) -> tuple[float, float]:
    """The ratio, and our microseconds a call."""
    results = run_fleet(WORKERS, _permitted, url)
    ours = statistics.median(ours for ours, _ in results)
    return ours / statistics.median(theirs for _, theirs in results), ours * 1e6


def _eager(_number: int, url: str, barrier: Barrier, _dead: Event) -> list[float]:
    """When each call was made, by the machine's clock."""
    fleet = _fleet(url, RATES)
    breaker = fleet.breaker("bench")
    made: list[float] = []
    barrier.wait()
    until = time.time() + LASTS_S
    while time.time() < until:
        try:
            breaker.call(lambda: made.append(time.time()))
        except BreakerOpenError:
            time.sleep(0.05)
    fleet.close()
    return made


def kept(url: str) -> tuple[int, float]:
    """Calls beyond the limit in the worst window, and the share of the allowed calls made."""
    made = sorted(at for each in run_fleet(WORKERS, _eager, url) for at in each)
    over = max(
        bisect_right(made, at + (rate.per_s or 0)) - first - rate.calls
        for rate in RATES
        for first, at in enumerate(made)
    )
    # In the long run: from the first call to the first of those that the last window permits.
    tight = RATES[0]
    before = len(made) - tight.calls
    windows = (made[before] - made[0]) / (tight.per_s or 1)
    return max(0, over), before / (windows * tight.calls)


def measure() -> dict[str, float]:
    """Return the figures, and print them."""
    figures: dict[str, float] = {}

    def note(name: str, value: float, bar: str = "") -> None:
        figures[name] = round(value, 3)
        print(f"{name:36} {value:10.3f}   {bar}", flush=True)

    with databases() as made:
        for kind in ("sqlite", "postgres"):
            ratios = [acquire_overhead(made.make(kind)) for _ in range(REPEATS)]
            ratio = statistics.median(ratio for ratio, _ in ratios)
            note(f"acquire_overhead_ratio_{kind}", ratio, "at most 1.0")
            note(f"acquire_us_{kind}", statistics.median(us for _, us in ratios))
            over, share = kept(made.make(kind))
            note(f"over_limit_calls_{kind}", over, "0")
            note(f"utilisation_{kind}", share, "at least 0.97")
    for name, worst in (
        ("acquire_overhead_ratio", max),
        ("over_limit_calls", max),
        ("utilisation", min),
    ):
        figures[name] = worst(figures[f"{name}_{kind}"] for kind in ("sqlite", "postgres"))
    return figures


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = measure()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
