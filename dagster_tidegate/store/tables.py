"""The schema of the store. Migrations bring a database to it.

Every time is UTC. Every status is the lowercase value of its enum in `statuses` or `holds`.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator

from dagster_tidegate.holds import HoldSource, TargetKind
from dagster_tidegate.statuses import BreakerState, RecordStatus, RunStatus

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = sa.MetaData(naming_convention=NAMING)


class UTCDateTime(TypeDecorator[datetime]):
    """A time in UTC, on SQLite too, which has no time zones. Rejects naive times."""

    impl = sa.DateTime
    cache_ok = True

    def __init__(self) -> None:
        super().__init__(timezone=True)

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Return the time as UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; times in the store are UTC")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Any,  # noqa: ARG002 -- the signature is SQLAlchemy's
    ) -> datetime | None:
        """Return the time with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# SQLite assigns numbers only to INTEGER PRIMARY KEY columns.
Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# A name that has partition keys in it. SQLite ignores the limit, and can't change it in place.
_Name = sa.Text().with_variant(sa.String(256), "sqlite")
_LongName = sa.Text().with_variant(sa.String(512), "sqlite")
_EventName = sa.Text().with_variant(sa.String(640), "sqlite")


def _status(column: str, values: type[StrEnum], **kwargs: Any) -> tuple[sa.Column, ...]:
    """A column for the values of an enum, and its CHECK constraint."""
    listed = ", ".join(f"'{value}'" for value in values)
    return (
        sa.Column(column, sa.String(16), nullable=False, **kwargs),
        sa.CheckConstraint(f"{column} IN ({listed})", name=column),  # type: ignore[list-item]
    )


def _other_verdicts() -> list[sa.Column]:
    """Counts of calls that say nothing about whether the service is well."""
    names = ("throttled", "denied", "pending", "rejected", "ignored")
    return [sa.Column(name, sa.Integer, nullable=False, server_default="0") for name in names]


# A service and its breaker. Every change of the state is an UPDATE ... WHERE generation = :g that
# increments the generation, so that exactly one worker makes it and late results are recognised.
services = sa.Table(
    "services",
    metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    *_status("state", BreakerState, server_default=BreakerState.CLOSED.value),
    sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("opened_at", UTCDateTime),  # when it left closed; kept through half open
    sa.Column("open_until", UTCDateTime),  # not probed before
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),  # failed probes so far
    sa.Column("trial_successes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("reason", sa.Text),  # why it opened, for people: "503 x5"
    sa.Column("cause", sa.String(16)),  # the verdict that opened it; None: by hand, or closed
    sa.Column("used_up", sa.String(16)),  # `limit` or `budget`, if that throttled it
    sa.Column("answer", sa.Text),  # what the service said then, without secrets
    sa.Column("would_open_at", UTCDateTime),  # when it would last have opened, were it enforced
    sa.Column("closed_at", UTCDateTime),  # when it last recovered; the ramp starts here
    sa.Column("kept_closed_by", sa.String(256)),  # the operator who keeps it from tripping
    sa.Column("kept_closed_until", UTCDateTime),  # None: until an operator lets it trip again
    sa.Column("changed_at", UTCDateTime, nullable=False),
)

# Outcomes of calls: counts per worker, generation and time bucket, so that no two workers write the
# same row. No foreign key: its check would lock the one row of the service.
outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("service", sa.String(128), primary_key=True),
    sa.Column("bucket", UTCDateTime, primary_key=True),
    sa.Column("worker", sa.String(128), primary_key=True),
    sa.Column("generation", sa.BigInteger, primary_key=True),
    sa.Column("ok", sa.Integer, nullable=False, server_default="0"),
    sa.Column("slow", sa.Integer, nullable=False, server_default="0"),  # of the ok ones
    sa.Column("failed", sa.Integer, nullable=False, server_default="0"),
    # The failures of the bucket after the worker's latest success, and the time of the first.
    sa.Column("failed_in_row", sa.Integer, nullable=False, server_default="0"),
    sa.Column("row_since", UTCDateTime),
    sa.Column("row_records", sa.Text),  # digests of the records that had them, some of them
    sa.Column("last_ok_at", UTCDateTime),
    sa.Column("last_failed_at", UTCDateTime),
    sa.Column("retry_at", UTCDateTime),  # the latest Retry-After that the service sent
    *_other_verdicts(),
    sa.Column("p95_s", sa.Float),  # of the worker's latest calls that succeeded, in seconds
)

