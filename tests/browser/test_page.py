"""Tidegate's own pages in a real browser, during an outage that is made in the store.

`TIDEGATE_TEST_PICTURES` names a folder for a picture of each page, to be looked at.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from dagster_tidegate.holds import Target, TargetKind
from dagster_tidegate.statuses import RecordStatus, RunStatus
from dagster_tidegate.store import history, holds, schema, tokens
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.tokens import Role
from tests.integration.api import app_of
from tests.integration.served import served
from tests.support import page_scene, page_store

pytestmark = pytest.mark.database_time

WIDTHS = (1440, 820, 390)
PAGES = {
    "now": "",
    "service": "/services/perplexity",
    "service-limited": "/services/openai",
    "service-in-window": "/services/millionverifier",
    "campaigns": "/campaigns",
    "campaign": "/campaigns/outreach",
    "run": "/runs/{failed}",
    "records": "/records",
    "run-records": "/runs/{failed}/records?state=failed",
    "timeline": "/timeline?span=day",
    "outages": "/outages?service=openai",
    "outage": "/outages/{outage}",
    "history": "/history",
    "runbooks": "/runbooks",
    "hold": "/change/hold?target=service+openai",
    "release": "/change/release?target=campaign+account_digest",
    "keep-closed": "/change/keep-closed?service=instantly",
    "start": "/change/start?campaign=outreach&partition=leads-9.csv",
    "cancel": "/change/cancel?run={paused}",
    "retry": "/change/retry?run={failed}",
    "repaired": "/change/repaired?service=perplexity",
    "skip": "/change/skip?run={failed}",
    "nothing": "/campaigns?q=nowhere",
    "no-such-page": "/nowhere",
}
OPENAI = Target(TargetKind.SERVICE, "openai")


class Workspace:
    """Code locations that take note of what they are told to launch."""

    def __init__(self) -> None:
        self.launched: list[tuple[str, str]] = []

    def has_run(self, _run_id: str) -> bool:
        return False

    def policies(self) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        return {}, {}

    def launch_marked(self, job: str, partition: str, *, run_id: str, **_: Any) -> str:
        self.launched.append((job, partition))
        return run_id


@contextmanager
def serving(store: Store, workspace: Workspace | None = None) -> Iterator[str]:
    app = app_of(store, workspace and (lambda: workspace))
    # A page that is open has a stream.
    with served(app, timeout_graceful_shutdown=1) as url:
        yield f"{url}/tidegate"


def live(store: Store, target: Target) -> list[tuple[str, str]]:
    with store.read() as conn:
        return [(h.actor, h.reason) for h in holds.live(conn, store.now(conn), target)]


def token(store: Store, name: str, role: Role) -> str:
    with store.begin() as conn:
        return tokens.create(conn, store.now(conn), name, role, actor="tests")[1]


def log_in(page: Page, secret: str) -> None:
    page.get_by_label("Token").fill(secret)
    page.get_by_role("button", name="Log in").click()


def test_the_page_changes_by_itself_and_keeps_focus_scroll_and_selection(
    store: Store, page: Page
) -> None:
    page_store.deploy(store)
    page.set_viewport_size({"width": 1440, "height": 400})
    with serving(store) as url:
        page.goto(url)
        expect(page.locator("#live")).to_have_text("Live")
        expect(page.get_by_role("heading", level=1)).to_have_text("Everything runs")
        picked = page.get_by_label("Select openai")
        picked.check()
        picked.focus()
        scrolled = page.evaluate("scrollY")
        assert scrolled > 0

        page_store.open_breaker(store, "instantly")
        row = page.locator("#service-instantly")
        expect(row.get_by_text("open", exact=True)).to_be_visible()
        expect(page.get_by_role("heading", level=1)).to_contain_text("instantly is down")
        expect(page.locator("#pauses")).to_contain_text("503 x5")
        expect(page.locator("#spoken")).to_have_text("instantly is now open")
        expect(picked).to_be_checked()
        expect(picked).to_be_focused()
        countdown = row.locator("time[data-until]")
        left = countdown.inner_text()
        expect(countdown).not_to_have_text(left)

        page_store.close_breaker(store, "instantly")
        expect(page.get_by_role("heading", level=1)).to_have_text("Everything runs")
        expect(picked).to_be_checked()
        expect(picked).to_be_focused()


def test_a_store_that_goes_away_is_said_and_the_page_recovers(
    store: Store, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    page_store.deploy(store)
    with serving(store) as url:
        page.goto(url)
        expect(page.locator("#live")).to_have_text("Live")
        with monkeypatch.context() as broken:
            broken.setattr(type(store), "read", _unreachable)
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
            expect(page.locator("#away")).to_contain_text("the store is unreachable")
            expect(page.locator("#services")).to_contain_text("instantly")
        expect(page.locator("#away")).to_be_hidden()


@contextmanager
def _unreachable(_store: Store) -> Iterator[Any]:
    from sqlalchemy.exc import OperationalError

    raise OperationalError("SELECT", {}, Exception("no route to host"))
    yield


def test_the_keyboard_alone_holds_and_releases(store: Store, page: Page) -> None:
    page_store.deploy(store)
    with serving(store) as url:
        page.goto(url)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        page.keyboard.press("Enter")
        tab_to(page, "Select openai")
        page.keyboard.press("Space")
        tab_to(page, "Hold selected…")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Hold openai")
        expect(page.get_by_text("Campaign outreach pauses")).to_be_visible()
        expect(page.get_by_label("Reason")).to_be_focused()
        page.keyboard.type("new model")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Held.")).to_be_visible()
        assert live(store, OPENAI) == [("anonymous", "new model")]

        tab_to(page, "Release… service openai")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Release openai")
        tab_to(page, "Release")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Released.")).to_be_visible()
    assert live(store, OPENAI) == []
    with store.read() as conn:
        events = history.read(conn, name="openai", kinds=["hold"], limit=10)
    assert [(e.to_status, e.actor, e.address) for e in events] == [
        ("placed", "anonymous", "127.0.0.1"),
        ("released", "anonymous", "127.0.0.1"),
    ]


def tab_to(page: Page, name: str) -> None:
    """Press Tab until something with a name has the focus."""
    focused = """() => {
      const it = document.activeElement;
      return it.getAttribute("aria-label") || it.textContent.trim().replace(/\\s+/g, " ");
    }"""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == name:
            return
    pytest.fail(f"Tab never reached {name!r}")


def test_an_operator_tries_a_group_of_records_again(store: Store, page: Page) -> None:
    page_store.deploy(store)
    errors = [(f"lead-{n}", f"422: invalid e-mail p{n}@example.org") for n in range(3)]
    run = page_store.run(
        store, "outreach", "leads-1.csv", RunStatus.FAILED,
        failed=[*errors, ("lead-9", "merged")],
    )  # fmt: skip
    secret = token(store, "ana", Role.OPERATOR)
    workspace = Workspace()
    with serving(store, workspace) as url:
        page.goto(f"{url}/records")
        log_in(page, secret)
        page.get_by_role("link", name=re.compile(r"Try again….*invalid e-mail")).click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Try 3 records again")
        page.get_by_label("Reason").fill("addresses were corrected")
        page.get_by_role("button", name="Try again").click()
        expect(
            page.get_by_text("a Dagster run that processes only these is queued")
        ).to_be_visible()
    assert workspace.launched == [("outreach", "leads-1.csv")]
    with store.read() as conn:
        ledger = t.ledger.c
        rows = conn.execute(t.ledger.select().where(ledger.campaign_run == run)).all()
        [event] = history.read(conn, kinds=["records"], limit=5)
    waiting = {row.key for row in rows if row.status == RecordStatus.WAITING}
    assert waiting == {"lead-0", "lead-1", "lead-2"}
    assert (event.actor, event.reason) == ("ana", "addresses were corrected")


def test_a_viewer_is_offered_nothing_and_refused(store: Store, page: Page) -> None:
    page_scene.trouble(store)
    secret = token(store, "vic", Role.VIEWER)
    with serving(store) as url:
        page.goto(url)
        log_in(page, secret)
        expect(page.get_by_text("perplexity refuses this client")).to_be_visible()
        expect(page.locator("main").get_by_role("checkbox")).to_have_count(0)
        expect(page.get_by_role("link", name="Repaired…")).to_have_count(0)
        status = page.evaluate(
            """async (url) => (await fetch(url + "/change/hold", {
              method: "POST",
              headers: {"Content-Type": "application/x-www-form-urlencoded"},
              body: "target=service+openai&reason=x",
            })).status""",
            url,
        )
        assert status == 403
    assert live(store, OPENAI) == []


def test_without_javascript_it_reads_and_its_forms_work(store: Store, page: Page) -> None:
    ids = page_scene.trouble(store)
    browser = page.context.browser
    assert browser is not None
    plain = browser.new_context(java_script_enabled=False).new_page()
    with serving(store) as url:
        for path in PAGES.values():
            plain.goto(url + path.format(**ids))
            expect(plain.get_by_role("heading", level=1)).to_be_visible()
        plain.goto(url)
        expect(plain.get_by_text("reload it")).to_be_visible()
        expect(plain.locator("#service-instantly time[data-until]")).to_contain_text("in ")
        plain.get_by_label("Select openai").check()
        plain.get_by_role("button", name="Hold selected…").click()
        plain.get_by_label("Reason").fill("new model")
        plain.get_by_label("For how long").select_option("1 hour")
        plain.get_by_role("button", name="Hold", exact=True).click()
        expect(plain.get_by_text("Held.")).to_be_visible()
    assert live(store, OPENAI) == [("anonymous", "new model")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits_every_screen(
    store: Store, page: Page, scheme: Any
) -> None:
    pictures = os.environ.get("TIDEGATE_TEST_PICTURES")
    ids = page_scene.trouble(store)
    empty = Store("sqlite://")
    schema.upgrade(empty)
    page.emulate_media(color_scheme=scheme)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda each: wrong.append(each.text) if "policy" in each.text else None)
    page.add_init_script(Axe().axe_script)
    with serving(store) as url, serving(empty) as empty_url:
        for name, path in (*PAGES.items(), ("empty-now", ""), ("empty-records", "/records")):
            base = empty_url if name.startswith("empty") else url
            page.goto(base + path.format(**ids))
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": 900})
                view = f"{name}-{scheme}-{width}"
                if pictures:
                    page.screenshot(path=Path(pictures, f"{view}.png"), full_page=True)
                if page.evaluate("document.documentElement.scrollWidth") > width:
                    wrong.append(f"{view} is wider than its screen")
                if width == WIDTHS[0] or (width == WIDTHS[2] and scheme == "light"):
                    wrong += [f"{view}: {each}" for each in violations(page)]
    empty.dispose()
    assert wrong == []


def violations(page: Page) -> Sequence[str]:
    """What axe-core, which is in the page, finds that is serious or critical."""
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [
        f"{each['id']}: {[node['html'][:120] for node in each['nodes'][:3]]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
