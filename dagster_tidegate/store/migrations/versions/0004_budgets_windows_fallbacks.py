"""Budgets, windows by hand, fallbacks.

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
    op.add_column("ledger", sa.Column("service", sa.String(length=256)))


def downgrade() -> None:
    """Take this revision back."""
    with op.batch_alter_table("ledger", table_kwargs={"sqlite_with_rowid": False}) as batch_op:
        batch_op.drop_column("service")
