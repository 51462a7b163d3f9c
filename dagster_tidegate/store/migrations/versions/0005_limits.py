"""The calls to services that have rate limits."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""
    op.create_table(
        "limits",
        sa.Column("service", sa.String(length=128), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("service", name=op.f("pk_limits")),
    )


def downgrade() -> None:
    """Take this revision back."""
    op.drop_table("limits")
