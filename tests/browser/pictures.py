"""Makes the pictures of docs/page.md from the running product.

python -m tests.browser.pictures
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from dagster_tidegate.store.database import Store
from tests.browser.conftest import BROWSERS, QUIET
from tests.integration.api import app_of
from tests.integration.served import served
from tests.support import page_scene
from tests.support.sqlite_stores import new_sqlite_url

IMAGES = Path(__file__).parents[2] / "docs" / "images"
PICTURES = {"page": "", "page-timeline": "/timeline", "page-outage": "/outages/{outage}"}


def main() -> None:
    """Write the pictures."""
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = Store(new_sqlite_url(Path(folder) / "tidegate.db"))
        ids = page_scene.trouble(store)
        running = playwright.chromium.launch(executable_path=browser, args=QUIET)
        with served(app_of(store), timeout_graceful_shutdown=1) as url:
            for name, path in PICTURES.items():
                page = running.new_page(viewport={"width": 1200, "height": 800})
                page.goto(f"{url}/tidegate{path.format(**ids)}")
                page.locator("#live").get_by_text("Live").wait_for()
                page.screenshot(path=IMAGES / f"{name}.png", full_page=True)
                page.close()
        running.close()
        store.dispose()


if __name__ == "__main__":
    main()
