"""A dead key, a used-up quota and a poison record: seen and repaired on the page.

The trouble comes from calls through real breakers and from a real record loop; nothing is put into
the store by hand.
"""

from collections.abc import Iterator
from typing import Any, NoReturn

import httpx
import pytest
from playwright.sync_api import Page, expect

from dagster_tidegate.breaker.breaker import Breaker
from dagster_tidegate.breaker.errors import BreakerOpenError
from dagster_tidegate.breaker.fleet import Fleet
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.records import retry
from dagster_tidegate.records.record import Record
from dagster_tidegate.statuses import BreakerState, RecordStatus, RunStatus
from dagster_tidegate.store import history
from dagster_tidegate.store.breakers import SqlBackend
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Role
from tests.browser.test_page import Workspace, log_in, serving, token
from tests.integration.record_loop import Work, go_through
from tests.support import page_store

pytestmark = pytest.mark.database_time

KEYS = [f"lead-{number}" for number in range(12)]


@pytest.fixture
def breaker(store: Store) -> Iterator[Breaker]:
    """The breaker of apollo in a worker, which waits for nobody to learn of a change."""
    page_store.deploy(store)
    fleet = Fleet(SqlBackend(store), [ServicePolicy(name="apollo")])
    yield fleet.breaker("apollo")
    fleet.close()


def answering(status: int, error: str, **headers: str) -> NoReturn:
    """A call to a service that answers with an error."""
    httpx.Response(
        status,
        json={"error": error},
        headers=headers,
        request=httpx.Request("POST", "https://api.apollo.example/match"),
    ).raise_for_status()
    raise AssertionError(f"{status} is no error")


def refused_to_a_viewer(page: Page, store: Store, url: str, path: str, form: str) -> None:
    """A viewer sees a page, is offered no change there, and is refused one."""
    browser = page.context.browser
    assert browser is not None
    context = browser.new_context()
    other = context.new_page()
    other.goto(url + path)
    action, body = form.split("?")
    log_in(other, token(store, f"vic-{action}", Role.VIEWER))
    expect(other.get_by_role("heading", level=1)).to_be_visible()
    expect(other.locator("main a[href*='/change/'], main form[method=post]")).to_have_count(0)
    status = other.evaluate(
        """async ([url, body]) => (await fetch(url, {
          method: "POST",
          headers: {"Content-Type": "application/x-www-form-urlencoded"},
          body,
        })).status""",
        [f"{url}/change/{action}", body],
    )
    assert status == 403
    context.close()


def audited(store: Store, **which: Any) -> list[tuple[str, str, str | None, str | None]]:
    """The newest event: who did what, why and from where."""
    with store.read() as conn:
        events = history.read(conn, limit=1, **which)
    return [(e.actor, e.to_status, e.reason, e.address) for e in events]


def test_a_dead_key_says_what_to_repair_and_is_repaired(
    store: Store, page: Page, breaker: Breaker
) -> None:
    secret = token(store, "ana", Role.OPERATOR)
    with serving(store) as url:
        page.goto(url)
        log_in(page, secret)
        expect(page.get_by_role("heading", level=1)).to_have_text("Everything runs")
        with pytest.raises(BreakerOpenError):
            breaker.call(answering, 401, "this API key was revoked")
        need = page.locator("#needs li")
        expect(need).to_contain_text("apollo refuses this client")
        expect(need).to_contain_text("this API key was revoked")
        expect(need).to_contain_text("Repair the cause (key, credits, plan or address)")
        expect(page.locator("#pauses")).to_contain_text("repaired by a person")
        refused_to_a_viewer(page, store, url, "", "repaired?service=apollo&reason=x")
        assert breaker.fleet.refresh().services["apollo"].is_denied

        need.get_by_role("link", name="Repaired…").click()
        expect(page.get_by_text("one trial call checks the repair")).to_be_visible()
        page.get_by_label("Reason").fill("rotated the key")
        page.get_by_role("button", name="Try it now").click()
        expect(page.get_by_text("A trial call checks the repair.")).to_be_visible()
        expect(page.locator("#service-apollo")).to_contain_text("half open")
        assert audited(store, name="apollo", kinds=["service"]) == [
            ("ana", "half_open", "rotated the key", "127.0.0.1")
        ]
        breaker.fleet.refresh()
        breaker.call(int)
        expect(page.get_by_role("heading", level=1)).to_have_text("Everything runs")
        expect(page.locator("#needs li")).to_have_count(0)


