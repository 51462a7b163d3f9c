"""The site that `make docs` builds: without warnings, dead links or anything from another host."""

import doctest
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from docs.generate import site as staging

SOURCES = {
    path.relative_to(staging.DOCS).with_suffix("")
    for path in staging.DOCS.rglob("*.md")
    if path.name != "README.md"
}

NOT_PROSE = ("code", "pre", "script", "style", "title", "nav", "h1", "h2", "h3", "h4")


@dataclass
class Page(HTMLParser):
    """What a page loads, where its links lead, and where they may lead to."""

    loads: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    prose: list[str] = field(default_factory=list)
    _apart: int = 0  # how many elements are open that are not prose

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self._apart += tag in NOT_PROSE
        if values.get("id"):
            self.anchors.add(str(values["id"]))
        if values.get("src"):
            self.loads.append(str(values["src"]))
        if href := values.get("href"):
            is_page = tag == "a" or values.get("rel") in ("next", "prev")
            (self.links if is_page else self.loads).append(href)

    def handle_endtag(self, tag: str) -> None:
        self._apart -= tag in NOT_PROSE

    def handle_data(self, data: str) -> None:
        if not self._apart:
            self.prose.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    staging.stage(folder)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", "mkdocs.yml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """The pages; that for what is not found has links from the root of a host."""
    read = {}
    for path in site.rglob("*.html"):
        if path.name != "404.html":
            read[path] = Page()
            read[path].feed(path.read_text())
    return read


def test_every_page_is_built(site: Path, pages: dict[Path, Page]) -> None:
    assert {site / path / "index.html" for path in SOURCES} | {site / "index.html"} <= set(pages)


def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in page.links:
            if urlparse(link).scheme or link.startswith("#__"):
                continue
            address, anchor = urldefrag(link)
            target = (path.parent / unquote(address)).resolve() if address else path
            if target.is_dir():
                target /= "index.html"
            assert target.is_file(), f"{path}: {link}"
            if anchor and target in pages:
                assert unquote(anchor) in pages[target].anchors, f"{path}: {link}"


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.loads:
            assert not urlparse(address).netloc, f"{path} loads {address}"
            assert (path.parent / urlparse(address).path).is_file(), f"{path} loads {address}"
    for sheet in site.rglob("*.css"):
        assert "url(http" not in sheet.read_text()
        assert "@import" not in sheet.read_text()


def test_no_markdown_is_left_in_the_prose(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        prose = "".join(page.prose)
        for mark in ("```", "\n- ", "\n1. ", "](", "| --"):
            assert mark not in prose, f"{path}: {prose[max(0, prose.find(mark) - 200) :][:400]}"


def test_the_examples_in_docstrings_work() -> None:
    assert doctest.testmod(staging) == (0, 1)
