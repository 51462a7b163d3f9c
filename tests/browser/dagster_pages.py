"""What Dagster's own pages show of an outage and after it: asserted, and kept as pictures."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from playwright.sync_api import Page, expect

LOCATION = "/locations/tidegate"
Views = Mapping[str, tuple[str, Sequence[str | re.Pattern[str]]]]
REASON = re.compile(r"instantly is (half )?open: 503 x[5-9]")
DURING: Views = {
    "run-paused": (
        "/runs/{paused}",
        ("Paused at", re.compile(r"instantly is open \(503 x[5-9]\)"), "/tidegate/run/outreach"),
    ),
    "runs-waiting": (
        "/runs?q%5B0%5D=tag%3Atidegate%2Fqueued_for%3Dinstantly",
        ("tidegate/queued_for: inst",),
    ),
    "service": (
        "/assets/tidegate/instantly?view=events",
        (REASON, "paused_runs"),
    ),
    "check-failed": (
        "/assets/tidegate/instantly?view=checks&checkDetail=reachable",
        ("Fails while instantly is down", REASON),
    ),
    "launchpad": (f"{LOCATION}/jobs/tidegate_hold/playground", ("Launch Run",)),
    "sensor": (f"{LOCATION}/sensors/tidegate_pause", ("Stops what depends on a held service",)),
    "schedule": (f"{LOCATION}/schedules/account_digest_schedule", ("needs openai and perplexity",)),
}
AFTER: Views = {
    "service-recovered": (
        "/assets/tidegate/instantly?view=events",
        (re.compile("instantly (has recovered|is closed)"),),
    ),
    "check-passed": (
        "/assets/tidegate/instantly?view=checks&checkDetail=reachable",
        ("Fails while instantly is down", "instantly is closed"),
    ),
}
"""Views of Dagster's pages: the path of each, and what a stranger reads there."""


def look(
    page: Page,
    url: str,
    views: Views,
    folder: Path,
    **ids: str,
) -> None:
    """Open each view, wait for what it says, and keep a picture of it."""
    for name, (path, texts) in views.items():
        page.goto(url + path.format(**ids))
        for text in texts:
            expect(page.get_by_text(text).first).to_be_visible()
        page.wait_for_timeout(500)  # what is drawn after the text
        page.screenshot(path=folder / f"dagster-{name}.png")
