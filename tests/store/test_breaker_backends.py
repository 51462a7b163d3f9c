"""One suite for every place where breakers are kept: memory, SQLite, PostgreSQL."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from dagster_tidegate.breaker import state_machine as machine
from dagster_tidegate.breaker.backend import BreakerBackend, MemoryBackend, Trial
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.verdicts import Verdict, VerdictKind
from dagster_tidegate.breaker.window import LocalWindow, WindowDelta, bucket_of, window_stats
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import BreakerState
from dagster_tidegate.store import breakers, holds, service_stats
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.events import EventKind
from tests.support.clock import Clock
from tests.support.examples import share_of_examples
from tests.support.failing_service import policy

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
FAILED = Verdict(VerdictKind.FAILURE, reason="503")
numbers = count()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def backend(request: pytest.FixtureRequest, clock: Clock) -> Iterator[BreakerBackend]:
    if request.param == "memory":
        yield MemoryBackend(clock=clock)
        return
    store = Store(request.getfixturevalue(f"{request.param}_url"), clock=clock)
    yield SqlBackend(store)
    store.dispose()


def opened(backend: BreakerBackend, rules: ServicePolicy) -> None:
    before = backend.read([rules.name]).services[rules.name]
    after = machine.opened(
        before, rules, backend.now(), Verdict(VerdictKind.FAILURE, reason="503 x3"), 0.0
    )
    assert backend.change(before, after, "worker-1")


def state(backend: BreakerBackend) -> BreakerState:
    return backend.read(["openai"]).services["openai"].state


def test_a_new_service_begins_closed(backend: BreakerBackend, clock: Clock):
    snapshot = backend.read(["openai", "apollo"])
    assert {name: c.state for name, c in snapshot.services.items()} == {
        "openai": CLOSED,
        "apollo": CLOSED,
    }
    assert snapshot.read_at == clock()
    assert backend.read([]).services == snapshot.services


def test_a_change_is_won_once(backend: BreakerBackend, clock: Clock):
    before = backend.read(["openai"]).services["openai"]
    first = machine.opened(
        before, policy(), clock(), Verdict(VerdictKind.FAILURE, reason="503 x3"), 0.0
    )
    second = machine.opened(
        before, policy(), clock(), Verdict(VerdictKind.FAILURE, reason="429 x3"), 0.0
    )
    assert backend.change(before, first, "a") is True
    assert backend.change(before, second, "b") is False
    assert backend.read([]).services["openai"] == first


def test_a_breaker_is_open_if_and_only_if_it_has_its_hold(backend: BreakerBackend, clock: Clock):
    def held() -> list[tuple[str, str]]:
        return [(str(hold.target), hold.reason) for hold in backend.read([]).holds]

    rules = policy(success_threshold=1)
    assert held() == []
    opened(backend, rules)
    assert held() == [("service openai", "503 x3")]
    clock.advance(30)
    trial = backend.take_trial(rules, "a").trial
    assert trial is not None
    assert (state(backend), held()) == (HALF_OPEN, [("service openai", "503 x3")])
    backend.end_trial(rules, trial, Verdict(VerdictKind.FAILURE))
    assert (state(backend), held()) == (OPEN, [("service openai", "503 x3")])
    clock.advance(60)
    trial = backend.take_trial(rules, "a").trial
    assert trial is not None
    backend.end_trial(rules, trial, Verdict(VerdictKind.SUCCESS))
    assert (state(backend), held()) == (CLOSED, [])


def test_trial_calls_are_leased_up_to_the_permitted_number(backend: BreakerBackend, clock: Clock):
    rules = policy(trial_calls=2, trial_lease_s=60)
    opened(backend, rules)
    early = backend.take_trial(rules, "a")
    assert (early.trial, early.retry_at) == (None, clock() + timedelta(seconds=30))
    clock.advance(30)
    answers = [backend.take_trial(rules, name) for name in "abc"]
    assert [answer.trial is not None for answer in answers] == [True, True, False]
    assert [answer.before is not answer.after for answer in answers] == [True, False, False]
    assert answers[2].retry_at == clock() + timedelta(seconds=60)
    assert answers[0].trial is not None
    backend.end_trial(rules, answers[0].trial, Verdict(VerdictKind.IGNORED))
    assert backend.take_trial(rules, "c").trial is not None


def test_a_lease_that_expired_blocks_nobody_and_its_late_result_is_dropped(
    backend: BreakerBackend, clock: Clock
):
    rules = policy(trial_calls=1, trial_lease_s=60)
    opened(backend, rules)
    clock.advance(30)
    dead = backend.take_trial(rules, "dead").trial
    assert dead is not None
    clock.advance(60)
    heir = backend.take_trial(rules, "heir").trial
    assert heir is not None
    before, after = backend.end_trial(rules, dead, Verdict(VerdictKind.SUCCESS))
    assert before == after
    assert state(backend) == HALF_OPEN
    backend.end_trial(rules, heir, Verdict(VerdictKind.SUCCESS))
    assert state(backend) == CLOSED


def test_a_failed_trial_call_ends_the_others(backend: BreakerBackend, clock: Clock):
    rules = policy(trial_calls=2)
    opened(backend, rules)
    clock.advance(30)
    trials = [backend.take_trial(rules, name).trial for name in "ab"]
    assert None not in trials
    backend.end_trial(rules, trials[0], Verdict(VerdictKind.FAILURE))  # type: ignore[arg-type] - see above
    backend.end_trial(rules, trials[1], Verdict(VerdictKind.SUCCESS))  # type: ignore[arg-type] - see above
    assert state(backend) == OPEN


def test_failures_of_different_workers_add_up(backend: BreakerBackend, clock: Clock):
    backend.read(["openai"])
    workers = [Worker(backend, policy(), clock) for _ in range(3)]
    for worker in workers:
        clock.advance(0.01)
        worker.fail()
    assert state(backend) == OPEN


def test_a_success_of_another_worker_breaks_the_row(backend: BreakerBackend, clock: Clock):
    backend.read(["openai"])
    first, second = (Worker(backend, policy(), clock) for _ in range(2))
    for worker, action in [
        (first, "fail"),
        (first, "fail"),
        (second, "succeed"),
        (first, "fail"),
        (first, "fail"),
    ]:
        clock.advance(0.01)
        getattr(worker, action)()
    assert state(backend) == CLOSED
    clock.advance(0.01)
    second.fail()
    assert state(backend) == OPEN


def test_old_counts_are_pruned(store: Store, clock: Clock):
    backend, rules = SqlBackend(store), policy()
    backend.read([rules.name])
    for _ in range(5):
        Worker(backend, rules, clock).succeed()
        clock.advance(rules.window_s)
    assert backend.prune([rules]) == 3
    assert backend.prune([rules]) == 0


def test_pruned_counts_stay_in_the_verdicts_of_their_minute(store: Store, clock: Clock):
    backend, rules = SqlBackend(store), policy()
    backend.read([rules.name])

    def count(worker: str, **counts: Any) -> None:
        bucket = bucket_of(rules, clock())
        backend.flush([(rules, WindowDelta(rules.name, 0, worker, bucket, clock(), **counts))])

    def minutes() -> list[tuple[int, int, int, int]]:
        with store.read() as conn:
            by_minute = service_stats.last_hour(conn, clock()).get(rules.name, ())
        return [(c.minutes_ago, c.ok, c.failed, c.throttled) for c in by_minute]

    clock.advance(-clock().timestamp() % 60 + 1)
    count("a", ok=3, throttled=1)
    count("b", ok=2, failed=1)
    clock.advance(10)
    count("a", ok=1, throttled=2)
    clock.advance(40 * 60)
    count("a", ok=7)
    assert minutes() == [(40, 6, 1, 3), (0, 7, 0, 0)]
    assert backend.prune([rules]) == 3
    assert minutes() == [(40, 6, 1, 3), (0, 7, 0, 0)]
    clock.advance(19 * 60)
    assert backend.prune([rules]) == 1
    assert [row[1:] for row in minutes()] == [(6, 1, 3), (7, 0, 0)]
    clock.advance(2 * 60)
    assert minutes() == [(21, 7, 0, 0)]
    with store.read() as conn:
        days = clock() - timedelta(days=2), clock() + timedelta(days=1)
        of_days = service_stats.of_period(conn, *days)[rules.name]
        assert service_stats.of_period(conn, days[0], days[0]) == {}
    assert (of_days.ok, of_days.failed, of_days.throttled) == (13, 1, 3)


def test_a_worker_whose_calls_say_nothing_of_the_service_is_no_worker_of_its_window(
    backend: BreakerBackend, clock: Clock
):
    rules = policy()
    backend.read([rules.name])
    bucket = bucket_of(rules, clock())
    backend.flush([(rules, WindowDelta(rules.name, 0, "b", bucket, clock(), rejected=9))])
    delta = WindowDelta(rules.name, 0, "a", bucket, clock(), failed=1, last_failed_at=clock())
    _, stats = backend.record(rules, delta)
    assert (stats.workers, stats.failed) == (1, 1)


def test_a_count_does_not_wait_for_the_disk_and_what_is_written_later_does(postgres_url: str):
    store = Store(postgres_url)
    delta = WindowDelta("openai", 0, "worker-1", START, START, failed=1)
    setting = sa.text("SHOW synchronous_commit")
    with store.begin() as conn:
        breakers.add(conn, [delta])
        assert conn.scalar(setting) == "off"
    SqlBackend(store).record(policy(), delta)
    with store.begin() as conn:
        assert conn.scalar(setting) == "on"
    store.dispose()


def test_each_change_is_in_the_record(store: Store, clock: Clock):
    backend, rules = SqlBackend(store), policy()
    opened(backend, rules)
    clock.advance(30)
    trial = backend.take_trial(rules, "worker-2").trial
    assert trial is not None
    backend.end_trial(rules, trial, Verdict(VerdictKind.SUCCESS))
    with store.read() as conn:
        rows = conn.execute(
            sa.select(t.events).where(t.events.c.kind == EventKind.SERVICE).order_by(t.events.c.id)
        ).all()
    assert [(r.from_status, r.to_status, r.reason, r.actor) for r in rows] == [
        ("closed", "open", "503 x3", "worker-1"),
        ("open", "half_open", "503 x3", "worker-2"),
        ("half_open", "closed", "503 x3", "worker-2"),
    ]


def test_recovery_leaves_the_operators_hold_alone(store: Store, clock: Clock):
    backend, rules = SqlBackend(store), policy()
    opened(backend, rules)
    target = Target(TargetKind.SERVICE, "openai")
    with store.begin() as conn:
        holds.place(conn, clock(), target, source=HoldSource.OPERATOR, reason="audit", actor="ann")
        breakers.close(conn, clock(), "openai", actor="ann")
    assert [hold.actor for hold in backend.read([]).holds] == ["ann"]


def test_an_operator_who_closes_it_releases_its_hold_and_that_is_recorded(
    store: Store, clock: Clock
):
    backend, rules = SqlBackend(store), policy()
    opened(backend, rules)
    with store.begin() as conn:
        breakers.close(conn, clock(), "openai", actor="ann")
        (released_by,) = conn.execute(sa.select(t.holds.c.released_by)).scalars()
        kept = conn.execute(sa.select(t.events).order_by(t.events.c.id)).all()
    assert (state(backend), backend.read([]).holds) == (CLOSED, ())
    assert released_by == "ann"
    assert [(e.kind, e.to_status, e.actor) for e in kept[-2:]] == [
        (EventKind.HOLD, "released_by_force", "ann"),
        (EventKind.SERVICE, "closed", "ann"),
    ]


def test_a_trip_at_the_same_moment_does_not_undo_that_a_person_keeps_it_closed(
    store: Store, clock: Clock
):
    backend, rules = SqlBackend(store), policy()
    before = backend.read([rules.name]).services[rules.name]
    with store.begin() as conn:
        breakers.keep_closed(conn, clock(), rules.name, actor="ann")
    after = machine.opened(before, rules, clock(), Verdict(VerdictKind.FAILURE), 0.0)
    assert not backend.change(before, after, "worker-1")
    with store.read() as conn:
        assert breakers.read_one(conn, rules.name).kept_closed(clock())


def test_an_operator_keeps_it_closed(store: Store, clock: Clock):
    backend, rules = SqlBackend(store), policy()
    opened(backend, rules)
    until = clock() + timedelta(hours=1)
    with store.begin() as conn:
        breakers.keep_closed(conn, clock(), "openai", actor="ann", until=until)
    worker = Worker(backend, rules, clock)
    for _ in range(5):
        clock.advance(0.01)
        worker.fail()
    assert state(backend) == CLOSED
    with store.begin() as conn:
        breakers.let_trip(conn, clock(), "openai", actor="ann")
    clock.advance(0.01)
    worker.fail()
    assert state(backend) == OPEN
    with store.begin() as conn, pytest.raises(ValueError, match="can't be kept closed until"):
        breakers.keep_closed(conn, clock(), "openai", actor="ann", until=clock())
    with store.begin() as conn, pytest.raises(LookupError, match="knows no service 'opnai'"):
        breakers.keep_closed(conn, clock(), "opnai", actor="ann")


# --- the store adds up what memory adds up -------------------------------------------------------

START = Clock().time
times = st.none() | st.floats(-90, 10).map(lambda s: START + timedelta(seconds=round(s, 3)))
deltas = st.lists(
    st.builds(
        WindowDelta,
        service=st.just("openai"),
        generation=st.sampled_from([0, 1]),
        worker=st.sampled_from(["a", "b", "c"]),
        bucket=st.integers(-15, 2).map(lambda n: START + timedelta(seconds=6 * n)),
        at=st.just(START),
        ok=st.integers(0, 50),
        slow=st.integers(0, 5),
        failed=st.integers(0, 5),
        failed_in_row=st.integers(0, 5),
        row_since=times,
        last_ok_at=times,
        last_failed_at=times,
        retry_at=times,
    ),
    max_size=12,
)


@given(deltas=deltas, asking=st.sampled_from(["a", "d"]))
@settings(
    max_examples=share_of_examples(3),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_store_adds_up_what_memory_adds_up(
    store: Store, deltas: list[WindowDelta], asking: str
):
    rules = policy(name=f"s{next(numbers)}")
    memory = MemoryBackend()
    with store.begin() as conn:
        breakers.ensure(conn, START, [rules.name])
        for delta in deltas:
            in_row = 0 if delta.row_since is None else 1 + delta.failed_in_row
            valid = replace(delta, service=rules.name, failed_in_row=in_row)
            breakers.add(conn, [valid])
            memory.flush([(rules, valid)])
        status, stats = breakers.read_window(conn, rules, START, asking)
    assert stats == window_stats(memory.counts(status), rules, START, asking)


def test_failures_in_a_row_count_after_their_window_until_a_call_succeeds(
    backend: BreakerBackend, clock: Clock
):
    rules = policy(window_s=10)
    for _ in range(2):
        Worker(backend, rules, clock).fail()
        clock.advance(3600)
        backend.prune([rules])
    healthy = Worker(backend, rules, clock)
    healthy.succeed()
    clock.advance(3600)
    backend.prune([rules])
    for _ in range(3):
        assert backend.read([rules.name]).services[rules.name].state == CLOSED
        Worker(backend, rules, clock).fail()
        clock.advance(3600)
        backend.prune([rules])
    assert backend.read([rules.name]).services[rules.name].state == OPEN


def test_what_outlives_its_window_is_deleted_once_the_state_changes(store: Store, clock: Clock):
    backend, rules = SqlBackend(store), policy(window_s=10)
    for _ in range(3):
        Worker(backend, rules, clock).fail()
    clock.advance(3600)
    assert backend.prune([rules]) == 3


# --- a state machine against a small model -------------------------------------------------------


class Worker:
    """A process of the fleet that reports each call at once."""

    def __init__(self, backend: BreakerBackend, rules: ServicePolicy, clock: Clock) -> None:
        self.backend, self.rules, self.clock = backend, rules, clock
        self.name = f"w{next(numbers)}"
        self.window = self.count_for(backend.read([rules.name]).services[rules.name].generation)

    def count_for(self, generation: int) -> LocalWindow:
        ticks = lambda: self.clock().timestamp()  # noqa: E731
        return LocalWindow(self.rules.name, generation, self.name, ticks)

    def learn(self) -> None:
        generation = self.backend.read([]).services[self.rules.name].generation
        if generation != self.window.generation:
            self.window = self.count_for(generation)

    def succeed(self) -> None:
        self.learn()
        self.window.last_ok = self.window.monotonic()
        self.window.ok()
        delta = self.window.pending(self.rules, self.clock())
        assert delta is not None
        self.backend.flush([(self.rules, delta)])
        self.window.flushed(delta)

    def fail(self, window: LocalWindow | None = None) -> None:
        self.learn()
        (window or self.window).fail(self.clock(), None)
        self.tell(window)

    def tell(self, window: LocalWindow | None = None) -> None:
        window = window or self.window
        delta = window.pending(self.rules, self.clock())
        assert delta is not None
        before, stats = self.backend.record(self.rules, delta)
        window.flushed(delta)
        if stats.last_ok_at is not None:
            window.succeeded_until(stats.last_ok_at)
        if before.generation == window.generation:
            after = machine.after_calls(before, self.rules, stats, self.clock(), FAILED, 0.0)
            if after is not before:
                assert self.backend.change(before, after, self.name)


# A denied breaker stays open until a person repairs it.
RETURNED = [kind for kind in VerdictKind if kind is not VerdictKind.DENIED]


class Model:
    """What a breaker with a threshold of 3, 2 trial calls and 2 successes is to do."""

    def __init__(self) -> None:
        self.state, self.row, self.until, self.attempt = CLOSED, 0, None, 0
        self.successes, self.leases = 0, {}
        self.recovered = False  # once it has, a trip within the hour is a relapse
        self.throttled = False  # then one trial call that succeeds is enough

    def to(self, state: BreakerState, until: datetime | None = None) -> None:
        self.state, self.until, self.row, self.successes = state, until, 0, 0
        self.leases = {}

    def fail(self, now: datetime) -> None:
        self.row += self.state == CLOSED
        if self.row >= 3:
            self.attempt = self.attempt + 1 if self.recovered else 0
            self.throttled = False
            self.to(OPEN, now + timedelta(seconds=min(10 * 2**self.attempt, 40)))

    def take(self, now: datetime) -> bool:
        if self.until is not None and self.state == OPEN and now >= self.until:
            self.to(HALF_OPEN)
        self.leases = {k: v for k, v in self.leases.items() if now < v}
        return self.state == HALF_OPEN and len(self.leases) < 2

    def end(self, trial: Trial, verdict: VerdictKind, now: datetime) -> None:
        if self.leases.pop(trial.token, None) is None:
            return
        self.successes += verdict == VerdictKind.SUCCESS
        if verdict == VerdictKind.FAILURE:
            self.attempt += 1
            self.throttled = False
            self.to(OPEN, now + timedelta(seconds=min(10 * 2**self.attempt, 40)))
        elif verdict == VerdictKind.THROTTLED:
            self.attempt, self.throttled = 0, True
            self.to(OPEN, now + timedelta(seconds=10))
        elif self.successes >= (1 if self.throttled else 2):
            self.to(CLOSED)
            self.recovered = True


class Fleet(RuleBasedStateMachine):
    """Two workers, their restarts, late results, trial calls, and a clock that is set back."""

    def __init__(self, backend: BreakerBackend, clock: Clock) -> None:
        super().__init__()
        self.backend, self.clock = backend, clock
        self.policy = policy(
            name=f"m{next(numbers)}",
            window_s=3600,
            reset_timeout_s=10,
            reset_timeout_cap_s=40,
            trial_calls=2,
            success_threshold=2,
            trial_lease_s=30,
        )
        self.model = Model()
        self.workers = [self.worker(), self.worker()]
        self.trials: list[Trial] = []
        self.late: list[tuple[Worker, LocalWindow]] = []
        self.generation = 0
        # Failures and successes on both sides of a clock that was set back have no order any
        # more; then only what must hold in any case is checked, until the state changes.
        self.ordered = True

    def worker(self) -> Worker:
        return Worker(self.backend, self.policy, self.clock)

    def now(self) -> datetime:
        return self.clock.advance(0.001)

    @rule(which=st.integers(0, 1))
    def fail(self, which: int) -> None:
        if self.model.state == CLOSED:
            self.now()
            self.workers[which].fail()
            self.model.fail(self.clock())
            self.follow()

    @rule(which=st.integers(0, 1))
    def succeed(self, which: int) -> None:
        if self.model.state == CLOSED:
            self.now()
            self.workers[which].succeed()
            self.model.row = 0

    @rule(which=st.integers(0, 1))
    def begin_a_slow_call(self, which: int) -> None:
        self.workers[which].learn()
        self.late.append((self.workers[which], self.workers[which].window))

    @precondition(lambda self: self.late)
    @rule()
    def a_slow_call_fails(self) -> None:
        worker, window = self.late.pop(0)
        present = self.backend.read([]).services[self.policy.name].generation
        if window.generation != present:
            self.now()
            worker.fail(window)

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        self.workers[which] = self.worker()

    @rule(seconds=st.sampled_from([0.5, 5, 10, 20, 40]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-0.5, -4, -30]))
    def the_clock_is_set_back(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.ordered = False

    @rule()
    def take_a_trial_call(self) -> None:
        now = self.now()
        answer = self.backend.take_trial(self.policy, "w")
        assert (answer.trial is not None) == self.model.take(now)
        if answer.trial is not None:
            self.model.leases[answer.trial.token] = answer.trial.expires_at
            self.trials.append(answer.trial)
        self.follow()

    @precondition(lambda self: self.trials)
    @rule(data=st.data(), verdict=st.sampled_from(RETURNED))
    def end_a_trial_call(self, data: st.DataObject, verdict: VerdictKind) -> None:
        trial = self.trials.pop(data.draw(st.integers(0, len(self.trials) - 1)))
        verdict = VerdictKind.SUCCESS if verdict == VerdictKind.SLOW else verdict
        now = self.now()
        self.backend.end_trial(self.policy, trial, Verdict(verdict))
        self.model.end(trial, verdict, now)
        self.follow()

    def follow(self) -> None:
        """Where the order is unknown, let the model take over what the breaker decided."""
        status = self.backend.read([]).services[self.policy.name]
        if (
            not self.ordered
            and status.state != self.model.state
            and {
                status.state,
                self.model.state,
            }
            == {CLOSED, OPEN}
        ):
            self.model.to(status.state, status.open_until)
            self.model.attempt = 0
        if status.generation != self.generation:
            self.ordered = True

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        snapshot = self.backend.read([])
        status = snapshot.services[self.policy.name]
        assert status.state == self.model.state
        assert status.generation >= self.generation
        self.generation = status.generation
        if status.state == OPEN:
            assert status.open_until == self.model.until
        if status.state == HALF_OPEN:
            assert status.trial_successes == self.model.successes
        held = [hold for hold in snapshot.holds if hold.target.name == self.policy.name]
        assert len(held) == (status.state != CLOSED)


def test_it_does_what_the_model_does(backend: BreakerBackend, clock: Clock):
    in_memory = isinstance(backend, MemoryBackend)
    run_machine(
        lambda: Fleet(backend, clock),  # pyright: ignore[reportArgumentType] - any factory will do
        settings=settings(
            max_examples=share_of_examples(1) if in_memory else share_of_examples(3),
            stateful_step_count=40,
            deadline=None,
            # Databases are too slow to shrink an example; memory finds the small one.
            phases=tuple(Phase) if in_memory else (Phase.reuse, Phase.generate),
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much),
        ),
    )


def test_buckets_begin_where_the_window_is_divided():
    rules = policy(window_s=60)
    at = datetime.fromisoformat("2026-03-01T09:00:17.5+00:00")
    assert bucket_of(rules, at) == datetime.fromisoformat("2026-03-01T09:00:12+00:00")
