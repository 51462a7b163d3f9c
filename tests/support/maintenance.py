"""A hold on everything, and whether a store has one."""

from dagster_tidegate.holds import EVERYTHING, HoldSource
from dagster_tidegate.store import holds
from dagster_tidegate.store.database import Store


def hold(store: Store) -> None:
    with store.begin() as conn:
        holds.place(
            conn, store.now(conn), EVERYTHING,
            source=HoldSource.OPERATOR, reason="maintenance", actor="ana",
        )  # fmt: skip


def held(store: Store) -> bool:
    with store.read() as conn:
        return bool(holds.live(conn, store.now(conn)))