def test_a_used_up_quota_counts_down_to_its_reset_and_a_raised_one_is_used_at_once(
    store: Store, page: Page, breaker: Breaker
) -> None:
    secret = token(store, "ana", Role.OPERATOR)
    said = "10,000 of 10,000 requests used"
    with serving(store) as url:
        page.goto(url)
        log_in(page, secret)
        expect(page.get_by_role("heading", level=1)).to_have_text("Everything runs")
        with pytest.raises(BreakerOpenError) as refused:
            breaker.call(answering, 429, said, **{"Retry-After": "110"})
        until = refused.value.retry_at
        assert until is not None
        expect(page.get_by_role("heading", level=1)).to_contain_text("apollo is throttled")
        row = page.locator("#service-apollo")
        expect(row).to_contain_text("called again in")
        for place in (row, page.locator("#pauses")):
            countdown = place.locator("time[data-until]")
            expect(countdown).to_have_attribute("datetime", until.isoformat())
            expect(place).to_contain_text(f"{until:%T} UTC")
            left = countdown.inner_text()
            expect(countdown).not_to_have_text(left)
        form = "keep-closed?service=apollo&reason=x"
        refused_to_a_viewer(page, store, url, "/services/apollo", form)

        row.get_by_role("link", name="apollo").first.click()
        expect(page.locator("blockquote")).to_contain_text(said)
        page.get_by_role("link", name="Keep closed…").click()
        page.get_by_label("Reason").fill("they raised the quota")
        page.get_by_label("For how long").select_option("1 hour")
        page.get_by_role("button", name="Keep it closed").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("kept closed")
        [(actor, status, reason, address)] = audited(store, name="apollo", kinds=["service"])
        assert (actor, status, address) == ("ana", "kept_closed", "127.0.0.1")
        assert reason == "they raised the quota"
    assert breaker.fleet.refresh().services["apollo"].state is BreakerState.CLOSED
    breaker.call(int)


def test_a_poison_record_is_a_suspect_and_is_tried_again_or_skipped(
    store: Store, store_url: str, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(retry, "MAX_BACKOFF_S", 0.01)
    page_store.deploy(store)
    secret = token(store, "ana", Role.OPERATOR)
    work, workspace = Work(store_url, "leads-1.csv"), Workspace()
    poison = {"lead-3": "could not parse the name", "lead-8": "no such time zone"}

    def send(record: Record) -> str:
        if record.key in poison:
            work.fleet.breaker("openai").call(answering, 500, poison[record.key])
        return work.fleet.breaker("openai").call(str, record.key)

    go_through(work.records(KEYS, max_tries=3), send)
    work.end(RunStatus.COMPLETED)
    records = f"/runs/{work.run.id}/records"
    with serving(store, workspace) as url:
        page.goto(url)
        log_in(page, secret)
        expect(page.get_by_role("heading", level=1)).to_have_text("Everything runs")
        need = page.locator("#needs li")
        expect(need).to_contain_text("2 records failed in 1 campaign run")
        for action in ("retry", "skip"):
            form = f"{action}?run={work.run.id}&reason=x"
            refused_to_a_viewer(page, store, url, records, form)
        need.get_by_role("link", name="Review").click()
        group = page.get_by_role("row").filter(has_text="could not parse the name")
        expect(group).to_contain_text("suspect")
        expect(page.get_by_role("row").filter(has_text="no such time zone")).to_contain_text(
            "suspect"
        )

        group.get_by_role("link", name="Try again…").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Try 1 record again")
        page.get_by_label("Reason").fill("the name is corrected")
        page.get_by_role("button", name="Try again").click()
        expect(
            page.get_by_text("a Dagster run that processes only these is queued")
        ).to_be_visible()
        assert workspace.launched == [("outreach", "leads-1.csv")]
        assert audited(store, kinds=["records"]) == [
            ("ana", "retry 1 record", "the name is corrected", "127.0.0.1")
        ]
        group = page.get_by_role("row").filter(has_text="no such time zone")
        group.get_by_role("link", name="Skip…").click()
        page.get_by_label("Reason").fill("the lead is gone")
        page.get_by_role("button", name="Skip").click()
        expect(page.get_by_text("Skipped.", exact=True)).to_be_visible()
        assert audited(store, kinds=["records"]) == [
            ("ana", "skip 1 record", "the lead is gone", "127.0.0.1")
        ]
        expect(page.get_by_text("No record has failed, and none is in doubt.")).to_be_visible()
    del poison["lead-3"]
    work.begin()
    assert go_through(work.records(KEYS, max_tries=3), send) == ["lead-3"]
    assert work.statuses() == {
        **dict.fromkeys(KEYS, RecordStatus.DONE),
        "lead-8": RecordStatus.SKIPPED,
    }
    work.close()
