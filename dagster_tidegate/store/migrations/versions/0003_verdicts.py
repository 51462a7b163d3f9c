"""Verdicts: what opened a breaker, and how often a record was tried."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.add_column("services", sa.Column("cause", sa.String(length=16)))
    op.add_column("services", sa.Column("answer", sa.Text()))
    op.add_column("services", sa.Column("would_open_at", sa.DateTime(timezone=True)))
    op.add_column("outcomes", sa.Column("row_records", sa.Text()))
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


def downgrade() -> None:
    """Take this revision back. Skipped records become failed, waiting ones untouched."""
    op.execute("DELETE FROM ledger WHERE status = 'waiting'")
    op.execute("UPDATE ledger SET status = 'failed' WHERE status = 'skipped'")
    with op.batch_alter_table("ledger", table_kwargs={"sqlite_with_rowid": False}) as batch_op:
        batch_op.drop_constraint(op.f("ck_ledger_status"), type_="check")
        batch_op.create_check_constraint(
            op.f("ck_ledger_status"), "status IN ('started', 'done', 'failed')"
        )
        for column in ("steps", "suspect", "retry_at", "tries"):
            batch_op.drop_column(column)
    with op.batch_alter_table("outcomes") as batch_op:
        batch_op.drop_column("row_records")
    with op.batch_alter_table("services") as batch_op:
        for column in ("would_open_at", "answer", "cause"):
            batch_op.drop_column(column)
