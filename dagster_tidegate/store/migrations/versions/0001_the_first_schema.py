"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "campaign_runs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("campaign", sa.String(length=256), nullable=False),
        sa.Column("partition", sa.String(length=256), nullable=False),
        sa.Column("status", sa.String(length=16), server_default="pending", nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("paused_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pruned_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint(
            "status IN ('pending', 'processing', 'paused', 'completed', 'failed', 'cancelled')",
            name=op.f("ck_campaign_runs_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaign_runs")),
        sa.UniqueConstraint(
            "campaign", "partition", name=op.f("uq_campaign_runs_campaign_partition")
        ),
    )
    with op.batch_alter_table("campaign_runs") as batch_op:
        batch_op.create_index(
            batch_op.f("ix_campaign_runs_status_paused_at"), ["status", "paused_at"]
        )

    op.create_table(
        "campaigns",
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("location", sa.String(length=256), nullable=False),
        sa.Column("catch_up", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_campaigns")),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=640), nullable=False),
        sa.Column("from_status", sa.String(length=32)),
        sa.Column("to_status", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("actor", sa.String(length=256), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events") as batch_op:
        batch_op.create_index(batch_op.f("ix_events_kind_name_id"), ["kind", "name", "id"])

    op.create_table(
        "heartbeats",
        sa.Column("location", sa.String(length=256), nullable=False),
        sa.Column("part", sa.String(length=32), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cursor", sa.DateTime(timezone=True)),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("location", "part", name=op.f("pk_heartbeats")),
    )
    op.create_table(
        "holds",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("target_kind", sa.String(length=16), nullable=False),
        sa.Column("target_name", sa.String(length=512), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(length=256), nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("released_at", sa.DateTime(timezone=True)),
        sa.Column("released_by", sa.String(length=256)),
        sa.CheckConstraint("source IN ('breaker', 'operator')", name=op.f("ck_holds_source")),
        sa.CheckConstraint(
            "target_kind IN ('service', 'campaign', 'campaign_run', 'everything')",
            name=op.f("ck_holds_target_kind"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
    )
    with op.batch_alter_table("holds") as batch_op:
        batch_op.create_index(
            "uq_holds_live",
            ["target_kind", "target_name", "source", "actor"],
            unique=True,
            sqlite_where=sa.text("released_at IS NULL"),
            postgresql_where=sa.text("released_at IS NULL"),
        )

    op.create_table(
        "missed_ticks",
        sa.Column("campaign", sa.String(length=256), nullable=False),
        sa.Column("schedule", sa.String(length=256), nullable=False),
        sa.Column("tick_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.String(length=16)),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("campaign", "schedule", "tick_at", name=op.f("pk_missed_ticks")),
    )
    with op.batch_alter_table("missed_ticks") as batch_op:
        batch_op.create_index(batch_op.f("ix_missed_ticks_outcome"), ["outcome"])

    op.create_table(
        "outcomes",
        sa.Column("service", sa.String(length=128), nullable=False),
        sa.Column("bucket", sa.DateTime(timezone=True), nullable=False),
        sa.Column("worker", sa.String(length=128), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("ok", sa.Integer(), server_default="0", nullable=False),
        sa.Column("slow", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed_in_row", sa.Integer(), server_default="0", nullable=False),
        sa.Column("row_since", sa.DateTime(timezone=True)),
        sa.Column("last_ok_at", sa.DateTime(timezone=True)),
        sa.Column("last_failed_at", sa.DateTime(timezone=True)),
        sa.Column("retry_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint(
            "service", "bucket", "worker", "generation", name=op.f("pk_outcomes")
        ),
    )
    op.create_table(
        "services",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), server_default="closed", nullable=False),
        sa.Column("generation", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True)),
        sa.Column("open_until", sa.DateTime(timezone=True)),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("trial_successes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("closed_at", sa.DateTime(timezone=True)),
        sa.Column("kept_closed_by", sa.String(length=256)),
        sa.Column("kept_closed_until", sa.DateTime(timezone=True)),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('closed', 'open', 'half_open')", name=op.f("ck_services_state")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_services")),
    )
    op.create_table(
        "takeovers",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("label", sa.String(length=512), nullable=False),
        sa.Column("campaign", sa.String(length=256)),
        sa.Column("location", sa.String(length=256), nullable=False),
        sa.Column("former", sa.String(length=32), nullable=False),
        sa.Column("set_from", sa.String(length=32), nullable=False),
        sa.Column("set_to", sa.String(length=32), nullable=False),
        sa.Column("pending", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("running_since", sa.DateTime(timezone=True)),
        sa.Column("ramp_step_at", sa.DateTime(timezone=True)),
        sa.Column("left_at", sa.DateTime(timezone=True)),
        sa.Column("given_back_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.String(length=32)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_takeovers")),
    )
    with op.batch_alter_table("takeovers") as batch_op:
        batch_op.create_index(
            "uq_takeovers_live",
            ["kind", "name"],
            unique=True,
            sqlite_where=sa.text("given_back_at IS NULL"),
            postgresql_where=sa.text("given_back_at IS NULL"),
        )

    op.create_table(
        "attempts",
        sa.Column(
            "campaign_run", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("dagster_run", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.String(length=16)),
        sa.ForeignKeyConstraint(
            ["campaign_run"], ["campaign_runs.id"], name=op.f("fk_attempts_campaign_run")
        ),
        sa.PrimaryKeyConstraint("campaign_run", "number", name=op.f("pk_attempts")),
        sa.UniqueConstraint("dagster_run", name=op.f("uq_attempts_dagster_run")),
    )
    op.create_table(
        "campaign_ops",
        sa.Column("campaign", sa.String(length=256), nullable=False),
        sa.Column("op", sa.String(length=256), nullable=False),
        sa.Column("pool", sa.String(length=512), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign"], ["campaigns.name"], name=op.f("fk_campaign_ops_campaign")
        ),
        sa.PrimaryKeyConstraint("campaign", "op", name=op.f("pk_campaign_ops")),
    )
    op.create_table(
        "campaign_triggers",
        sa.Column("campaign", sa.String(length=256), nullable=False),
        sa.Column("selector_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.Column("runs_by_default", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign"], ["campaigns.name"], name=op.f("fk_campaign_triggers_campaign")
        ),
        sa.PrimaryKeyConstraint("campaign", "selector_id", name=op.f("pk_campaign_triggers")),
    )
    op.create_table(
        "ledger",
        sa.Column(
            "campaign_run", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("op", sa.String(length=256), nullable=False),
        sa.Column("key", sa.String(length=512), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("result", sa.JSON(none_as_null=True)),
        sa.Column("error", sa.Text()),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "status IN ('started', 'done', 'failed')", name=op.f("ck_ledger_status")
        ),
        sa.ForeignKeyConstraint(
            ["campaign_run"], ["campaign_runs.id"], name=op.f("fk_ledger_campaign_run")
        ),
        sa.PrimaryKeyConstraint("campaign_run", "op", "key", name=op.f("pk_ledger")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "loops",
        sa.Column(
            "campaign_run", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("op", sa.String(length=256), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=32), nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_run"], ["campaign_runs.id"], name=op.f("fk_loops_campaign_run")
        ),
        sa.PrimaryKeyConstraint("campaign_run", "op", name=op.f("pk_loops")),
    )
    op.create_table(
        "progress",
        sa.Column(
            "campaign_run", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False
        ),
        sa.Column("op", sa.String(length=256), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer()),
        sa.Column("rate", sa.Float()),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("position_key", sa.String(length=512)),
        sa.Column("series", sa.Integer(), nullable=False),
        sa.Column("exact", sa.Boolean(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["campaign_run"], ["campaign_runs.id"], name=op.f("fk_progress_campaign_run")
        ),
        sa.PrimaryKeyConstraint("campaign_run", "op", name=op.f("pk_progress")),
    )
    op.create_table(
        "trials",
        sa.Column("service", sa.String(length=128), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(length=128), nullable=False),
        sa.Column("token", sa.String(length=32), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["service"], ["services.name"], name=op.f("fk_trials_service")),
        sa.PrimaryKeyConstraint("service", "slot", name=op.f("pk_trials")),
    )


def downgrade() -> None:
    """Take this revision back."""
    op.drop_table("trials")
    op.drop_table("progress")
    op.drop_table("loops")
    op.drop_table("ledger")
    op.drop_table("campaign_triggers")
    op.drop_table("campaign_ops")
    op.drop_table("attempts")
    with op.batch_alter_table("takeovers") as batch_op:
        batch_op.drop_index(
            "uq_takeovers_live",
            sqlite_where=sa.text("given_back_at IS NULL"),
            postgresql_where=sa.text("given_back_at IS NULL"),
        )

    op.drop_table("takeovers")
    op.drop_table("services")
    op.drop_table("outcomes")
    with op.batch_alter_table("missed_ticks") as batch_op:
        batch_op.drop_index(batch_op.f("ix_missed_ticks_outcome"))

    op.drop_table("missed_ticks")
    with op.batch_alter_table("holds") as batch_op:
        batch_op.drop_index(
            "uq_holds_live",
            sqlite_where=sa.text("released_at IS NULL"),
            postgresql_where=sa.text("released_at IS NULL"),
        )

    op.drop_table("holds")
    op.drop_table("heartbeats")
    with op.batch_alter_table("events") as batch_op:
        batch_op.drop_index(batch_op.f("ix_events_kind_name_id"))

    op.drop_table("events")
    op.drop_table("campaigns")
    with op.batch_alter_table("campaign_runs") as batch_op:
        batch_op.drop_index(batch_op.f("ix_campaign_runs_status_paused_at"))

    op.drop_table("campaign_runs")
