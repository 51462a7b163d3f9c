"""Verdicts, limits, windows, and identity.

Identity is what a campaign run covers, and which attempts its ledger belongs to.

Workers of revision 0002 go on: the identity of a campaign run stays in `campaign` and `partition`,
with their unique constraint, and all new columns have a default.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OTHER_VERDICTS = ("throttled", "denied", "pending", "rejected", "ignored")


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("services", sa.Column("cause", sa.String(length=16)))
    op.add_column("services", sa.Column("answer", sa.Text()))
    op.add_column("services", sa.Column("would_open_at", sa.DateTime(timezone=True)))
    op.add_column("campaign_ops", sa.Column("services", sa.Text()))
    op.add_column("campaign_ops", sa.Column("assets", sa.JSON(none_as_null=True)))
    op.add_column("outcomes", sa.Column("row_records", sa.Text()))
    for column in _other_verdicts():
        op.add_column("outcomes", column)
    op.create_table(
        "verdicts",
        sa.Column("service", sa.String(length=128), nullable=False),
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ok", sa.Integer(), server_default="0", nullable=False),
        sa.Column("slow", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        *_other_verdicts(),
        sa.PrimaryKeyConstraint("service", "minute", name=op.f("pk_verdicts")),
    )
    op.create_table(
        "windows",
        sa.Column("location", sa.String(length=256), nullable=False),
        sa.Column("service", sa.String(length=128), nullable=False),
        sa.Column("cron", sa.String(length=128), nullable=False),
        sa.Column("timezone", sa.String(length=64), nullable=False),
        sa.Column("duration_s", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(
            "location", "service", "cron", "timezone", "duration_s", name=op.f("pk_windows")
        ),
    )
    op.create_table(
        "limits",
        sa.Column("service", sa.String(length=128), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("service", name=op.f("pk_limits")),
    )
    # Before the campaign runs: a worker that writes its records refers to them.
    tries = sa.Column("tries", sa.Integer(), server_default="0", nullable=False)
    suspect = sa.Column("suspect", sa.Boolean(), server_default=sa.false(), nullable=False)
    with op.batch_alter_table("ledger", table_kwargs={"sqlite_with_rowid": False}) as batch_op:
        batch_op.add_column(tries)
        batch_op.add_column(sa.Column("retry_at", sa.DateTime(timezone=True)))
        batch_op.add_column(suspect)
        batch_op.add_column(sa.Column("steps", sa.JSON(none_as_null=True)))
        batch_op.drop_constraint(op.f("ck_ledger_status"), type_="check")
        batch_op.create_check_constraint(
            op.f("ck_ledger_status"),
            "status IN ('waiting', 'started', 'done', 'failed', 'skipped')",
        )
    _widen("holds", "target_name")
    _widen("campaign_runs", "partition")
    op.add_column("campaign_runs", sa.Column("dagster_partition", sa.Text()))
    op.add_column("campaign_runs", sa.Column("assets", sa.JSON(none_as_null=True)))
    op.add_column("campaign_runs", sa.Column("ended_as", sa.String(length=16)))
    op.add_column("campaign_runs", sa.Column("refused_by", sa.Text()))
    op.add_column(
        "campaign_runs",
        sa.Column("first_attempt", sa.Integer(), server_default="0", nullable=False),
    )
    op.add_column(
        "campaign_runs",
        sa.Column("has_old_records", sa.Boolean(), server_default=sa.false(), nullable=False),
    )
    _widen("events", "name")  # last, as in each worker's transaction


def _other_verdicts() -> list[sa.Column]:
    return [
        sa.Column(name, sa.Integer(), server_default="0", nullable=False) for name in OTHER_VERDICTS
    ]


def _widen(table: str, column: str) -> None:
    """Remove the limit of a text. PostgreSQL rewrites neither table nor index; SQLite has none."""
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column(table, column, type_=sa.Text())


def downgrade() -> None:
    """Take this revision back. Skipped records become failed, waiting ones untouched.

    Names stay as long as they are; the older version reads them.
    """
    op.execute(
        """
        DELETE FROM ledger WHERE attempt < (
            SELECT first_attempt FROM campaign_runs WHERE campaign_runs.id = ledger.campaign_run
        )
        """
    )
    op.execute("DELETE FROM ledger WHERE status = 'waiting'")
    op.execute("UPDATE ledger SET status = 'failed' WHERE status = 'skipped'")
    with op.batch_alter_table("ledger", table_kwargs={"sqlite_with_rowid": False}) as batch_op:
        batch_op.drop_constraint(op.f("ck_ledger_status"), type_="check")
        batch_op.create_check_constraint(
            op.f("ck_ledger_status"), "status IN ('started', 'done', 'failed')"
        )
        for column in ("steps", "suspect", "retry_at", "tries"):
            batch_op.drop_column(column)
    with op.batch_alter_table("campaign_runs") as batch_op:
        for column in (
            "has_old_records",
            "first_attempt",
            "refused_by",
            "ended_as",
            "assets",
            "dagster_partition",
        ):
            batch_op.drop_column(column)
    with op.batch_alter_table("campaign_ops") as batch_op:
        batch_op.drop_column("assets")
        batch_op.drop_column("services")
    with op.batch_alter_table("outcomes") as batch_op:
        for name in ("row_records", *OTHER_VERDICTS):
            batch_op.drop_column(name)
    for table in ("limits", "windows", "verdicts"):
        op.drop_table(table)
    with op.batch_alter_table("services") as batch_op:
        for column in ("would_open_at", "answer", "cause"):
            batch_op.drop_column(column)
