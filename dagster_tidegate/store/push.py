"""How a process learns at once that another changed a breaker or a hold."""

import sqlalchemy as sa

CHANNEL = "tidegate"


def notify(conn: sa.Connection) -> None:
    """Tell every process, when this transaction commits, that breakers or holds changed."""
    if conn.dialect.name == "postgresql":
        conn.execute(sa.text(f"NOTIFY {CHANNEL}"))
