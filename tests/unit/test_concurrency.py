"""Slots for calls in flight: never more than there are, and everybody gets a turn."""

import asyncio
import contextlib
import gc
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import hypothesis.strategies as st
from hypothesis import given

from dagster_tidegate.breaker.concurrency import (
    LEASE_S,
    SlotRequest,
    SlotState,
    lease_slots,
)
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy

STEP = st.tuples(
    st.sampled_from(["ask", "begin", "begin", "end", "end", "die"]),
    st.integers(0, 4),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.3, 1.1, 40.0]),
)


@given(st.integers(1, 6), st.lists(STEP, max_size=60))
def test_no_more_calls_are_in_flight_than_there_are_slots(
    limit: int, steps: list[tuple[str, int, int, float]]
) -> None:
    """Dead processes count until their slots expire; living ones renew them in time."""
    state, now = SlotState(), 0.0
    names = [f"p{n}" for n in range(5)]
    slots: Counter[str] = Counter()
    in_use: Counter[str] = Counter()
    for number, (what, who, wanted, passes) in enumerate(steps):
        for _ in range(int(passes // 10)):
            now += 10.0
            for name in names:
                if slots[name]:
                    lease_slots(state, limit, now, name, SlotRequest(slots[name]))
        now += passes % 10
        name = names[who]
        if what == "ask":
            request = SlotRequest(in_use[name], wanted)
            slots[name] = lease_slots(state, limit, now, name, request).slots
            assert slots[name] >= in_use[name], "no call in flight loses its slot"
        elif what == "begin" and in_use[name] < slots[name]:
            in_use[name] += 1
        elif what == "end" and in_use[name]:
            in_use[name] -= 1
        elif what == "die":  # its calls end with it
            names[who] = f"p{5 + number}"
        assert sum(in_use[name] for name in names) <= limit


def test_processes_get_equal_shares_while_others_wait() -> None:
    state = SlotState()
    assert lease_slots(state, 10, 0.0, "a", SlotRequest(0, 10)).slots == 10
    assert lease_slots(state, 10, 0.1, "b", SlotRequest(0, 10)).slots == 0
    grant = lease_slots(state, 10, 1.0, "a", SlotRequest(5, 5))
    assert grant.slots == 5
    assert grant.turn_s == 1.0, "it asks again soon, as somebody waits"
    assert lease_slots(state, 10, 1.1, "b", SlotRequest(0, 10)).slots == 5


def test_more_processes_than_slots_take_turns() -> None:
    state, turns, now = SlotState(), Counter[str](), 0.0
    in_use: Counter[str] = Counter()
    for _ in range(400):
        for name in "abcdefgh":
            now += 0.01
            in_use[name] = 0  # its call has ended
            slots = lease_slots(state, 2, now, name, SlotRequest(0, 1)).slots
            turns[name] += slots
    assert min(turns.values()) >= 0.9 * max(turns.values())


def test_the_slots_of_a_dead_process_come_back() -> None:
    state = SlotState()
    assert lease_slots(state, 3, 0.0, "dead", SlotRequest(0, 3)).slots == 3
    assert lease_slots(state, 3, LEASE_S - 0.1, "next", SlotRequest(0, 3)).slots == 0
    assert lease_slots(state, 3, LEASE_S + 0.1, "next", SlotRequest(0, 3)).slots == 3


class Busy:
    """A service that notes how many calls are in flight."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = Lock(), 0, 0

    def begin(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def end(self) -> None:
        with self.lock:
            self.now -= 1

    def call(self, *, fails: bool = False) -> None:
        self.begin()
        time.sleep(0.01)
        self.end()
        if fails:
            raise ValueError("the record's own fault")


def test_threads_and_failures_keep_to_it_and_lose_no_slot() -> None:
    fleet = Fleet(policies=[ServicePolicy(name="mail", max_concurrency=3)])
    breaker, busy = fleet.breaker("mail"), Busy()

    def call(number: int) -> None:
        with contextlib.suppress(ValueError):
            breaker.call(busy.call, fails=number % 3 == 0)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(call, range(60)))
    assert busy.most == 3


def test_coroutines_keep_to_it_and_an_abandoned_one_returns_its_slot() -> None:
    fleet = Fleet(policies=[ServicePolicy(name="mail", max_concurrency=2)])
    breaker, busy = fleet.breaker("mail"), Busy()

    async def work(number: int) -> None:
        busy.begin()
        await asyncio.sleep(0.01)
        busy.end()
        if number % 3 == 0:
            raise ValueError("the record's own fault")

    async def all_of_them() -> list[BaseException | None]:
        calls = (breaker.call_async(work, number) for number in range(40))
        return await asyncio.gather(*calls, return_exceptions=True)

    assert len([each for each in asyncio.run(all_of_them()) if each is not None]) == 14
    assert busy.most == 2
    for _ in range(5):
        breaker.call(lambda: (number for number in range(3)))  # a generator that nobody reads
        gc.collect()
    asyncio.run(all_of_them())
    assert busy.most == 2


def test_parts_share_the_slots_of_the_whole() -> None:
    policy = ServicePolicy(name="mail", parts=["bulk", "single"], max_concurrency=2)
    fleet, busy = Fleet(policies=[policy]), Busy()
    parts = [fleet.breaker("mail/bulk"), fleet.breaker("mail/single")]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: parts[n % 2].call(busy.call), range(24)))
    assert busy.most == 2