# Calls by minute, the sum of the outcomes that no window needs any more.
verdicts = sa.Table(
    "verdicts",
    metadata,
    sa.Column("service", sa.String(128), primary_key=True),
    sa.Column("minute", UTCDateTime, primary_key=True),
    sa.Column("ok", sa.Integer, nullable=False, server_default="0"),
    sa.Column("slow", sa.Integer, nullable=False, server_default="0"),  # of the ok ones
    sa.Column("failed", sa.Integer, nullable=False, server_default="0"),
    *_other_verdicts(),
)

# The same by day (UTC), for the reports of months.
daily_verdicts = sa.Table(
    "daily_verdicts",
    metadata,
    sa.Column("service", sa.String(128), primary_key=True),
    sa.Column("day", UTCDateTime, primary_key=True),
    sa.Column("ok", sa.Integer, nullable=False, server_default="0"),
    sa.Column("slow", sa.Integer, nullable=False, server_default="0"),  # of the ok ones
    sa.Column("failed", sa.Integer, nullable=False, server_default="0"),
    *_other_verdicts(),
)

# Leases on trial calls of a half open breaker. An expired lease is free.
trials = sa.Table(
    "trials",
    metadata,
    sa.Column("service", sa.ForeignKey("services.name"), primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True),  # 0 .. permitted trial calls - 1
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("worker", sa.String(128), nullable=False),
    sa.Column(
        "token", sa.String(32), nullable=False
    ),  # distinguishes it from later leases of the slot
    sa.Column("expires_at", UTCDateTime, nullable=False),
)

holds = sa.Table(
    "holds",
    metadata,
    sa.Column("id", Id, primary_key=True),
    *_status("target_kind", TargetKind),
    sa.Column("target_name", _LongName, nullable=False),
    *_status("source", HoldSource),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.String(256), nullable=False),
    sa.Column("placed_at", UTCDateTime, nullable=False),
    sa.Column("expires_at", UTCDateTime),
    sa.Column("released_at", UTCDateTime),
    sa.Column("released_by", sa.String(256)),
)
# Each owner has one live hold on a target. The index also serves reads of the live ones.
sa.Index(
    "uq_holds_live",
    holds.c.target_kind,
    holds.c.target_name,
    holds.c.source,
    holds.c.actor,
    unique=True,
    sqlite_where=holds.c.released_at.is_(None),
    postgresql_where=holds.c.released_at.is_(None),
)

