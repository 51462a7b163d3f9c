"""Tidegate's own pages: what they show, to whom they offer what, and what their forms change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any, cast
from urllib.parse import quote

import httpx
import pytest

from dagster_tidegate.breaker.verdicts import VerdictKind
from dagster_tidegate.holds import EVERYTHING, HoldSource, Target, TargetKind
from dagster_tidegate.statuses import BreakerState, RunStatus
from dagster_tidegate.store import breakers, history, holds, runs, service_stats, tokens
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from dagster_tidegate.store.records import RecordState, Selection
from dagster_tidegate.store.records import read as read_records
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.pages.rendering import CSP, FRAGMENTS
from tests.integration.api import app_of, in_process
from tests.support import page_scene, page_store
from tests.support.databases import both_databases

PAGES = (
    "",
    "/services/instantly",
    "/campaigns",
    "/campaigns/outreach",
    "/runs/{failed}",
    "/runs/{failed}/records",
    "/records",
    "/timeline",
    "/outages",
    "/outages?service=openai",
    "/outages/{outage}",
    "/history",
    "/runbooks",
)
INSTANTLY = Target(TargetKind.SERVICE, "instantly")
OPENAI = Target(TargetKind.SERVICE, "openai")
SCRIPT = "<script>alert(1)</script>"

pytestmark = pytest.mark.database_time


class Browser:
    """Loads pages and sends forms, as a browser does."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def get(self, path: str, expect: int = 200, headers: dict[str, str] | None = None) -> str:
        answer = self.client.get(f"/tidegate{path}", headers=headers)
        assert answer.status_code == expect, answer.text
        return answer.text

    def send(self, action: str, expect: int = 303, **fields: Any) -> httpx.Response:
        """Send a form of this server."""
        answer = self.client.post(
            f"/tidegate/change/{action}", data=fields, headers={"Sec-Fetch-Site": "same-origin"}
        )
        assert answer.status_code == expect, answer.text
        return answer


@contextmanager
def browsing(
    store: Store, role: Role | None = None, name: str = "", workspace: Any = None, **options: Any
) -> Iterator[Browser]:
    headers = {"Accept": "text/html"}
    if role is not None:
        with store.begin() as conn:
            now = store.now(conn)
            _, secret = tokens.create(conn, now, name or f"a-{role}", role, actor="tests")
        headers["Authorization"] = f"Bearer {secret}"
    with in_process(app_of(store, workspace, **options), headers=headers) as client:
        yield Browser(client)


def text(page: str) -> str:
    """The words of a page, as a person reads them."""
    body = page.split("<main", 1)[1].replace("<wbr>", "")
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", body)))


def live(store: Store, target: Target) -> list[tuple[str, str]]:
    with store.read() as conn:
        return [(h.actor, h.reason) for h in holds.live(conn, store.now(conn), target)]


@pytest.fixture
def ids(store: Store) -> dict[str, int]:
    return page_scene.trouble(store)


@both_databases
def test_every_page_loads_nothing_from_elsewhere_and_runs_no_script_of_others(
    store: Store, ids: dict[str, int]
) -> None:
    with browsing(store) as browser:
        for path in (*PAGES, "/campaigns?q=out&status=paused", "/campaigns/outreach?q=leads"):
            answer = browser.client.get("/tidegate" + path.format(**ids))
            assert answer.status_code == 200
            assert answer.headers["content-security-policy"] == CSP
            assert answer.headers["cache-control"] == "no-store"
            loaded = re.findall(r'(?:src|href|action)="([^"]+)"', answer.text)
            assert all(each.startswith(("/", "#")) for each in loaded), path
            assert "style=" not in answer.text
            assert not re.search(r"<script(?! src=)", answer.text)


@pytest.mark.usefixtures("ids")
def test_the_start_page_says_what_is_paused_why_until_when_and_what_needs_a_person(
    store: Store,
) -> None:
    with browsing(store) as browser:
        words = text(browser.get(""))
    assert "instantly and perplexity are down" in words or "perplexity and instantly" in words
    assert "perplexity refuses this client" in words
    assert "401: the API key has been revoked" in words
    assert "The hold on campaign account_digest is about to end" in words
    assert "2 records in doubt in outreach/leads-2.csv" in words
    assert "11 records failed in 1 campaign run" in words
    assert re.search(r"next probe in \d+ s", words)
    assert "outreach , 2 runs" in words


