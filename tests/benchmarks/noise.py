"""False alarms and missed brownouts: `python -m tests.benchmarks.noise [--calls N] [--json FILE]`.

Simulates services with a settable clock: healthy ones that are noisy, and ones that fail. Each rule
is asked after each call. Bars: no false alarm of the defaults in a million calls.
"""

import argparse
import json
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from dagster_tidegate.breaker.backend import MemoryBackend
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.state_machine import exceeds
from dagster_tidegate.statuses import BreakerState
from tests.support.clock import Clock

Durations = Callable[[random.Random], float]
# Name: how long a call of a healthy service takes, in seconds.
HEALTHY: dict[str, Durations] = {
    "steady, 50 ms": lambda dice: dice.lognormvariate(math.log(0.05), 0.3),
    "noisy, 200 ms": lambda dice: dice.lognormvariate(math.log(0.2), 1.0),
    "5 % take 40 times as long": lambda dice: 0.2 * (40 if dice.random() < 0.05 else 1),
    "30 % take 60 times as long": lambda dice: 0.5 * (60 if dice.random() < 0.3 else 1),
    "language model, 2 to 90 s": lambda dice: dice.lognormvariate(math.log(10), 0.8),
}


class Failed(Exception):
    """A simulated failure."""


def false_alarms(durations: Durations, fails: float, calls: int) -> int:
    """Return how often the default policy trips on a healthy service."""
    dice, clock = random.Random(4711), Clock()
    breaker = Fleet(MemoryBackend(clock=clock), [ServicePolicy(name="s")]).breaker("s")

    def call() -> None:
        clock.advance(durations(dice))
        if dice.random() < fails:
            raise Failed

    alarms = 0
    for _ in range(calls):
        try:
            breaker.call(call)
        except BreakerOpenError:
            alarms += 1
            breaker.close()
        except Failed:
            pass
    return alarms


def calls_to_notice(usual_s: float, times: float) -> int | None:
    """Return after how many calls the default policy notices a brownout; None if not in 200."""
    clock = Clock()
    breaker = Fleet(MemoryBackend(clock=clock), [ServicePolicy(name="s")]).breaker("s")
    for _ in range(300):
        breaker.call(clock.advance, usual_s)
    for number in range(200):
        if breaker.status.state is BreakerState.OPEN:
            return number
        breaker.call(clock.advance, usual_s * times)
    return None


def bare_share(failed: int, calls: float, rate: float) -> bool:
    """The rule without a confidence bound."""
    return failed >= rate * calls


def _windows(dice: random.Random, fails: float, calls: int, per_s: float) -> Iterator[tuple]:
    """Yield how many of the calls of the last minute failed, after each call."""
    window: deque[bool] = deque()
    failed = 0
    for _ in range(calls):
        window.append(dice.random() < fails)
        failed += window[-1]
        if len(window) > per_s * 60:
            failed -= window.popleft()
        yield failed, len(window)


def rate_alarms(rule: Callable[[int, float, float], bool], fails: float, calls: int) -> int:
    """Return how often `failure_rate=0.5, min_calls=20` trips at a share of failures below it."""
    dice, alarms, left = random.Random(4711), 0, calls
    while left > 0:
        for failed, counted in _windows(dice, fails, left, 1.0):
            left -= 1
            if counted >= 20 and rule(failed, counted, 0.5):
                alarms += 1  # it opens, closes, and counts anew
                break
    return alarms


def rate_delay(rule: Callable[[int, float, float], bool], fails: float) -> float:
    """Return after how many failing calls it trips, on average of 200 outages."""
    total = 0
    for seed in range(200):
        for number, (failed, counted) in enumerate(
            _windows(random.Random(seed), fails, 10_000, 1.0), start=1
        ):
            if counted >= 20 and rule(failed, counted, 0.5):
                total += number
                break
    return total / 200


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, float | int | None] = {}
    for name, durations in HEALTHY.items():
        for fails in (0.0, 0.02):
            key = f"false alarms, {name}, {fails:.0%} fail"
            figures[key] = false_alarms(durations, fails, options.calls)
    for usual_s, times in ((0.05, 80), (0.2, 80), (2.0, 80), (0.2, 15)):
        figures[f"calls to notice, {usual_s:g} s x{times:g}"] = calls_to_notice(usual_s, times)
    for rule in (bare_share, exceeds):
        for fails in (0.2, 0.35):
            key = f"rate: {rule.__name__}, alarms at {fails:.0%}"
            figures[key] = rate_alarms(rule, fails, options.calls)
        for fails in (0.6, 0.8, 1.0):
            key = f"rate: {rule.__name__}, calls to notice {fails:.0%}"
            figures[key] = rate_delay(rule, fails)
    for key, value in figures.items():
        print(f"{key}: {value}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
