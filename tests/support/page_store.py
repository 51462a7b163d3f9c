"""A store that looks like a deployment in trouble, for the tests of the pages."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.holds import HoldSource, Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RecordStatus, RunStatus
from dagster_tidegate.store import breakers, campaigns, events, heartbeats, holds, runs
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec, Trigger
from dagster_tidegate.store.database import Connection, Store
from dagster_tidegate.store.heartbeats import PARTS
from dagster_tidegate.store.takeovers import TakeoverKind

SERVICES = ("apollo", "apollo/people_match", "instantly", "millionverifier", "openai", "perplexity")
CAMPAIGNS = (
    CampaignSpec(
        "outreach",
        "pipelines",
        "latest",
        ops={
            "fetch": "apollo/people_match",
            "verify": "millionverifier",
            "write": "openai+perplexity",
            "send": "instantly@outreach",
        },
        triggers=(Trigger(TakeoverKind.SENSOR, "new_lead_files", "id-leads", True),),
    ),
    CampaignSpec(
        "account_digest",
        "pipelines",
        "latest",
        ops={"digest": "openai@account_digest"},
        triggers=(Trigger(TakeoverKind.SCHEDULE, "account_digest_schedule", "id-digest", True),),
        owners=frozenset({"bo"}),
    ),
    CampaignSpec("list_hygiene", "pipelines", "none", ops={"verify": "millionverifier"}),
)


def deploy(store: Store, specs: Sequence[CampaignSpec] = CAMPAIGNS) -> None:
    """Define services and campaigns, with a gate that works."""
    with store.begin() as conn:
        now = store.now(conn)
        breakers.ensure(conn, now, SERVICES)
        campaigns.save(conn, now, "pipelines", specs)
    beat(store)


def beat(store: Store) -> None:
    """Let the gate complete a tick."""
    with store.begin() as conn:
        for part in PARTS:
            heartbeats.beat(
                conn, store.now(conn), location="pipelines", part=part, summary="nothing to do"
            )


def open_breaker(
    store: Store,
    name: str,
    reason: str = "503 x5",
    *,
    cause: VerdictKind = VerdictKind.FAILURE,
    answer: str | None = None,
    for_s: float | None = 45,
    state: BreakerState = BreakerState.OPEN,
) -> None:
    """Open a breaker and place its hold, as a trip does."""
    with store.begin() as conn:
        now = store.now(conn)
        before = breakers.read_one(conn, name)
        conn.execute(
            t.services.update()
            .where(t.services.c.name == name)
            .values(
                state=state,
                opened_at=now,
                changed_at=now,
                open_until=None if for_s is None else now + timedelta(seconds=for_s),
                reason=reason,
                cause=cause,
                answer=answer,
                generation=before.generation + 1,
            )
        )
        events.write(
            conn,
            now,
            kind=events.EventKind.SERVICE,
            name=name,
            from_status=before.state,
            to_status=state,
            reason=reason,
            actor="breaker",
            after={"cause": cause, "answer": answer, "calls": 40, "failed": 5, "counted_s": 20.0},
        )
        target = Target(TargetKind.SERVICE, name)
        holds.place(conn, now, target, source=HoldSource.BREAKER, reason=reason, actor="breaker")


def close_breaker(store: Store, name: str) -> None:
    """Close a breaker and release its hold."""
    with store.begin() as conn:
        breakers.close(conn, store.now(conn), name, actor="breaker")


def calls(store: Store, name: str, *, minutes_ago: int, **counts: int) -> None:
    """Record calls to a service: how many were `ok`, `slow`, `failed`, ..."""
    with store.begin() as conn:
        now = store.now(conn)
        conn.execute(
            t.outcomes.insert().values(
                service=name,
                bucket=now - timedelta(minutes=minutes_ago),
                worker="worker",
                generation=0,
                **counts,
            )
        )


def run(
    store: Store,
    campaign: str,
    partition: str,
    status: RunStatus,
    *,
    done: int = 0,
    failed: Sequence[tuple[str, str]] = (),
    in_doubt: Sequence[str] = (),
    total: int | None = None,
    reason: str | None = None,
    rate: float | None = None,
    suspect: bool = False,
    op: str = "send",
    took_min: float = 0,
) -> int:
    """Put a campaign run with an attempt, progress and records into the store; return its id.

    Args:
        failed: Key and error of each record that failed.
        in_doubt: Keys of the records that were started and have no result.
        took_min: How long the attempt took, in minutes, if it is over.
    """
    with store.begin() as conn:
        now = store.now(conn)
        ended_at = now + timedelta(minutes=took_min)
        made = runs.ensure(conn, now, campaign, partition)
        runs.begin_attempt(conn, now, made, f"{campaign}-{partition}-1", owner_is_over=True)
        c = t.campaign_runs.c
        paused_at = ended_at if status is RunStatus.PAUSED else None
        conn.execute(
            t.campaign_runs.update()
            .where(c.id == made.id)
            .values(status=status, reason=reason, paused_at=paused_at, changed_at=ended_at)
        )
        if status is not RunStatus.PROCESSING:
            conn.execute(
                t.attempts.update()
                .where(t.attempts.c.campaign_run == made.id)
                .values(ended_at=ended_at, outcome=status)
            )
        conn.execute(
            t.progress.insert().values(
                campaign_run=made.id,
                op=op,
                done=done,
                failed=len(failed),
                total=total,
                rate=rate,
                position=0,
                series=1,
                exact=not in_doubt,
                updated_at=datetime.now(UTC) if rate else now,
            )
        )
        _records(conn, made.id, op, RecordStatus.FAILED, failed, suspect=suspect)
        started = [(key, None) for key in in_doubt]
        _records(conn, made.id, op, RecordStatus.STARTED, started)
        return made.id


def _records(
    conn: Connection,
    run_id: int,
    op: str,
    status: RecordStatus,
    records: Sequence[tuple[str, str | None]],
    *,
    suspect: bool = False,
) -> None:
    at = conn.execute(t.campaign_runs.select().where(t.campaign_runs.c.id == run_id)).one()
    for position, (key, error) in enumerate(records):
        conn.execute(
            t.ledger.insert().values(
                campaign_run=run_id,
                op=op,
                key=key,
                status=status,
                position=position,
                attempt=1,
                error=error,
                tries=3,
                suspect=suspect,
                at=at.changed_at,
            )
        )
