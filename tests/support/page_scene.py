"""A deployment in the middle of an outage, a dead key, a used-up quota and a poison record."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from dagster_tidegate.breaker import budget
from dagster_tidegate.breaker.budget import BILLIONTH, Spent
from dagster_tidegate.breaker.limits import CallRequest
from dagster_tidegate.breaker.policy import RateLimit, ServicePolicy, SpendingLimit
from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.control import operations
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import (
    budgets,
    history,
    ledger,
    limits,
    missed_ticks,
    runs,
    takeovers,
    windows,
)
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.ledger import Progress
from dagster_tidegate.store.missed_ticks import MissedTick, TickOutcome
from dagster_tidegate.store.takeovers import Take, TakeoverKind, TakeoverOutcome
from dagster_tidegate.store.windows import PlannedWindow
from tests.support.page_store import calls, close_breaker, deploy, open_breaker, run


def trouble(store: Store) -> dict[str, int]:
    """Fill a store; returns the ids of some campaign runs."""
    deploy(store)
    for name, per_minute in (("apollo/people_match", 90), ("openai", 40), ("millionverifier", 160)):
        for minute in range(58):
            failed = 3 if name == "openai" and minute in (40, 41, 42) else 0
            odd = minute % 7 == 0 if name == "millionverifier" else 0
            calls(
                store, name, minutes_ago=minute, ok=per_minute, slow=minute % 3, failed=failed,
                rejected=9 * odd, pending=4 * odd,
            )  # fmt: skip
    for minute in range(4, 50):
        calls(store, "instantly", minutes_ago=minute, ok=70, slow=2, failed=minute % 17 == 0)
    calls(store, "instantly", minutes_ago=3, ok=20, slow=5, failed=30)
    calls(store, "instantly", minutes_ago=2, ok=0, slow=0, failed=5)
    calls(store, "apollo/people_match", minutes_ago=12, throttled=1)
    calls(store, "perplexity", minutes_ago=22, ok=31, denied=2, ignored=1)
    with earlier(store, 49):
        open_breaker(store, "millionverifier", "timeout x5")
    with earlier(store, 41):
        close_breaker(store, "millionverifier")
    outage = over(store)
    limited(store)
    with earlier(store, 22):
        denied = "401: the API key has been revoked"
        open_breaker(
            store, "perplexity", "401", cause=VerdictKind.DENIED, answer=denied, for_s=None
        )
    with earlier(store, 12):
        used_up = "429: 10,000 of 10,000 requests used"
        open_breaker(
            store, "apollo", "429", cause=VerdictKind.THROTTLED, for_s=5 * 3600, answer=used_up
        )
    with earlier(store, 2.5):
        answer = "HTTP 503: upstream connect error"
        open_breaker(store, "instantly", "503 x5", answer=answer, for_s=150 + 43)
    digest = Target(TargetKind.CAMPAIGN, "account_digest")
    with earlier(store, 35), store.begin() as conn:
        now = store.now(conn)
        operations.hold(
            conn, now, digest, reason="new copy is being reviewed", actor="bo",
            expires_at=now + timedelta(minutes=60),
        )  # fmt: skip
    reason = "instantly is open (503 x5)"
    lost = "HTTPError('422 for url https://api.instantly.example/leads/{}: invalid e-mail {}')"
    with earlier(store, 55):
        done = run(
            store,
            "list_hygiene",
            "2026-10",
            RunStatus.COMPLETED,
            done=3900,
            total=3900,
            took_min=22,
        )
        failed = run(
            store, "outreach", "leads-1.csv", RunStatus.FAILED, done=488, total=500, took_min=14,
            failed=[
                *((f"lead-{n}", lost.format(n, f"p{n}@example.org")) for n in range(9)),
                ("lead-77", "no such lead: it was merged"),
                ("lead-78", "Timeout('read timed out')"),
            ],
            reason="11 records failed",
        )  # fmt: skip
    with earlier(store, 33):
        paused = run(
            store, "outreach", "leads-3.csv", RunStatus.PAUSED,
            done=180, total=500, reason=reason, took_min=11,
        )  # fmt: skip
        doubt = run(
            store, "outreach", "leads-2.csv", RunStatus.PAUSED, done=300, total=500,
            in_doubt=["lead-301", "lead-302"], reason=reason, took_min=11,
        )  # fmt: skip
    with earlier(store, 28):
        processing = run(
            store, "list_hygiene", "2026-11", RunStatus.PROCESSING,
            done=1240, total=4000, rate=12.5, op="verify", failed=[("l-4", "400: not an address")],
        )  # fmt: skip
    return {
        "paused": paused,
        "processing": processing,
        "failed": failed,
        "doubt": doubt,
        "done": done,
        "outage": outage,
    }


def limited(store: Store) -> None:
    """Give openai a rate limit and a budget, used in part, and millionverifier a window."""
    policy = ServicePolicy(
        name="openai",
        limits=[RateLimit(calls=10_000, per="day")],
        budget=SpendingLimit(amount=25, unit="usd"),
    )
    with store.begin() as conn:
        now = store.now(conn)
        limits.lease(conn, store, policy, "worker", CallRequest(2_400))
        spent = {Spent(None, "outreach"): 11 * BILLIONTH, Spent(None, "account_digest"): BILLIONTH}
        budgets.spend(conn, store, policy, "worker", budget.SpendRequest(spent))
        window = PlannedWindow(
            *("pipelines", "millionverifier", "0 2 * * *", "UTC", 7200, "their weekly upgrade"),
            starts_at=now + timedelta(hours=5),
            ends_at=now + timedelta(hours=7),
        )
        windows.save(conn, "pipelines", [window])


def over(store: Store) -> int:
    """Let an outage of openai happen three hours ago; returns the id of the event that ended it."""
    name, digest, present = "2026-11-27", "account_digest", datetime.now(UTC)
    with earlier(store, 190, present), store.begin() as conn:
        now = store.now(conn)
        made = runs.ensure(conn, now, digest, name)
        runs.begin_attempt(conn, now, made, "digest-1", owner_is_over=True)
    with earlier(store, 180, present):
        answer = "HTTP 503: the model is overloaded"
        open_breaker(store, "openai", "503 x5", answer=answer, for_s=60)
    with earlier(store, 179, present), store.begin() as conn:
        now = store.now(conn)
        made = runs.find(conn, digest, name)
        assert made is not None
        details = {"services": ["openai"], "done": 40, "total": 100}
        reason = "openai is open (503 x5)"
        runs.move(
            conn, now, made, RunStatus.PAUSED, reason=reason, actor="digest-1", details=details
        )
        operations.hold(
            conn, now, Target(TargetKind.SERVICE, "openai"), reason="wait for their status page",
            actor="ana", expires_at=None,
        )  # fmt: skip
        take = Take(TakeoverKind.POOL, "openai", "openai", None, "pipelines", "5", "0")
        [pool] = takeovers.take(conn, now, [take], newest=0)
        tick = MissedTick(digest, "account_digest_schedule", now, TickOutcome.LAUNCHED)
        missed_ticks.record(conn, now, [tick])
    with earlier(store, 175, present):
        open_breaker(store, "openai", "503 x5", state=BreakerState.HALF_OPEN)
    with earlier(store, 174, present):
        open_breaker(store, "openai", "timeout")
    with earlier(store, 168, present):
        with store.begin() as conn:
            openai = Target(TargetKind.SERVICE, "openai")
            operations.release(conn, store.now(conn), openai, actor="ana")
        close_breaker(store, "openai")
    with earlier(store, 167, present), store.begin() as conn:
        now = store.now(conn)
        made = runs.find(conn, digest, name)
        assert made is not None
        attempt = runs.begin_attempt(conn, now, made, "digest-2", owner_is_over=True)
        ledger.write_progress(conn, now, attempt, "digest", Progress(done=100, total=100))
        takeovers.end(conn, now, pool, TakeoverOutcome.RESTORED)
    with earlier(store, 160, present), store.begin() as conn:
        made = runs.find(conn, digest, name)
        assert made is not None
        runs.move(conn, store.now(conn), made, RunStatus.COMPLETED, actor="dagster")
    with store.read() as conn:
        return history.read(conn, name="openai", kinds=["service"], limit=1)[-1].id


@contextmanager
def earlier(store: Store, minutes: float, than: datetime | None = None) -> Iterator[None]:
    """Let the clock of a store be behind, or stand still some time before another time."""
    clock = store.clock
    store.clock = lambda: (than or datetime.now(UTC)) - timedelta(minutes=minutes)
    try:
        yield
    finally:
        store.clock = clock
