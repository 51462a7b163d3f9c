"""What Tidegate's own pages cost, on SQLite.

    python -m tests.benchmarks.page [--json FILE]

A real server (`tidegate serve --api-only`) on a store with 1,000 campaigns, 50 services that are
called every minute and 10,000 campaign runs:

- now_ttfb_ratio: the median time to the first byte of the start page / of GET /api/v1/campaigns.
- campaigns_ttfb_ratio: the same of the page of campaigns / of that page with 10 campaigns.
- update_delay_p95_s: from a change in the store to the changed page in Chromium, in seconds.
- page_weight_kb: everything that the start page loads, uncompressed, in 1000 bytes.
"""

import argparse
import json
import statistics
import time
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from playwright.sync_api import Page, ViewportSize

from dagster_tidegate.store import schema
from dagster_tidegate.store import tables as t
from dagster_tidegate.store.campaigns import CampaignSpec
from dagster_tidegate.store.database import Store
from tests.benchmarks.api import SERVICES, fill, server
from tests.support.browser import chromium
from tests.support.page_store import close_breaker, deploy, open_breaker

ROUNDS = 40
WARM_UP = 5
CHANGES = 30
FEW = 10
MINUTES = 60
TIMEOUT_MS = 30_000
VIEWPORT: ViewportSize = {"width": 1440, "height": 900}


def large(url: str) -> Store:
    """Make a store with 1,000 campaigns, whose services are called every minute."""
    store = Store(url)
    schema.upgrade(store)
    fill(store)
    with store.begin() as conn:
        now = store.now(conn)
        conn.execute(
            t.outcomes.insert(),
            [
                {
                    "service": f"service{n}",
                    "bucket": now - timedelta(minutes=minute),
                    "worker": "worker",
                    "generation": 0,
                    "ok": 100,
                    "slow": 1,
                    "failed": int(n % 5 == 0 and minute % 3 == 0),
                }
                for n in range(SERVICES)
                for minute in range(MINUTES)
            ],
        )
    return store


def small(url: str) -> Store:
    """Make a store with 10 campaigns."""
    store = Store(url)
    schema.upgrade(store)
    deploy(
        store,
        [CampaignSpec(f"campaign{n}", "here", "none", ops={"op": "openai"}) for n in range(FEW)],
    )
    return store


def first_bytes_s(*urls: str) -> list[float]:
    """Return the median time to the first byte of each URL, which take turns."""
    times: list[list[float]] = [[] for _ in urls]
    with httpx.Client(timeout=60, headers={"Accept": "text/html"}) as client:
        for number in range(WARM_UP + ROUNDS):
            for url, taken in zip(urls, times, strict=True):
                began = time.perf_counter()
                with client.stream("GET", url) as answer:
                    next(answer.iter_raw())
                    if number >= WARM_UP:
                        taken.append(time.perf_counter() - began)
                assert answer.status_code == 200
    return [statistics.median(taken) for taken in times]


def update_delays_s(store: Store, address: str, page: Page) -> list[float]:
    """Return how long each of some changes takes to be seen in a browser."""
    page.goto(f"{address}/tidegate")
    page.wait_for_function("document.getElementById('live-text').textContent === 'Live'")
    delays = []
    name = f"service{SERVICES - 1}"
    for number in range(CHANGES):
        opens = number % 2 == 0
        (open_breaker if opens else close_breaker)(store, name)
        began = time.perf_counter()
        page.wait_for_function(
            "([text, is_so]) => document.querySelector('h1').textContent.includes(text) === is_so",
            arg=[f"{name} is down", opens],
            timeout=TIMEOUT_MS,
        )
        delays.append(time.perf_counter() - began)
        time.sleep(0.2 + 0.07 * (number % 10))  # not in step with the server's own polling
    return delays


def weight_kb(address: str, page: Page) -> float:
    """Return the size of all that the start page loads."""
    sizes: list[int] = []
    page.on(
        "response",
        lambda answer: (
            sizes.append(len(answer.body()))
            if "event-stream" not in answer.headers.get("content-type", "")
            else None
        ),
    )
    page.goto(f"{address}/tidegate", wait_until="load")
    page.wait_for_timeout(500)
    return sum(sizes) / 1000


def main() -> None:
    """Print the numbers; with `--json`, write them to a file too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    output = parser.parse_args().json
    with TemporaryDirectory() as folder:
        of_large = f"sqlite:///{folder}/large.db"
        of_small = f"sqlite:///{folder}/small.db"
        store, few = large(of_large), small(of_small)
        with server(of_large) as address, server(of_small) as small_address:
            now, api, campaigns, of_few = first_bytes_s(
                f"{address}/tidegate",
                f"{address}/api/v1/campaigns",
                f"{address}/tidegate/campaigns",
                f"{small_address}/tidegate/campaigns",
            )
            with chromium() as browser:
                weight = weight_kb(address, browser.new_page(viewport=VIEWPORT))
            with chromium() as browser:
                page = browser.new_page(viewport=VIEWPORT)
                delays = sorted(update_delays_s(store, address, page))
        store.dispose()
        few.dispose()
    numbers = {
        "now_ttfb_ratio": round(now / api, 3),
        "campaigns_ttfb_ratio": round(campaigns / of_few, 3),
        "update_delay_p95_s": round(delays[int(0.95 * len(delays))], 3),
        "page_weight_kb": round(weight, 1),
        "now_ttfb_ms": round(1000 * now, 1),
        "api_campaigns_ttfb_ms": round(1000 * api, 1),
        "campaigns_ttfb_ms": round(1000 * campaigns, 1),
        "campaigns_of_ten_ttfb_ms": round(1000 * of_few, 1),
        "update_delay_p50_s": round(statistics.median(delays), 3),
    }
    print(json.dumps(numbers, indent=2))
    if output is not None:
        output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
