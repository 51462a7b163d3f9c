"""What the pages load besides themselves: a style sheet, a script and a picture."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from dagster_tidegate.settings import PAGES
from dagster_tidegate.web.path_router import STATIC


@cache
def static(name: str) -> tuple[bytes, str]:
    """Return a static file, and a version that changes with it."""
    content = files("dagster_tidegate.web.pages").joinpath("static", name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:12]


def addresses(prefix: str) -> Mapping[str, str]:
    """Return the address of each static file, which changes with its content."""
    return {name: f"{prefix}{PAGES}/static/{name}?v={static(name)[1]}" for name in STATIC}
