"""Stages the pages of the site: `python -m docs.generate.site build/docs`.

The pages in docs/ are written for GitHub. Here they are copied, with what they link to outside of
docs/, and changed where the site generator reads Markdown differently.
"""

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
HOME = ROOT / "README.md"
# Beside the pages that link to each other.
MORE_PAGES = [HOME, ROOT / "CHANGELOG.md"]
SECTIONS = {"how-to": "How-to", "explanation": "Explanation", "decisions": "Decisions"}

_LINK = re.compile(r"(\]\()([^)#\s]+)")
_FENCE = re.compile(r"^( *)(```+)")
_ITEM = re.compile(r"^(- |\d+\. )")


def stage(target: Path) -> None:
    """Write the configuration of the site, and its pages, to a directory that it replaces."""
    shutil.rmtree(target, ignore_errors=True)
    waiting = [*MORE_PAGES, *DOCS.rglob("*.md")]
    staged: set[Path] = set()
    while waiting:
        source = waiting.pop()
        if source in staged:
            continue
        staged.add(source)
        path = target / "pages" / place(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            text = source.read_text()
            path.write_text(for_python_markdown(relinked(text, source)))
            waiting += linked_files(text, source)
        else:
            shutil.copy(source, path)
    pages = [place(source).as_posix() for source in staged if source.suffix == ".md"]
    (target / "mkdocs.yml").write_text(configuration(sorted(pages)))


def place(source: Path) -> Path:
    """Return the path of a file among the staged pages."""
    if source == HOME:
        return Path("index.md")
    if source.is_relative_to(DOCS):
        return source.relative_to(DOCS)
    return Path("project", source.relative_to(ROOT))


def linked_files(text: str, source: Path) -> list[Path]:
    """Return the files of this repository to which a page links."""
    targets = [_target(source, link) for _, link in _LINK.findall(text)]
    return [target for target in targets if target is not None]


def relinked(text: str, source: Path) -> str:
    """Return a page whose links to files of this repository lead to their staged copies."""

    def new(found: re.Match[str]) -> str:
        target = _target(source, found[2])
        if target is None:
            return found[0]
        return found[1] + os.path.relpath(place(target), place(source).parent)

    return _LINK.sub(new, text)


def _target(source: Path, link: str) -> Path | None:
    path = Path(os.path.normpath(source.parent / link))
    return path if "://" not in link and path.is_file() else None


def for_python_markdown(text: str) -> str:
    """Return a page as Python-Markdown reads it: lists after blank lines, and indented by 4.

    Example:
        >>> print(for_python_markdown("Do this:\\n1. Say\\n   it\\n   - twice\\n"))
        Do this:
        <BLANKLINE>
        1. Say
            it
        <BLANKLINE>
            - twice
        <BLANKLINE>
    """
    lines: list[str] = []
    fence = ""
    indent = 0  # of the content of the list item, on GitHub
    is_before_list = True  # whether a list may begin with the next line
    for line in text.split("\n"):
        if not fence and line.strip() and not line.startswith(" "):
            item = _ITEM.match(line)
            if item and not indent and not is_before_list:
                lines.append("")
            indent = len(item[0]) if item else 0
        inside = line[indent:] if indent and line.startswith(" " * indent) else None
        if inside is not None and not fence and _ITEM.match(inside) and not is_before_list:
            nested = lines and _ITEM.match(lines[-1].removeprefix("    "))
            if not nested or not lines[-1].startswith("    "):
                lines.append("")
        lines.append(line if inside is None else f"    {inside}")
        if opened := _FENCE.match(line):
            fence = "" if fence else opened[2]
        is_before_list = not line.strip()
    return "\n".join(lines)


def configuration(pages: list[str]) -> str:
    """Return the configuration of the site, with each page in its navigation."""
    text = (DOCS / "mkdocs.yml").read_text()
    head, _, navigation = text.partition("\nnav:\n")
    nav: list[dict[str, Any]] = yaml.safe_load(navigation)
    listed = re.findall(r"[\w/-]+\.md", navigation)
    sections = {name: entry for section in nav for name, entry in section.items()}
    for page in pages:
        if page not in listed and not page.startswith("project/"):
            sections[SECTIONS.get(page.partition("/")[0], "Reference")].append(page)
    nav.append({"Project": [page for page in pages if page.startswith("project/")]})
    return f"{head}\n{yaml.safe_dump({'nav': nav}, sort_keys=False)}"


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
