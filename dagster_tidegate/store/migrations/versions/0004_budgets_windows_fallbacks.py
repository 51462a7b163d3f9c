"""Budgets, windows by hand, fallbacks, durations of calls.

Workers of revision 0003 go on: all new columns are nullable or have a default.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "budgets",
        sa.Column("service", sa.String(length=128), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("service", name=op.f("pk_budgets")),
    )
    op.create_table(
        "spending",
        sa.Column("service", sa.String(length=128), nullable=False),
        sa.Column("period", sa.DateTime(timezone=True), nullable=False),
        sa.Column("unit", sa.String(length=32), nullable=False),
        sa.Column("campaign", sa.String(length=256), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("service", "period", "unit", "campaign", name=op.f("pk_spending")),
    )
    counts = ("ok", "slow", "failed", "throttled", "denied", "pending", "rejected", "ignored")
    op.create_table(
        "daily_verdicts",
        sa.Column("service", sa.String(length=128), nullable=False),
        sa.Column("day", sa.DateTime(timezone=True), nullable=False),
        *(sa.Column(name, sa.Integer(), server_default="0", nullable=False) for name in counts),
        sa.PrimaryKeyConstraint("service", "day", name=op.f("pk_daily_verdicts")),
    )
    op.add_column("services", sa.Column("used_up", sa.String(length=16)))
    op.add_column("ledger", sa.Column("service", sa.String(length=256)))
    op.add_column("outcomes", sa.Column("p95_s", sa.Float()))


def downgrade() -> None:
    """Take this revision back."""
    op.drop_column("outcomes", "p95_s")
    with op.batch_alter_table("ledger", table_kwargs={"sqlite_with_rowid": False}) as batch_op:
        batch_op.drop_column("service")
    op.drop_column("services", "used_up")
    op.drop_table("daily_verdicts")
    op.drop_table("spending")
    op.drop_table("budgets")