def test_a_gate_that_is_stale_is_said_on_every_page(store: Store) -> None:
    page_store.deploy(store)
    with browsing(store) as browser:
        for path in ("", "/campaigns", "/history"):
            assert "The gate is stale" not in browser.get(path)
        with store.begin() as conn:
            conn.execute(page_store.t.heartbeats.delete())
        for path in ("", "/campaigns", "/history"):
            assert "The gate is stale" in browser.get(path)
        assert "Nothing is paused, but the gate is stale" in browser.get("")


def test_pages_of_an_empty_store_teach(store: Store) -> None:
    with browsing(store) as browser:
        assert "No service is known yet" in browser.get("")
        assert "No campaign is known yet" in browser.get("/campaigns")
        assert "No record has failed" in browser.get("/records")
        assert "Nothing was open" in browser.get("/timeline")
        assert "No service was down in the last 30 days" in browser.get("/outages")
        assert "Nothing has changed yet" in browser.get("/history")


def test_an_unreachable_store_is_said_on_a_page(store: Store, monkeypatch) -> None:
    page_store.deploy(store)
    with browsing(store) as browser:
        browser.get("")
        monkeypatch.setattr(store, "read", _unreachable)
        page = browser.get("", expect=503)
    assert "The store is unavailable" in page
    assert "Meanwhile, workers use their own breakers" in page


def test_an_error_of_ours_is_answered_with_a_page(store: Store, monkeypatch) -> None:
    with browsing(store) as browser:
        monkeypatch.setattr(service_stats, "last_hour", lambda *_: 1 / 0)
        words = text(browser.get("", expect=500))
    assert "the log of the server has the reason" in words.lower()
    assert "Start page" in words


@contextmanager
def _unreachable() -> Iterator[Any]:
    from sqlalchemy.exc import OperationalError

    raise OperationalError("SELECT", {}, Exception("no route to host"))
    yield


def test_a_hold_is_shown_before_it_is_placed_and_recorded_after(store: Store) -> None:
    page_store.deploy(store)
    with browsing(store, Role.OPERATOR, "ana") as browser:
        targets = ["service openai", "campaign list_hygiene"]
        query = "&".join(f"target={t.replace(' ', '+')}" for t in targets)
        preview = text(browser.get(f"/change/hold?{query}&next=/tidegate/campaigns"))
        assert "Campaign outreach pauses" in preview
        assert "Campaign list_hygiene pauses" in preview
        assert live(store, OPENAI) == []
        answer = browser.send(
            "hold",
            target=targets,
            reason="new model",
            for_seconds="3600",
            next="/tidegate/campaigns",
        )
        assert answer.headers["location"] == "/tidegate/campaigns?did=hold"
        assert "Held." in browser.get("/campaigns?did=hold")
        assert live(store, OPENAI) == [("ana", "new model")]
        with store.read() as conn:
            [placed, *_] = holds.live(conn, store.now(conn), OPENAI)
            events = history.read(conn, name="openai", limit=10)
        assert placed.expires_at is not None
        assert placed.expires_at - placed.placed_at == timedelta(hours=1)
        assert [(e.to_status, e.actor) for e in events] == [("placed", "ana")]

        preview = text(browser.get("/change/release?target=service+openai"))
        assert "The hold of ana (new model) ends" in preview
        assert "Campaign outreach resumes" in preview
        browser.send("release", target=targets)
    assert live(store, OPENAI) == []


def test_a_form_with_a_mistake_comes_back_with_what_was_entered(store: Store) -> None:
    page_store.deploy(store)
    with browsing(store) as browser:
        answer = browser.send("hold", 422, target="service openai", reason="", for_seconds="3600")
        assert "The reason is empty" in answer.text
        assert '<option value="3600" selected>' in answer.text
        assert 'value="service openai"' in answer.text
        browser.send("hold", 422, reason="nothing is selected")
        browser.send("hold", 422, target="planet mars", reason="x")
    assert live(store, OPENAI) == []


def test_a_short_hold_needs_a_person_only_towards_its_end(store: Store) -> None:
    page_store.deploy(store)
    with browsing(store) as browser:
        browser.send("hold", target="service openai", reason="new model", for_seconds="900")
        assert "is about to end" not in text(browser.get(""))
        with page_scene.earlier(store, -8):
            assert "The hold on service openai is about to end" in text(browser.get(""))


