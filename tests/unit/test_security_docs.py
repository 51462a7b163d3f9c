"""docs/security.md says what the code does."""

import re
from pathlib import Path

import pytest

from dagster_tidegate.settings import ServeSettings, variable, variables
from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.access import authenticator, graphql
from dagster_tidegate.web.middleware import body, dagster, headers, limits
from dagster_tidegate.web.path_router import PUBLIC

DOCS = (Path(__file__).parents[2] / "docs" / "security.md").read_text()


def row(what: str) -> str:
    found = re.search(rf"^\| {re.escape(what)}[^|]*\|(.*)\|$", DOCS, re.MULTILINE)
    assert found, f"docs/security.md has no row '{what}'"
    return found[1].replace(",", "")


@pytest.mark.parametrize(
    ("what", "field"),
    [
        ("requests of a token", "requests_per_token"),
        ("requests of an address", "requests_per_address"),
        ("different wrong tokens", "refusals_per_address"),
        ("body of a request", "request_bytes"),
    ],
)
def test_limits_that_are_settings(what: str, field: str) -> None:
    assert f" {ServeSettings.model_fields[field].default} " in row(what)
    assert f"`{variable(ServeSettings, field)}`" in row(what)


@pytest.mark.parametrize(
    ("what", "most"),
    [
        ("time until a body has arrived", f"{body.BODY_TIMEOUT_S:g} s"),
        ("URL", limits.MAX_URL),
        ("headers", limits.MAX_HEADERS),
        ("GraphQL document", graphql.MAX_TOKENS),
    ],
)
def test_limits_that_are_not(what: str, most: object) -> None:
    assert f" {most} " in row(what)


def test_what_is_promised_of_times() -> None:
    assert f"caches for {authenticator.REFRESH_S:g} seconds whether a token is valid" in DOCS
    assert f"**within {authenticator.MAX_AGE_S:g} seconds**" in DOCS
    longest = authenticator.MAX_AGE_S + authenticator.REFRESH_S
    assert f"opened with it end within {longest:g} seconds." in " ".join(DOCS.split())
    assert f"at most {authenticator.MAX_LOGGED} lines a minute" in DOCS


def test_roles_headers_paths_and_exceptions_are_those_of_the_code() -> None:
    assert f"| | {' | '.join(Role)} |" in DOCS
    for name in (*headers.EVERYWHERE, "Strict-Transport-Security"):
        assert f"`{name}" in DOCS
    for path in PUBLIC:
        assert path.rpartition("/")[2] in DOCS
    for name in dagster.HARMLESS:
        assert f"`{name}`" in DOCS


def test_every_setting_that_is_named_exists() -> None:
    assert set(re.findall(r"TIDEGATE_[A-Z_]+", DOCS)) <= set(variables())
