"""The outbox of alerts: raised once, sent by one sender, in order."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from dagster_tidegate.store import alerts
from dagster_tidegate.store.alerts import Alert, AlertStatus, Cursor
from dagster_tidegate.store.database import Connection, Store
from tests.support.clock import Clock

MINUTE = timedelta(minutes=1)


def add(conn: Connection, clock: Clock, name: str = "mail", *, lasts: bool = True) -> bool:
    values = {"title": f"{name} is open", "body": "503 ü", "lasts": lasts}
    return alerts.raise_alert(conn, clock(), kind="trip", name=name, **values)


def due(conn: Connection, clock: Clock) -> list[int]:
    return [alert.id for alert in alerts.due(conn, clock(), limit=10)]


def finish(
    conn: Connection, clock: Clock, alert: Alert, *, error: str | None = None, to: tuple = ("ops",)
) -> bool:
    return alerts.finish(
        conn,
        alert,
        clock() + MINUTE,
        delivered_to=to,
        sent_at=None if error else clock(),
        next_try_at=clock() + MINUTE if error else None,
        error=error,
    )


def test_what_lasts_is_raised_once(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        assert add(conn, clock)
        assert not add(conn, clock)
        assert add(conn, clock, "maps", lasts=False)
        assert add(conn, clock, "maps", lasts=False)
        alerts.end(conn, clock.advance(1), 1, withdraw=False)
        assert add(conn, clock)
        ended = alerts.listed(conn, limit=9)[-1]
        assert (ended.ended_at, ended.live, ended.status) == (clock(), False, AlertStatus.PENDING)
        [newest, *older] = alerts.listed(conn, limit=9)
        assert alerts.listed(conn, limit=9, before=newest.id) == older


def test_an_alert_nobody_tried_to_send_can_be_withdrawn(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        add(conn, clock)
        add(conn, clock, "maps")
        [_, tried] = alerts.due(conn, clock(), limit=2)
        alerts.claim(conn, tried, clock() + MINUTE)
        for alert in (1, 2):
            alerts.end(conn, clock(), alert, withdraw=True)
        statuses = [alert.status for alert in alerts.listed(conn, limit=9)]
        assert statuses == [AlertStatus.PENDING, AlertStatus.WITHDRAWN]


def test_alerts_of_a_name_are_sent_in_order(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        add(conn, clock, lasts=False)
        add(conn, clock, "maps")
        add(conn, clock)
        assert due(conn, clock) == [1, 2]
        [first, _] = alerts.due(conn, clock(), limit=2)
        assert alerts.claim(conn, first, clock() + MINUTE)
        assert due(conn, clock) == [2]
        assert finish(conn, clock, first, error="502", to=())
        assert due(conn, clock) == [2]
        clock.advance(60)
        [first, _] = alerts.due(conn, clock(), limit=2)
        assert (first.tries, first.error, first.status) == (1, "502", AlertStatus.RETRYING)
        assert alerts.claim(conn, first, clock() + MINUTE)
        assert finish(conn, clock, first, error="one of two", to=("chat", "ops"))
        assert due(conn, clock) == [2, 3]  # a target that has it does not wait for another


def test_an_expired_claim_is_taken_over(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        add(conn, clock)
        [alert] = alerts.due(conn, clock(), limit=1)
        until = clock() + MINUTE
        assert alerts.claim(conn, alert, until)
        assert not alerts.claim(conn, alert, until)
        clock.advance(60)
        [alert] = alerts.due(conn, clock(), limit=1)
        assert alerts.claim(conn, alert, clock() + MINUTE)
        late = {"delivered_to": (), "sent_at": None, "next_try_at": None, "error": "late"}
        assert not alerts.finish(conn, alert, until, **late)
        assert finish(conn, clock, alert, to=("ops", "chat"))
        [sent] = alerts.listed(conn, limit=1)
        assert (sent.status, sent.delivered_to) == (AlertStatus.SENT, ["chat", "ops"])


def test_of_senders_at_once_one_claims_an_alert(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        add(conn, clock)
        [alert] = alerts.due(conn, clock(), limit=1)

    def claim(_number: int) -> bool:
        with store.begin() as conn:
            return alerts.claim(conn, alert, clock() + MINUTE)

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(claim, range(4))) == 1


def test_the_state_of_the_outbox(store: Store, clock: Clock) -> None:
    start = clock()
    with store.begin() as conn:
        assert alerts.counts(conn, clock()).looked_at is None
        for name in ("sent", "retried", "given up", "pending"):
            add(conn, clock, name)
        for alert in alerts.due(conn, clock(), limit=3):
            assert alerts.claim(conn, alert, clock() + MINUTE)
            finish(conn, clock, alert, error=None if alert.name == "sent" else "502")
        given_up = {"delivered_to": (), "sent_at": None, "next_try_at": None, "error": "502"}
        [third] = [alert for alert in alerts.listed(conn, limit=9) if alert.name == "given up"]
        assert third.next_try_at is not None
        assert alerts.finish(conn, third, third.next_try_at, **given_up)
        assert alerts.move_cursor(conn, clock(), before=None, event=1)
        counts = alerts.counts(conn, clock())
        assert counts.by_status == dict.fromkeys(AlertStatus, 1) | {AlertStatus.WITHDRAWN: 0}
        assert (counts.live, counts.failing) == ({"trip": 4}, 2)
        assert (counts.oldest_pending_at, counts.looked_at) == (start, start)
        clock.advance(alerts.COUNTED_FOR.total_seconds() + 1)
        counts = alerts.counts(conn, clock())
        assert counts.by_status[AlertStatus.SENT] == counts.by_status[AlertStatus.GIVEN_UP] == 0
        alerts.withhold(conn, 4, 2)
        recent = alerts.recent(conn, clock(), withheld_since=start)
        assert [(alert.id, alert.withheld) for alert in recent] == [(1, 0), (2, 0), (3, 0), (4, 2)]
        for alert in recent:
            alerts.end(conn, clock(), alert.id, withdraw=False)
        recent = alerts.recent(conn, clock(), withheld_since=start)
        assert [alert.id for alert in recent] == [4]


def test_the_cursor_is_moved_by_compare_and_set(store: Store, clock: Clock) -> None:
    with store.begin() as conn:
        assert alerts.read_cursor(conn) is None
        assert alerts.move_cursor(conn, clock(), before=None, event=5)
        assert not alerts.move_cursor(conn, clock(), before=None, event=6)
        read = alerts.read_cursor(conn)
        assert read == Cursor(5, clock())
        assert alerts.move_cursor(conn, clock.advance(1), before=read, event=6)
        assert not alerts.move_cursor(conn, clock.advance(1), before=read, event=7)
