"""Makes the pictures of the docs from the running product.

python -m tests.browser.pictures [--dagster]

Without `--dagster` those of Tidegate's pages. With it those of Dagster's pages, during an outage of
a deployment that it starts; that takes minutes.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, FloatRect

from dagster_tidegate.store.database import Store
from tests.browser.dagster_pages import DURING, look
from tests.browser.test_outage import Deployment, begin_outage
from tests.integration.api import app_of
from tests.integration.served import served
from tests.support import page_scene
from tests.support.browser import chromium
from tests.support.sqlite_stores import new_sqlite_url

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PICTURES = {
    "page": ("", 940),
    "page-timeline": ("/timeline", 800),
    "page-outage": ("/outages/{outage}", 1080),
}
"""The path and the height of each picture: the top of its page says enough."""
OF_DAGSTER = ("check-failed", "run-paused")
WIDTH = 1200


def of_tidegate(browser: Browser) -> None:
    """Write the pictures of Tidegate's pages."""
    with TemporaryDirectory() as folder:
        store = Store(new_sqlite_url(Path(folder) / "tidegate.db"))
        ids = page_scene.trouble(store)
        with served(app_of(store), timeout_graceful_shutdown=1) as url:
            for name, (path, height) in PICTURES.items():
                page = browser.new_page(viewport={"width": WIDTH, "height": height})
                page.goto(f"{url}/tidegate{path.format(**ids)}")
                page.locator("#live").get_by_text("Live").wait_for()
                clip = FloatRect(x=0, y=0, width=WIDTH, height=height)
                page.screenshot(path=IMAGES / f"{name}.png", clip=clip)
                page.close()
        store.dispose()


def of_dagster(browser: Browser) -> None:
    """Write the pictures of Dagster's pages during an outage."""
    with TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder))
        try:
            page = browser.new_page(viewport={"width": WIDTH, "height": 760})
            page.set_default_timeout(120_000)
            ids = begin_outage(deployment)
            look(page, deployment.url, {name: DURING[name] for name in OF_DAGSTER}, IMAGES, **ids)
        finally:
            deployment.stop()


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dagster", action="store_true")
    make = of_dagster if parser.parse_args().dagster else of_tidegate
    with chromium() as browser:
        make(browser)


if __name__ == "__main__":
    main()