def test_a_run_of_many_ops_shows_those_that_still_work(store: Store) -> None:
    page_store.deploy(store)
    run = page_store.run(store, "outreach", "leads-1.csv", RunStatus.PAUSED, done=4, total=9)
    with store.begin() as conn:
        for op in ("fetch", "verify"):
            row = {"campaign_run": run, "op": op, "done": 5, "failed": 0, "total": 5}
            now = {"updated_at": store.now(conn)}
            [known] = conn.execute(t.progress.select()).mappings().all()[:1]
            conn.execute(t.progress.insert().values({**known, **row, **now}))
    with browsing(store) as browser:
        listed = text(browser.get("/campaigns/outreach"))
        assert "send 4 of 9 2 ops done" in listed
        assert "fetch 5 of 5" not in listed.split("Runs")[-1]
        assert "2 ops done" in text(browser.get("/campaigns"))


def test_the_hold_of_a_breaker_is_released_by_force_alone_and_by_administrators(
    store: Store,
) -> None:
    page_store.deploy(store)
    page_store.open_breaker(store, "instantly")
    with browsing(store, Role.OPERATOR) as browser:
        page = browser.get("/change/release?target=service+instantly")
        assert "held by its breaker alone" in text(page)
        assert "<form" not in page.split("<main", 1)[1]
        browser.send("release", 403, target="service instantly", force="1")
        browser.send("release", 409, target="service instantly")
    with browsing(store, Role.ADMIN) as browser:
        assert 'name="force"' in browser.get("/change/release?target=service+instantly")
        browser.send("release", target="service instantly", force="1")
    with store.read() as conn:
        assert breakers.read_one(conn, "instantly").state is BreakerState.CLOSED


def test_a_repaired_service_is_tried(store: Store) -> None:
    page_store.deploy(store)
    page_store.open_breaker(store, "perplexity", "401", cause=VerdictKind.DENIED, for_s=None)
    with browsing(store) as browser:
        assert "/tidegate/change/repaired?service=perplexity" in browser.get("")
        assert "one trial call checks the repair" in text(
            browser.get("/change/repaired?service=perplexity")
        )
        browser.send("repaired", service="perplexity", reason="new key")
        assert "does not refuse this client" in browser.get("/change/repaired?service=perplexity")
    with store.read() as conn:
        assert breakers.read_one(conn, "perplexity").state is BreakerState.HALF_OPEN
        [event] = history.read(conn, name="perplexity", kinds=["service"], limit=1)
    assert event.reason == "new key"


@pytest.mark.usefixtures("ids")
def test_the_latest_calls_are_known_after_the_window_of_the_breaker_began_anew(
    store: Store,
) -> None:
    with browsing(store) as browser:
        words = text(browser.get("/services/openai"))
    assert re.search(r"Last success [0-2] min ago Last failure 4\d min ago", words)


def test_a_breaker_is_kept_closed_and_let_trip(store: Store) -> None:
    page_store.deploy(store)
    with browsing(store, Role.ADMIN, "ana") as browser:
        browser.send("keep-closed", service="openai", reason="429s are fine", for_seconds="900")
        page = browser.get("/services/openai")
        assert "kept closed by ana" in text(page).lower()
        assert "/tidegate/change/let-trip" in page
        browser.send("let-trip", service="openai")
    with store.read() as conn:
        assert breakers.read_one(conn, "openai").kept_closed_by is None


def test_a_viewer_sees_everything_and_can_do_nothing(store: Store, ids: dict[str, int]) -> None:
    with browsing(store, Role.VIEWER) as browser:
        for path in PAGES:
            page = browser.get(path.format(**ids)).split("<main", 1)[1]
            assert "/change/" not in page, path
            assert 'type="checkbox"' not in page
            assert 'method="post"' not in page
        for action, fields in (
            ("hold", {"target": "service openai", "reason": "x"}),
            ("release", {"target": "campaign account_digest"}),
            ("repaired", {"service": "perplexity", "reason": "x"}),
            ("keep-closed", {"service": "openai", "reason": "x"}),
            ("skip", {"run": str(ids["failed"]), "reason": "x"}),
            ("cancel", {"run": str(ids["paused"])}),
        ):
            answer = browser.send(action, 403, **fields)
            assert "operator" in answer.text
            browser.get(f"/change/{action}?target=service+openai", expect=403)
    assert live(store, OPENAI) == []
    assert live(store, Target(TargetKind.CAMPAIGN, "account_digest")) != []


