"""Roles, origins and what is read of GraphQL: what decides who is let in, as pure functions."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_tidegate.store.tokens import Role
from dagster_tidegate.web.access import graphql
from dagster_tidegate.web.access.identity import Identity
from dagster_tidegate.web.access.limits import Limit, TooManyError, network
from dagster_tidegate.web.access.origins import allowed_host, host_name, local_path, same_origin


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (Role.VIEWER, {Role.VIEWER}),
        (Role.OPERATOR, {Role.VIEWER, Role.OPERATOR}),
        (Role.ADMIN, {Role.VIEWER, Role.OPERATOR, Role.ADMIN}),
    ],
)
def test_a_role_may_do_what_those_before_it_may(role: Role, allowed: set[Role]) -> None:
    assert {needed for needed in Role if role.allows(needed)} == allowed


@pytest.mark.parametrize(
    ("role", "owners", "may"),
    [
        (Role.VIEWER, [], False),
        (Role.VIEWER, ["ana"], False),
        (Role.OPERATOR, [], True),
        (Role.OPERATOR, ["ana", "bo"], True),
        (Role.OPERATOR, ["bo"], False),
        (Role.OPERATOR, ["Ana"], False),
        (Role.ADMIN, ["bo"], True),
    ],
)
def test_owners_and_administrators_steer_a_campaign(
    role: Role, owners: list[str], may: bool
) -> None:
    assert Identity("ana", role).may_control(owners) is may


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("Tide.Example:80", "tide.example"),
        ("[::1]:3000", "::1"),
        ("", None),
        ("a@b", None),
        ("a/b", None),
        ("a:b", None),
        ("a b", None),
        ("[::1", None),
    ],
)
def test_the_name_in_a_host_header(host: str, name: str | None) -> None:
    assert host_name(host) == name


def test_where_nobody_needs_a_token_only_given_names_will_do() -> None:
    assert allowed_host("evil.example", [], any_name=True)
    assert not allowed_host("evil.example", [], any_name=False)
    assert not allowed_host("evil.example", ["tide.example"], any_name=True)
    assert allowed_host("tide.example:1", ["Tide.Example"], any_name=False)
    assert allowed_host("127.0.0.1", ["tide.example"], any_name=False)


@pytest.mark.parametrize(
    ("site", "origin", "from_here"),
    [
        ("same-origin", None, True),
        ("same-origin", "http://evil.example", True),  # the browser knows better
        ("cross-site", "http://tide.example:3000", False),
        (None, "http://tide.example:3000", True),
        (None, "https://TIDE.example:3000", True),
        (None, "http://tide.example", False),
        (None, "http://tide.example:3000.evil.example", False),
        (None, "null", False),
        (None, "", False),
        (None, "file://tide.example:3000", False),
    ],
)
def test_a_browser_says_where_a_request_comes_from(
    site: str | None, origin: str | None, from_here: bool
) -> None:
    for browser in (True, False):
        found = same_origin("tide.example:3000", site=site, origin=origin, browser=browser)
        assert found is from_here


def test_a_request_without_a_word_of_its_origin_is_no_browsers() -> None:
    assert same_origin("tide.example", site=None, origin=None, browser=False)
    assert not same_origin("tide.example", site=None, origin=None, browser=True)


def test_standard_ports_may_be_left_out() -> None:
    for host, origin in (("a.example:443", "https://a.example"), ("a.example", "http://a.example")):
        assert same_origin(host, site=None, origin=origin, browser=True)


@given(st.text())
def test_a_browser_is_sent_nowhere_but_to_a_path_of_this_server(wanted: str) -> None:
    for each in (wanted, f"/{wanted}", f"//{wanted}", f"/\\{wanted}"):
        found = local_path(each)
        assert found.startswith("/")
        assert not found.startswith(("//", "/\\"))
        assert found.isprintable()
        assert found.isascii()


@pytest.mark.parametrize(
    ("document", "changes"),
    [
        ("{ a }", ()),
        ("subscription { a }", ()),
        ("mutation { launchRun }", ("launchRun",)),
        ("mutation { a: launchRun ... on M { stopRun } ...F }", ("launchRun", "stopRun", "...F")),
        ("# mutation\n{ a(b: \"mutation { c }\") }", ()),
        ("mutation", None),
        ("", None),
        ("\ufeff{ a }", ()),
        ("{" * 5000, None),
        ("{ a " * 5000 + "}" * 5000, None),
        ("{" + "a " * 30_000 + "}", None),
        ("\ud800", None),
    ],
)  # fmt: skip
def test_what_a_document_would_change(document: str, changes: tuple[str, ...] | None) -> None:
    assert graphql.changes(document) == changes
    reader = graphql.DocumentReader()
    assert reader.changes(document) == reader.changes(document) == changes


@given(st.text())
def test_a_document_of_any_text_is_read_or_not(text: str) -> None:
    graphql.changes(text)
    graphql.changes("mutation { " + text)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=9),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner),
    )
)
def test_what_is_kept_of_variables_is_bounded(variables: object) -> None:
    found = graphql.subjects({"jobName": "outreach", "selector": variables})
    assert found["jobName"] == "outreach"
    assert len(found) <= graphql.MAX_SUBJECTS + graphql.MAX_SUBJECTS


def test_configurations_are_not_kept() -> None:
    kept = {"name": "kept"}
    assert graphql.subjects({"runConfigData": {"name": "hunter2"}, "a": [kept]}) == kept


def test_what_is_too_often_is_refused_for_those_alone_who_do_it() -> None:
    limit = Limit("requests", 2)
    limit.count("ana")
    limit.count("ana")
    with pytest.raises(TooManyError, match="more than 2 requests in a minute"):
        limit.count("ana")
    limit.count("bo")


def test_an_address_counts_with_its_network() -> None:
    assert network("2001:db8::1") == network("2001:db8::ffff") != network("2001:db8:0:1::1")
    assert network("::ffff:192.0.2.7") == network("192.0.2.7") != network("192.0.2.8")
    assert network("whatever") == "whatever"
