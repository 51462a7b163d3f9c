"""A deployment in the middle of an outage, a dead key, a used-up quota and a poison record."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.control import operations
from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RunStatus
from dagster_tidegate.store.database import Store
from tests.support.page_store import calls, close_breaker, deploy, open_breaker, run


def trouble(store: Store) -> dict[str, int]:
    """Fill a store; returns the ids of some campaign runs."""
    deploy(store)
    for name, per_minute in (("apollo/people_match", 90), ("openai", 40), ("millionverifier", 160)):
        for minute in range(58):
            failed = 3 if name == "openai" and minute in (40, 41, 42) else 0
            calls(store, name, minutes_ago=minute, ok=per_minute, slow=minute % 3, failed=failed)
    for minute in range(4, 50):
        calls(store, "instantly", minutes_ago=minute, ok=70, slow=2, failed=minute % 17 == 0)
    calls(store, "instantly", minutes_ago=3, ok=20, slow=5, failed=30)
    calls(store, "instantly", minutes_ago=2, ok=0, slow=0, failed=5)
    with earlier(store, 49):
        open_breaker(store, "millionverifier", "timeout x5")
    with earlier(store, 41):
        close_breaker(store, "millionverifier")
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
    }


@contextmanager
def earlier(store: Store, minutes: float) -> Iterator[None]:
    """Let the clock of a store be behind."""
    clock = store.clock
    store.clock = lambda: datetime.now(UTC) - timedelta(minutes=minutes)
    try:
        yield
    finally:
        store.clock = clock