# The maintenance windows of each code location, with the time of each at which a hold comes next.
windows = sa.Table(
    "windows",
    metadata,
    sa.Column("location", sa.String(256), primary_key=True),
    sa.Column("service", sa.String(128), primary_key=True),
    sa.Column("cron", sa.String(128), primary_key=True),
    sa.Column("timezone", sa.String(64), primary_key=True),
    sa.Column("duration_s", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("starts_at", UTCDateTime, nullable=False),
    sa.Column("ends_at", UTCDateTime, nullable=False),
)

# The calls to each service that has limits, as `breaker.limits.LimitState` writes them.
limits = sa.Table(
    "limits",
    metadata,
    sa.Column("service", sa.String(128), primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
)

# What the fleet may spend right now on each service that has a budget, as
# `breaker.budget.BudgetState` writes it.
budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("service", sa.String(128), primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
)

# What was spent on a service, in billionths of the budget's unit, so that sums are exact.
spending = sa.Table(
    "spending",
    metadata,
    sa.Column("service", sa.String(128), primary_key=True),
    sa.Column("period", UTCDateTime, primary_key=True),  # its beginning
    sa.Column("unit", sa.String(32), primary_key=True),
    sa.Column("campaign", sa.String(256), primary_key=True),  # empty: of no campaign
    sa.Column("amount", sa.BigInteger, nullable=False),
)

# A campaign as last defined in code, so that whoever trips a breaker knows what to stop.
campaigns = sa.Table(
    "campaigns",
    metadata,
    sa.Column("name", sa.String(256), primary_key=True),  # the Dagster job's name
    sa.Column("location", sa.String(256), nullable=False),  # its code location
    sa.Column("catch_up", sa.String(16), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("seen_at", UTCDateTime, nullable=False),  # when its definition last changed
)

# The pool of each op of a campaign; its name says which services the op needs, or else `services`.
campaign_ops = sa.Table(
    "campaign_ops",
    metadata,
    sa.Column("campaign", sa.ForeignKey("campaigns.name"), primary_key=True),
    sa.Column("op", sa.String(256), primary_key=True),
    sa.Column("pool", sa.String(512), nullable=False),
    # What a pool of another name stands for, separated by commas.
    sa.Column("services", sa.Text),
    sa.Column("assets", sa.JSON(none_as_null=True)),  # the names of those that the op makes
)

# Who may control a campaign besides administrators; without rows, every operator may.
campaign_owners = sa.Table(
    "campaign_owners",
    metadata,
    sa.Column("campaign", sa.ForeignKey("campaigns.name"), primary_key=True),
    sa.Column("owner", sa.String(128), primary_key=True),
)

# The schedules and sensors that start runs of a campaign.
campaign_triggers = sa.Table(
    "campaign_triggers",
    metadata,
    sa.Column("campaign", sa.ForeignKey("campaigns.name"), primary_key=True),
    sa.Column("selector_id", sa.String(64), primary_key=True),  # Dagster's id
    sa.Column("kind", sa.String(16), nullable=False),  # schedule, sensor
    sa.Column("name", sa.String(256), nullable=False),
    sa.Column("runs_by_default", sa.Boolean, nullable=False),
)

campaign_runs = sa.Table(
    "campaign_runs",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("campaign", sa.String(256), nullable=False),
    # Its name within the campaign, `holds.part_name` of the next two. Workers of revision 0002 know
    # these two columns alone, so that they are its identity.
    sa.Column("partition", _Name, nullable=False),
    # Dagster's partition key, or the id of the first run if there is none; NULL: as `partition`.
    sa.Column("dagster_partition", sa.Text),
    sa.Column("assets", sa.JSON(none_as_null=True)),  # those it covers; NULL: all of its job
    *_status("status", RunStatus, server_default=RunStatus.PENDING.value),
    # The attempt that owns the campaign run; writes of an older one are refused.
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("reason", sa.Text),  # why it is paused, failed or cancelled
    sa.Column("paused_at", UTCDateTime),
    sa.Column("created_at", UTCDateTime, nullable=False),
    sa.Column("changed_at", UTCDateTime, nullable=False),
    # The status in which it last ended; NULL while it has not ended since an attempt began.
    sa.Column("ended_as", sa.String(16)),
    # Progress, and the records of the ledger written by this attempt or a later one, belong to it;
    # older records do not count any more.
    sa.Column("first_attempt", sa.Integer, nullable=False, server_default="0"),
    # Whether the ledger may have such older records, which retention deletes.
    sa.Column("has_old_records", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("pruned_at", UTCDateTime),  # when its ledger expired, after it had ended
    # Whether a person created it, and no Dagster run was launched for it yet.
    sa.Column("waits_for_start", sa.Boolean, nullable=False, server_default=sa.false()),
    # The services, separated by commas, that refused it while no pool of its job named them.
    sa.Column("refused_by", sa.Text),
    sa.UniqueConstraint("campaign", "partition"),
    sa.Index(None, "status", "paused_at"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("campaign_run", sa.ForeignKey("campaign_runs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("dagster_run", sa.String(64), nullable=False, unique=True),
    sa.Column("started_at", UTCDateTime, nullable=False),
    sa.Column("ended_at", UTCDateTime),
    sa.Column("outcome", sa.String(16)),  # the status in which it left the campaign run
)

# The lease of a running record loop. Its process renews it, and deletes the row when it stops. Once
# it has expired, the process is dead, whatever Dagster says.
loops = sa.Table(
    "loops",
    metadata,
    sa.Column("campaign_run", sa.ForeignKey("campaign_runs.id"), primary_key=True),
    sa.Column("op", sa.String(256), primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("worker", sa.String(32), nullable=False),  # distinguishes processes of one attempt
    sa.Column("lease_until", UTCDateTime, nullable=False),
)

# Progress of a record loop of a campaign run.
progress = sa.Table(
    "progress",
    metadata,
    sa.Column("campaign_run", sa.ForeignKey("campaign_runs.id"), primary_key=True),
    sa.Column("op", sa.String(256), primary_key=True),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("failed", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer),  # unknown for a generator
    sa.Column("rate", sa.Float),  # current records per second; None while no process works on it
    # Every record before this row of the input is done, or failed in an attempt since `series`.
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("position_key", sa.String(512)),  # the key of the record just before it
    sa.Column("series", sa.Integer, nullable=False),
    # Whether done and failed agree with the ledger, as they do after a loop has stopped.
    sa.Column("exact", sa.Boolean, nullable=False),
    sa.Column("updated_at", UTCDateTime, nullable=False),
)

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("campaign_run", sa.ForeignKey("campaign_runs.id"), primary_key=True),
    sa.Column("op", sa.String(256), primary_key=True),
    sa.Column("key", sa.String(512), primary_key=True),
    *_status("status", RecordStatus),
    sa.Column("position", sa.BigInteger, nullable=False),  # its row in the input, from 0
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True)),  # what the author's code returned
    sa.Column("error", sa.Text),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),  # in all attempts
    sa.Column("retry_at", UTCDateTime),  # not tried before; of a waiting record
    sa.Column("steps", sa.JSON(none_as_null=True)),  # the results of `Record.once`, by name
    # Whether it failed while other records of the loop succeeded.
    sa.Column("suspect", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("service", sa.String(256)),  # what `first_available` chose, joined by "+"
    sa.Column("at", UTCDateTime, nullable=False),
    sqlite_with_rowid=False,
)

# What the gate changed in Dagster, and the value before. Live until the value is restored.
# The values of a pool are `unset`, `default` (it follows the instance's default) or a number; those
# of a schedule or sensor are `unset`, `RUNNING`, `STOPPED` or `DECLARED_IN_CODE`.
takeovers = sa.Table(
    "takeovers",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),  # pool, schedule, sensor
    sa.Column("name", sa.String(512), nullable=False),  # pool name; selector id of the others
    sa.Column("label", sa.String(512), nullable=False),  # its name for people
    sa.Column("campaign", sa.String(256)),  # whose schedule or sensor it is; None for a pool
    sa.Column("location", sa.String(256), nullable=False),  # the code location whose gate took it
    sa.Column("former", sa.String(32), nullable=False),  # the value to restore
    sa.Column("set_from", sa.String(32), nullable=False),  # the value before the latest write
    sa.Column("set_to", sa.String(32), nullable=False),  # the value of the latest write
    # Whether the latest write may not have reached Dagster yet: it is recorded here first.
    sa.Column("pending", sa.Boolean, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),  # incremented by every change; fences gates
    sa.Column("taken_at", UTCDateTime, nullable=False),
    sa.Column("running_since", UTCDateTime),  # when a schedule was last switched on before
    sa.Column("ramp_step_at", UTCDateTime),  # when the ramp took its latest step
    sa.Column("left_at", UTCDateTime),  # when a person's change was noticed; left alone since
    sa.Column("given_back_at", UTCDateTime),
    sa.Column("outcome", sa.String(32)),  # restored, left_to_operator, gone
)
sa.Index(
    "uq_takeovers_live",
    takeovers.c.kind,
    takeovers.c.name,
    unique=True,
    sqlite_where=takeovers.c.given_back_at.is_(None),
    postgresql_where=takeovers.c.given_back_at.is_(None),
)

# Ticks that a schedule missed while it was taken over, and what happened to each.
missed_ticks = sa.Table(
    "missed_ticks",
    metadata,
    sa.Column("campaign", sa.String(256), primary_key=True),
    sa.Column("schedule", sa.String(256), primary_key=True),
    sa.Column("tick_at", UTCDateTime, primary_key=True),
    sa.Column("recorded_at", UTCDateTime, nullable=False),
    sa.Column("settled_at", UTCDateTime),
    sa.Column("outcome", sa.String(16)),  # launched, skipped or failed; None while it waits
    sa.Column("reason", sa.Text),  # why it was skipped or failed
    sa.Index(None, "outcome"),
)

# Who changed what, when and why.
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("at", UTCDateTime, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),  # service, hold, campaign_run, takeover, ...
    sa.Column("name", _EventName, nullable=False),  # of a hold: its target, kind and name
    sa.Column("from_status", sa.String(32)),
    sa.Column("to_status", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("actor", sa.String(256), nullable=False),
    sa.Column("address", sa.String(64)),  # the actor's network address; None for this machine
    # The thing before and after the change, where the statuses do not say it all.
    sa.Column("before", sa.JSON(none_as_null=True)),
    sa.Column("after", sa.JSON(none_as_null=True)),
    sa.Index(None, "kind", "name", "id"),
)

# When each part of the gate last completed a tick, per code location.
heartbeats = sa.Table(
    "heartbeats",
    metadata,
    sa.Column("location", sa.String(256), primary_key=True),
    sa.Column("part", sa.String(32), primary_key=True),
    sa.Column("at", UTCDateTime, nullable=False),
    sa.Column("cursor", UTCDateTime),  # up to when Dagster's run changes were read
    sa.Column("summary", sa.Text, nullable=False),
)

# Who may use the API and the UI. Only the SHA-256 digest of a secret is stored.
tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),  # the actor of changes made with it
    sa.Column("role", sa.String(16), nullable=False),  # viewer, operator, admin
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", UTCDateTime, nullable=False),
    sa.Column("created_by", sa.String(256), nullable=False),
    sa.Column("expires_at", UTCDateTime),
    sa.Column("revoked_at", UTCDateTime),
    sa.Column("revoked_by", sa.String(256)),
    sa.Column("used_at", UTCDateTime),  # when it was last used, to the minute
)
sa.Index(
    "uq_tokens_live",
    tokens.c.name,
    unique=True,
    sqlite_where=tokens.c.revoked_at.is_(None),
    postgresql_where=tokens.c.revoked_at.is_(None),
)

# A browser that logged in with a token. It expires with the token at the latest.
sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),  # of the secret in the cookie
    sa.Column("token", sa.ForeignKey("tokens.id"), nullable=False),
    sa.Column("created_at", UTCDateTime, nullable=False),
    sa.Column("expires_at", UTCDateTime, nullable=False),
    sa.Index(None, "expires_at"),
)

