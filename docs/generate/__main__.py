"""Writes the generated pages of the reference: `make reference`."""

from docs.generate import python_reference, site, tables

RUNBOOKS = site.DOCS / "runbooks.md"
PAGES = {
    site.DOCS / "reference" / "python.md": python_reference.page,
    site.DOCS / "reference" / "tables.md": tables.page,
    # The wheel has the runbooks: `tidegate runbook` and a page show them.
    site.ROOT / "dagster_tidegate" / "control" / "runbooks.md": RUNBOOKS.read_text,
}

if __name__ == "__main__":
    for path, page in PAGES.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(page())
