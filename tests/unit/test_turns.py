"""Calls of a limit among campaigns that wait for them: fair, and by priority."""

import heapq
import random
from collections import Counter

import pytest

from dagster_tidegate.breaker.limiter import MIN_PAUSE_S
from dagster_tidegate.breaker.limits import RateLimit
from dagster_tidegate.breaker.turns import Turn, ask, others_first
from tests.support.leasing_fleet import Lender

RATES = [RateLimit(calls=200, per_s=2), RateLimit(calls=6000, per_s=60)]


class Eager:
    """Processes that call as often as they may, in simulated time.

    Attributes:
        made: How many calls each campaign made.
        longest: How long each campaign waited at most for a call.
        refusals: How often a process was refused, which throttles the service.
    """

    def __init__(self, *campaigns: tuple[str, int, int], lasts_s: float = 30.0) -> None:
        self.made, self.refusals = Counter[str](), 0
        self.longest: dict[str, float] = {}
        lender, self._random = Lender(RATES), random.Random(4711)
        self._processes = [
            lender.of(f"{name}{n}", name, priority)
            for name, priority, count in campaigns
            for n in range(count)
        ]
        self._patience = [5.0] * len(self._processes)
        self._asked_at = [0.0] * len(self._processes)
        due = [(self._random.random() / 100, n) for n in range(len(self._processes))]
        heapq.heapify(due)
        while due[0][0] < lasts_s:
            lender.passed, number = heapq.heappop(due)
            heapq.heappush(due, (lender.passed + self._step(number), number))

    def _step(self, number: int) -> float:
        """What a process does next; return how many seconds that takes."""
        process = self._processes[number]
        limiter, now = process.limiter, process.lender.passed
        if limiter.take():
            waited_s = now - self._asked_at[number]
            self.made[process.campaign] += 1
            self.longest[process.campaign] = max(self.longest.get(process.campaign, 0), waited_s)
            self._patience[number], seconds = 5.0, 0.003 * self._random.uniform(0.7, 1.3)
            self._asked_at[number] = now + seconds
            return seconds
        pause = limiter.wait_s
        if not pause:
            refusal = limiter.renew(self._patience[number])
            if refusal is None and not limiter.wait_s:
                return 0.01 * self._random.uniform(0.7, 1.5)
            if refusal is not None:
                pause = max(process.seconds_until(refusal), MIN_PAUSE_S)
                self.refusals += pause > self._patience[number]
            else:
                pause = limiter.wait_s
        self._patience[number] -= pause
        return pause + 0.003 * self._random.random()

    @property
    def utilisation(self) -> float:
        return self.made.total() / (RATES[0].calls * 30 / 2)


@pytest.mark.parametrize(("of_a", "of_b"), [(4, 4), (7, 1)])
def test_equal_campaigns_get_equal_shares_whatever_runs_they_have(of_a: int, of_b: int) -> None:
    fleet = Eager(("a", 0, of_a), ("b", 0, of_b))
    assert fleet.made["b"] >= (0.9 if of_a == of_b else 0.6) * fleet.made["a"]
    assert fleet.refusals == 0


def test_the_campaign_of_higher_priority_goes_first_and_the_other_gets_its_turn() -> None:
    fleet = Eager(("digest", 0, 4), ("urgent", 5, 4))
    assert fleet.made["urgent"] >= 0.85 * fleet.made.total()
    assert 0 < fleet.longest["digest"] < 5
    assert fleet.refusals == 0, "nobody waits in vain, which would throttle the service for all"


def test_fairness_costs_no_calls() -> None:
    for campaigns in ([("a", 0, 8)], [("a", 0, 7), ("b", 0, 1)], [("a", 0, 4), ("b", 5, 4)]):
        assert Eager(*campaigns).utilisation >= 0.95


def test_nobody_waits_for_a_campaign_that_wants_nothing() -> None:
    turns: dict[str, Turn] = {}
    ask(turns, "urgent", 5, 0.0, limit=100).waits_until = 1.0
    mine = ask(turns, "digest", 0, 0.5, limit=100)
    assert others_first(turns, mine, 0.5, limit=100)
    assert not others_first(turns, mine, 1.0, limit=100)


def test_a_campaign_that_was_away_saves_nothing_up() -> None:
    turns: dict[str, Turn] = {}
    ask(turns, "b", 0, 0.0, limit=100)
    ask(turns, "a", 0, 0.0, limit=100).calls = 1_000
    assert ask(turns, "b", 0, 10.0, limit=100).calls == 950, "it was slow: half a limit is its lead"
    turn = ask(turns, "a", 0, 25.0, limit=100)
    assert turns == {"a": turn}
    assert ask(turns, "b", 0, 25.0, limit=100).calls == turn.calls


def test_a_clock_that_was_set_back_keeps_nobody_waiting() -> None:
    turns: dict[str, Turn] = {}
    ask(turns, "urgent", 5, 7_200.0, limit=100).waits_until = 7_210.0
    assert not others_first(turns, ask(turns, "digest", 0, 10.0, limit=100), 10.0, limit=100)