def test_an_operator_is_offered_only_campaigns_that_it_controls(store: Store) -> None:
    page_store.deploy(store)
    with browsing(store, Role.OPERATOR, "ana") as ana, browsing(store, Role.OPERATOR, "bo") as bo:
        hold = "/tidegate/change/hold?target=campaign+account_digest"
        assert hold not in ana.get("/campaigns/account_digest")
        assert hold in bo.get("/campaigns/account_digest")
        ana.get("/change/hold?target=campaign+account_digest", expect=403)
        ana.send("hold", 403, target="campaign account_digest", reason="x")
        bo.send("hold", target="campaign account_digest", reason="x")


def test_a_read_only_server_offers_nothing(store: Store) -> None:
    page_store.deploy(store)
    with browsing(store, read_only=True) as browser:
        assert "/change/" not in browser.get("").split("<main", 1)[1]
        answer = browser.send("hold", 403, target="service openai", reason="x")
        assert "read-only" in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
    ],
)
def test_a_form_on_another_site_changes_nothing(store: Store, headers: dict[str, str]) -> None:
    page_store.deploy(store)
    with browsing(store) as browser:
        answer = browser.client.post(
            "/tidegate/change/hold",
            data={"target": "service openai", "reason": "x"},
            headers=headers,
        )
        assert answer.status_code == 403
    assert live(store, OPENAI) == []


def test_without_a_session_a_browser_is_sent_to_the_login(store: Store) -> None:
    page_store.deploy(store)
    with browsing(store, Role.VIEWER):
        pass
    with browsing(store) as browser:
        answer = browser.client.get("/tidegate/campaigns?q=out")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/login?next=%2Ftidegate%2Fcampaigns%3Fq%3Dout"
        browser.send("hold", 401, target="service openai", reason="x")


def test_after_a_change_a_browser_goes_nowhere_else(store: Store) -> None:
    page_store.deploy(store)
    with browsing(store) as browser:
        for wanted in ("https://elsewhere.example/", "//elsewhere.example", "javascript:alert(1)"):
            answer = browser.send("hold", target="service openai", reason="x", next=wanted)
            assert answer.headers["location"] == "/tidegate?did=hold"
            assert wanted not in browser.get(f"/change/hold?target=service+openai&next={wanted}")