# The responses to requests with an Idempotency-Key.
idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("actor", sa.String(256), primary_key=True),
    sa.Column("key", sa.String(256), primary_key=True),
    sa.Column("request", sa.String(64), nullable=False),  # digest of the request
    sa.Column("status", sa.Integer),  # None while the first request is in progress
    sa.Column("body", sa.JSON(none_as_null=True)),  # and meanwhile an id for what it creates
    sa.Column("at", UTCDateTime, nullable=False),
    sa.Index(None, "at"),
)

# Alerts to people. One is live from when it is raised until its cause ends.
alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("kind", sa.String(32), nullable=False),  # trip, recovery, gate_stale, ...
    sa.Column("name", sa.String(640), nullable=False),  # what it is about
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("raised_at", UTCDateTime, nullable=False),
    sa.Column("ended_at", UTCDateTime),
    sa.Column("sent_at", UTCDateTime),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_try_at", UTCDateTime),  # None: sent or given up; a claim moves it forward
    sa.Column("error", sa.Text),  # why the latest try failed
    sa.Column("delivered_to", sa.JSON(none_as_null=True)),  # names of the targets that accepted it
    # How often its cause has occurred since without a message, so that a flapping service makes a
    # bounded number of messages.
    sa.Column("withheld", sa.Integer, nullable=False, server_default="0"),
    sa.Index(None, "next_try_at"),
    sa.Index(None, "raised_at"),
)
sa.Index(
    "uq_alerts_live",
    alerts.c.kind,
    alerts.c.name,
    unique=True,
    sqlite_where=alerts.c.ended_at.is_(None),
    postgresql_where=alerts.c.ended_at.is_(None),
)

# The position of a reader in the events.
cursors = sa.Table(
    "cursors",
    metadata,
    sa.Column("reader", sa.String(32), primary_key=True),
    sa.Column("event", sa.BigInteger, nullable=False),  # the last event that was read
    sa.Column("at", UTCDateTime, nullable=False),  # when it last checked, to half a minute
)

# The oldest revision whose workers this schema supports; one row.
compatibility = sa.Table(
    "compatibility",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("oldest_revision", sa.String(32), nullable=False),
)