def test_what_people_and_services_say_is_text(store: Store) -> None:
    name = "<b>bold"
    spec = CampaignSpec(name, "pipelines", "none", ops={"send": "instantly"})
    page_store.deploy(store, [spec])
    page_store.open_breaker(store, "instantly", SCRIPT, answer=SCRIPT)
    with store.read() as conn:
        [outage] = [e.id for e in history.read(conn, name="instantly", kinds=["service"], limit=1)]
    failed = page_store.run(
        store, name, SCRIPT, RunStatus.FAILED, failed=[(SCRIPT, SCRIPT)], reason=SCRIPT
    )
    with store.begin() as conn:
        now = store.now(conn)
        holds.place(conn, now, EVERYTHING, source=HoldSource.OPERATOR, reason=SCRIPT, actor=SCRIPT)
    with browsing(store) as browser:
        for path in (*PAGES, "/change/retry?run={failed}", "/change/hold?target=everything"):
            if "outreach" in path:
                path = "/campaigns/%3Cb%3Ebold"
            page = browser.get(path.format(failed=failed, outage=outage))
            assert "<script>alert" not in page, path
            assert "<b>bold" not in page, path
        searched = browser.get("/campaigns?q=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
        assert "<script>alert" not in searched


def test_fragments_are_parts_of_the_same_page(store: Store, ids: dict[str, int]) -> None:
    with browsing(store) as browser:
        part = browser.get("", headers={FRAGMENTS: "services,needs,nothing"})
        assert re.findall(r'data-fragment="(\w+)"', part) == ["services", "needs"]
        assert "<html" not in part
        for path in PAGES:
            whole = browser.get(path.format(**ids))
            for name in re.findall(r'data-fragment="(\w+)"', whole):
                part = browser.get(path.format(**ids), headers={FRAGMENTS: name})
                assert f'data-fragment="{name}"' in part, (path, name)
                assert part.count("data-fragment") == 1, (path, name)


def test_campaigns_are_searched_and_paged_by_the_server(store: Store) -> None:
    specs = [
        CampaignSpec(f"campaign{n:02}", "pipelines", "none", ops={"send": "instantly"})
        for n in range(60)
    ]
    page_store.deploy(store, [*specs, *page_store.CAMPAIGNS])
    page_store.open_breaker(store, "perplexity")

    def names(page: str) -> list[str]:
        return re.findall(r'<tr id="campaign-([^"]+)"', page)

    with browsing(store) as browser:
        seen, path = [], "/campaigns?q=CAMPAIGN"
        while path:
            page = browser.get(path)
            seen += names(page)
            more = re.search(r'href="/tidegate([^"]+)" rel="next"', page)
            path = unescape(more[1]) if more else ""
        assert seen == [spec.name for spec in specs]
        assert names(browser.get("/campaigns?status=paused")) == ["outreach"]
        assert names(browser.get("/campaigns?service=openai")) == ["account_digest", "outreach"]
        assert "No campaign matches" in browser.get("/campaigns?q=nowhere")
        assert "is not one of" in browser.get("/campaigns?status=flying", expect=422)


def test_runs_are_searched_and_paged_by_the_server(store: Store) -> None:
    page_store.deploy(store)
    with store.begin() as conn:
        now = store.now(conn)
        for n in range(40):
            runs.ensure(conn, now, "outreach", f"Leads-{n:02}")

    def shown(page: str) -> list[str]:
        return re.findall(r'aria-label="Select (Leads-\d+)"', page)

    with browsing(store) as browser:
        first = browser.get("/campaigns/outreach")
        assert shown(first) == [f"Leads-{n:02}" for n in range(39, 14, -1)]
        more = re.search(r'href="/tidegate([^"]+)" rel="next"', first)
        assert more is not None
        assert shown(browser.get(unescape(more[1]))) == [f"Leads-{n:02}" for n in range(14, -1, -1)]
        assert shown(browser.get("/campaigns/outreach?q=leads-07")) == ["Leads-07"]
        browser.get("/campaigns/nowhere", expect=404)


def test_records_are_grouped_by_what_the_service_said_and_skipped_as_a_group(
    store: Store, ids: dict[str, int]
) -> None:
    run_id = ids["failed"]
    with browsing(store, Role.OPERATOR, "ana") as browser:
        page = browser.get("/records")
        words = text(page)
        assert "invalid e-mail p0@example.org" in words
        assert "p1@example.org" not in words  # grouped with the first
        skip = next(
            unescape(link)
            for link in re.findall(r'href="/tidegate(/change/skip[^"]+)"', page)
            if "422" in link
        )
        preview = browser.get(skip)
        assert "Skip 9 records" in text(preview)
        fields: dict[str, list[str]] = {}
        for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', preview):
            fields.setdefault(name, []).append(unescape(value))
        browser.send("skip", reason="bad addresses", **cast("Any", fields))
    with store.read() as conn:
        run = runs.get(conn, run_id)
        assert run is not None
        left = read_records(conn, store.now(conn), run, Selection((RecordState.FAILED,)), limit=100)
        [event] = history.read(conn, kinds=["records"], limit=5)
    assert [each.key for each in left] == ["lead-77", "lead-78"]
    assert (event.actor, event.reason) == ("ana", "bad addresses")


def test_one_record_is_looked_at_and_listed_by_state(store: Store, ids: dict[str, int]) -> None:
    with browsing(store) as browser:
        one = text(browser.get(f"/runs/{ids['failed']}/records?key=lead-77"))
        assert "no such lead: it was merged" in one
        assert "read timed out" not in one
        doubt = text(browser.get(f"/runs/{ids['doubt']}/records?state=in_doubt"))
        assert "lead-301" in doubt
        browser.get("/runs/999/records", expect=404)


@pytest.mark.usefixtures("ids")
def test_the_timeline_shows_outages_holds_and_runs(store: Store) -> None:
    with browsing(store) as browser:
        for span in ("hour", "day", "week"):
            page = browser.get(f"/timeline?span={span}")
            assert re.search(r'aria-label="instantly open since [^"]*503 x5', page)
            assert re.search(r'aria-label="millionverifier open from [^"]* for 8 min', page)
            assert re.search(r'aria-label="outreach paused for [^"]*instantly', page)
            assert "outreach/leads-1.csv, attempt 1: failed" in page
            assert re.search(r'"apollo throttled since [^"]*"><rect class="warn"', page)
            assert re.search(r'"perplexity denied since [^"]*"><rect class="bad"', page)
        before = browser.get("/timeline?span=hour&end=2020-01-01T00:00:00%2B00:00")
        assert "Nothing was open" in before
        browser.get("/timeline?span=year", expect=422)
        browser.get("/timeline?end=yesterday", expect=422)


def test_the_report_of_an_outage_says_what_happened_from_the_trip_to_the_last_run(
    store: Store, ids: dict[str, int]
) -> None:
    with browsing(store, Role.VIEWER) as browser:
        page = browser.get(f"/outages/{ids['outage']}")
        words = text(page)
    assert "lasted 12 min. The last paused run resumed 13 min after the trip" in words
    assert "HTTP 503: the model is overloaded" in words
    assert "Failed trial calls 1" in words
    assert re.search(r"Calls before the trip 40, 5 failed Calls spared about 1,4\d\d", words)
    assert "Records delayed 60 Records done since 60 Records failed 0 Records lost 0" in words
    assert "Records repeated 0" in words
    assert re.search(r"Hold on service openai: placed wait for their status page ana", words)
    assert re.search(r"account_digest/2026-11-27 \d\d \w{3} [\d:]+ 12 min 40 of 100", words)
    assert re.search(r"Restored pool openai( \d\d \w{3} [\d:]+){2}", words)
    assert re.search(r"account_digest_schedule account_digest 1 1 0 0 0", words)
    assert re.search(r'aria-label="openai open from [\d:]+, 5 min \(503 x5\)"', page)
    assert re.search(r'aria-label="account_digest paused from [\d:]+, 12 min"', page)
    assert "data-every" not in page.split('data-fragment="report"')[1]  # nothing changes any more


def test_an_outage_that_lasts_has_a_report_that_goes_on(store: Store) -> None:
    page_store.deploy(store)
    page_store.open_breaker(store, "instantly")
    with browsing(store) as browser:
        [link] = set(re.findall(r'href="/tidegate(/outages/\d+)"', browser.get("/outages")))
        page = browser.get(link)
    assert "so far" in text(page)
    assert "Nobody" in text(page)
    assert re.search(r'data-fragment="report" data-on="service[^"]*" data-every', page)


def test_a_report_is_linked_from_where_its_outage_is_seen_and_leads_to_its_markdown(
    store: Store, ids: dict[str, int]
) -> None:
    def reports(page: str) -> list[str]:
        return re.findall(r'href="/tidegate(/outages/\d+)"', page)

    with browsing(store) as browser:
        [of_service] = reports(browser.get("/services/openai"))
        [of_list] = reports(browser.get("/outages?service=openai"))
        on_timeline = reports(browser.get("/timeline?span=day"))
        assert of_service == of_list
        assert on_timeline.count(of_service) == 1
        assert len(set(on_timeline)) == len(on_timeline) == 5
        for link in on_timeline:
            browser.get(link)
        page = browser.get(of_service)
        markdown = browser.client.get(f"/tidegate{of_service}.md")
        assert f'href="/tidegate{of_service}.md"' in page
        assert markdown.headers["content-type"].startswith("text/markdown")
        assert markdown.text.startswith("# Outage of openai")
        # The event that ended it, which the alert has, leads to the same report.
        by_its_end = browser.get(f"/outages/{ids['outage']}.md")
        assert by_its_end.splitlines()[:7] == markdown.text.splitlines()[:7]
        for path in ("/outages/999999", "/outages/999999.md"):
            assert "there is no outage" in browser.get(path, expect=404).lower()


def test_an_outage_that_is_open_throughout_the_span_leads_to_its_report(store: Store) -> None:
    page_store.deploy(store)
    with page_scene.earlier(store, 180):
        page_store.open_breaker(store, "instantly", "503 x5")
    with page_scene.earlier(store, 170):
        page_store.open_breaker(store, "openai", "timeout x5")
        page_store.close_breaker(store, "openai")
    with browsing(store) as browser:
        page = browser.get("/timeline?span=hour")
        [link] = re.findall(r'href="/tidegate(/outages/\d+)"', page)
        assert "Outage of instantly" in text(browser.get(link))
        assert re.search(r'aria-label="instantly open since before, [^"]*503 x5', page)


def test_outages_are_counted_by_service_and_month(store: Store) -> None:
    page_store.deploy(store)
    present = datetime.now(UTC)
    for days_ago in (2, 40):
        with page_scene.earlier(store, days_ago * 24 * 60, present):
            page_store.open_breaker(store, "openai", f"503, {days_ago} days ago")
        with page_scene.earlier(store, days_ago * 24 * 60 - 6, present):
            page_store.close_breaker(store, "openai")
    then = (present - timedelta(days=40)).replace(hour=0, minute=0, second=0, microsecond=0)
    month = f"{then:%Y-%m}"
    with store.begin() as conn:
        counts = {"service": "openai", "day": then, "ok": 90, "failed": 10}
        conn.execute(t.daily_verdicts.insert().values(counts))
    with browsing(store) as browser:
        recent = text(browser.get("/outages"))
        assert "openai 1 6 6 min 6 min 1 failure" in recent
        assert "5 other services had no outage" in recent
        assert "503, 2 days ago" in recent
        assert "503, 40 days ago" not in recent
        page = browser.get(f"/outages?service=openai&month={month}")
        assert "503, 40 days ago" in text(page)
        assert f"<option selected>{month}</option>" in page
        by_month = page.split('data-fragment="months"')[1]
        numbers = "1 6 6 min 6 min 1 failure 100 calls, 10 % failed"
        assert f"{month} {numbers}" in text(f"<main{by_month}")
        nothing = browser.get("/outages?service=instantly")
        assert "No outage of instantly in the last 30 days" in nothing
        assert "is not a month" in browser.get("/outages?month=2026-13", expect=422)
        browser.get("/outages?month=2999-01", expect=422)


def test_many_outages_are_paged_by_the_server(store: Store) -> None:
    page_store.deploy(store)
    present = datetime.now(UTC)
    for minutes in range(60, 0, -2):
        with page_scene.earlier(store, minutes, present):
            page_store.open_breaker(store, "openai")
        with page_scene.earlier(store, minutes - 1, present):
            page_store.close_breaker(store, "openai")
    listed: list[int] = []
    with browsing(store) as browser:
        path = "/outages?service=openai"
        while path:
            page = browser.get(path)
            listed += map(int, re.findall(r'<tr id="outage-(\d+)"', page))
            more = re.search(r'href="/tidegate([^"]+)" rel="next"', page)
            path = unescape(more[1]) if more else ""
    assert len(listed) == 30
    assert listed == sorted(set(listed), reverse=True)


@pytest.mark.usefixtures("ids")
def test_the_history_has_filters(store: Store) -> None:
    with browsing(store, Role.OPERATOR, "ana") as browser:
        browser.send("hold", target="service openai", reason="new model")
        page = text(browser.get("/history?name=openai&actor=ana&kind=hold&since=3600"))
        assert "new model" in page
        assert "127.0.0.1" in page
        assert "perplexity" not in page
        assert "No change matches" in browser.get("/history?actor=nobody")
        browser.get("/history?since=7", expect=422)
        browser.get("/history?kind=gossip", expect=422)


def test_a_service_page_says_what_a_hold_would_do(store: Store) -> None:
    page_store.deploy(store)
    with browsing(store) as browser:
        words = text(browser.get("/services/instantly"))
        assert "Campaign outreach pauses" in words
        assert "stopped: new_lead_files" in words
        assert "apollo/people_match" in text(browser.get("/services/apollo"))
        assert "apollo" in text(browser.get("/services/apollo/people_match"))
        browser.get("/services/nowhere", expect=404)


def test_a_service_page_says_what_is_left_of_limits_and_budget_and_when_it_pauses(
    store: Store,
) -> None:
    page_store.deploy(store)
    page_scene.limited(store)
    with browsing(store) as browser:
        words = text(browser.get("/services/openai"))
        assert "Limit 2,400 of 10,000 calls per day" in words
        assert "12 of 25 usd spent today; resets at" in words
        assert "outreach 11 usd account_digest 1 usd" in words
        soon = r"pauses in (4 h 59 min|5 h)"
        window = rf"millionverifier {soon}, until \d{{4}}-[-\d: ]+ UTC \(their weekly upgrade\)"
        assert re.search(window, text(browser.get("/services/millionverifier")))
        assert re.search(soon, text(browser.get("")))


@both_databases
def test_the_verdicts_of_the_last_hour_are_the_same_everywhere(store: Store) -> None:
    page_store.deploy(store)
    page_store.calls(store, "instantly", minutes_ago=1, ok=75, slow=3, failed=5, rejected=18)
    page_store.calls(store, "instantly", minutes_ago=50, ok=100, throttled=1, denied=1)
    page_store.calls(store, "instantly", minutes_ago=61, ok=1000, failed=1000)
    verdicts = {
        "success": 172,
        "slow": 3,
        "failure": 5,
        "throttled": 1,
        "denied": 1,
        "pending": 0,
        "rejected": 18,
        "ignored": 0,
    }
    with browsing(store) as browser:
        start = text(browser.get(""))
        assert (
            "200 calls, 2.5 % failed , 0.5 % denied , 0.5 % throttled , 1.5 % slow , 9.0 % rejected"
        ) in start
        page = text(browser.get("/services/instantly"))
        for kind, count in verdicts.items():
            assert re.search(rf"{kind} [^0-9]*{count} ", page), kind
        answer = browser.client.get("/api/v1/services/instantly").json()
    assert answer["numbers"]["verdicts"] == verdicts


ODD = (
    "9" * 30,
    "00000000000000000001" + "9" * 20,
    "x" * 3000,
    "漢字 🌊 \u202e",
    "a\x00b",
    "../%ff" + SCRIPT,
)
ODD_PATHS = (
    "/services/{}",
    "/campaigns/{}",
    "/run/{}",
    "/run/outreach/{}",
    "/runs/{}",
    "/runs/{}/records",
    "/outages/{}",
    "/outages/{}.md",
    "/static/{}",
    "/change/{}",
    "/{}",
    "/campaigns?q={}",
    "/campaigns?status={}",
    "/campaigns?service={}",
    "/campaigns?after={}",
    "/campaigns/outreach?q={}",
    "/campaigns/outreach?status={}",
    "/campaigns/outreach?before={}",
    "/runs/1/records?state={}",
    "/runs/1/records?q={}",
    "/runs/1/records?said={}",
    "/runs/1/records?key={}",
    "/runs/1/records?after={}&op={}",
    "/records?q={}",
    "/records?before={}",
    "/timeline?span={}",
    "/timeline?end={}",
    "/outages?service={}",
    "/outages?month={}",
    "/outages?before={}",
    "/history?name={}",
    "/history?kind={}",
    "/history?actor={}",
    "/history?since={}",
    "/history?before={}",
    "/change/hold?target=service+{}",
    "/change/hold?target=service+openai&next={}",
    "/change/hold?target=service+openai&for_seconds={}",
    "/change/repaired?service={}",
    "/change/start?campaign={}",
    "/change/start?campaign=outreach&partition={}",
    "/change/cancel?run={}",
    "/change/skip?run=1&said={}",
    "/change/skip?run=1&key={}",
    "/change/skip?run=1&state={}",
    "?did={}",
)


def test_an_odd_address_is_answered_with_a_page(store: Store) -> None:
    page_store.deploy(store)
    page_store.run(store, "outreach", "leads", RunStatus.FAILED, failed=[("lead", "400")])
    wrong = []
    with browsing(store) as browser:
        for path in ODD_PATHS:
            for value in ODD:
                odd = quote(value, safe="")
                answer = browser.client.get("/tidegate" + path.format(odd, odd))
                is_page = answer.headers["content-type"].startswith("text/html")
                if answer.status_code not in (200, 404, 422) or not is_page:
                    wrong.append((path, value[:30], answer.status_code))
    assert wrong == []


def test_the_start_page_is_found_with_a_slash_at_its_end(store: Store) -> None:
    with browsing(store) as browser:
        answer = browser.client.get("/tidegate/")
        assert answer.is_redirect
        assert answer.headers["location"] == "/tidegate"


def test_static_files_are_cached_by_their_content(store: Store) -> None:
    with browsing(store) as browser:
        page = browser.get("")
        for name in ("tidegate.css", "tidegate.js", "icon.svg"):
            path = re.search(rf'"(/tidegate/static/{name}\?v=\w+)"', page)
            assert path is not None
            answer = browser.client.get(path[1])
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
        browser.get("/static/..%2f..%2fsecret", expect=404)
