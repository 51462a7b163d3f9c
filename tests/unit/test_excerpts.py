"""What is kept of an answer has no secret of anybody."""

import json
import re
import string
import time

import httpx
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy import exc

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.errors import Rejected
from dagster_tidegate.breaker.excerpts import MAX_EXCERPT, error_excerpt, excerpt, said_with

ALPHANUMERIC = string.ascii_letters + string.digits
words = st.text(string.ascii_lowercase + " .,!", max_size=400)
emails = st.from_regex(r"[a-z]{6,12}\.[a-z]{3,9}@[a-z]{3,9}\.(com|example)", fullmatch=True)
hexadecimal = st.text("0123456789abcdef", min_size=16, max_size=64)
tokens = st.text(ALPHANUMERIC, min_size=24, max_size=90).filter(
    lambda text: any(c.isdigit() for c in text[:20])
)
keys = st.text(ALPHANUMERIC, min_size=12, max_size=60).map(lambda text: f"sk-{text}")
named = st.text(ALPHANUMERIC, min_size=8, max_size=40)


def shown(body: object) -> str:
    text = excerpt(Answer(401, body=body))
    assert len(text) <= MAX_EXCERPT
    return text


@given(before=words, secret=emails | hexadecimal | tokens | keys, after=words)
def test_a_secret_in_what_a_service_says_is_not_kept(before: str, secret: str, after: str):
    parts = [secret[i : i + 8] for i in range(len(secret) - 7)]
    assume(not any(part in before or part in after for part in parts))
    said = f"{before} {secret} {after}"
    for body in (
        said,
        {"error": {"message": said}},
        json.dumps({"message": said, "email": secret}),
        f"<html><head><title>{said}</title></head><body>{said}</body></html>",
    ):
        text = shown(body)
        assert not any(part in text for part in parts)


@given(before=words, secret=named)
def test_what_is_named_a_key_is_not_kept_whatever_it_looks_like(before: str, secret: str):
    assume(secret not in before)
    for said in (
        f"{before} Authorization: Bearer {secret}",
        f"{before} GET /v3?api={secret}&email=x",
        f"{before} api_key={secret}",
        f"{before} X-Api-Key: {secret}",
    ):
        assert secret not in shown(said)
        assert secret not in shown({"message": said})
    assert secret not in shown({"token": secret, "x_api_key": secret, "password": secret})


@pytest.mark.parametrize(
    "said",
    [
        "Authorization: Token s3cr3t",
        '{"Authorization": ["Token s3cr3t"]}',
        '{"password": "pass, s3cr3t"}',
        '{"client_secret":"pass\\"s3cr3t"}',
        "pwd=s3cr3t",
        "from 2001:db8::5ec:370:7334",
    ],
)
def test_short_secrets_and_addresses_are_not_kept(said: str):
    assert not {"s3cr3t", "370"} & set(re.findall(r"\w+", shown(said)))


def test_the_first_words_of_a_long_body_without_spaces_are_kept():
    body = {"error": "quota_exceeded"} | {f"key{n}": "x" * 20 for n in range(200)}
    assert "quota_exceeded" in shown(json.dumps(body, separators=(",", ":")))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            {
                "error": {
                    "code": "invalid_api_key",
                    "message": "Incorrect API key provided: sk-ab**yz",
                }
            },
            '{"error": {"code": "invalid_api_key", "message": "Incorrect API key provided: ***"}}',
        ),
        ({"message": "Too many from 192.0.2.7."}, '{"message": "Too many from ***."}'),
        ("<html><script>x</script><h1>520</h1> unknown  error</html>", "520 unknown error"),
        (
            {"type": "https://api.example/problems/validation-error"},
            '{"type": "https://api.example/problems/validation-error"}',
        ),
        ({"error": "Insufficient credits"}, '{"error": "Insufficient credits"}'),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("", ""),
        (None, ""),
    ],
)
def test_the_words_that_matter_are_kept(body: object, text: str):
    assert shown(body) == text


@pytest.mark.parametrize("body", ["a" * 1_000_000, "a@" * 500_000, "key" * 300_000, "<a" * 500_000])
def test_a_large_body_takes_no_time(body: str):
    started = time.process_time()
    shown(body)
    assert time.process_time() - started < 0.5


@given(before=words, secret=emails | hexadecimal | tokens | keys, after=words)
def test_a_secret_in_an_error_is_not_kept(before: str, secret: str, after: str):
    for said in (
        f"{before} {secret} {after}",
        f"{before} for url: https://hooks.crm.test/services/{secret}/send",
        f"{before} for url: https://api.crm.test/v1/send?k={secret}",
        f"no such file: '/var/data/{secret}/leads.csv'",
        b"body: " + secret.encode(),
    ):
        text = error_excerpt(RuntimeError(said, {"token": secret}))
        assert not any(secret[i : i + 8] in text for i in range(len(secret) - 7))


def test_an_error_that_is_cut_keeps_no_half_of_a_secret():
    for length in range(1900, 2000):
        text = error_excerpt(RuntimeError("x " * (length // 2) + "sk-abcdefgh12345678"))
        assert len(text) <= 2000
        assert "abcd" not in text


class TooManyRequestsForThisWorkspaceError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such mailbox"), "ValueError('no such mailbox')"),
        (
            TooManyRequestsForThisWorkspaceError(429),
            "TooManyRequestsForThisWorkspaceError(429)",
        ),
        (KeyError("annual_revenue_of_the_organisation"), None),
        (FileNotFoundError(2, "No such file", "/data/v2/leads-2026-11-27.csv"), None),
        (RuntimeError("500 for url 'https://api.example.org/v1/people/match/17'"), None),
        (RuntimeError("502 from api.example.org/v1/people/match"), None),
        (
            RuntimeError("500 for url 'http://127.0.0.1:8001/people/match/17?page=2'"),
            "RuntimeError(\"500 for url 'http://***:8001/people/match/17?page=2'\")",
        ),
        (RuntimeError("<urllib3.connection.HTTPSConnection object>: refused"), None),
    ],
)
def test_the_words_of_an_error_that_matter_are_kept(error: Exception, text: str | None):
    assert error_excerpt(error) == (text or repr(error))


@pytest.mark.parametrize("said", ["a/" * 1_000_000, "a.b/" * 500_000, "a_" * 500_000])
def test_a_large_error_takes_no_time(said: str):
    started = time.process_time()
    error_excerpt(RuntimeError(said))
    assert time.process_time() - started < 0.5


def test_the_error_of_a_record_begins_with_what_the_service_said():
    request = httpx.Request("POST", "https://crm.example/leads")
    response = httpx.Response(422, json={"error": "no such time zone"}, request=request)
    error = httpx.HTTPStatusError("422 for https://crm.example", request=request, response=response)
    text = "HTTPStatusError('422 for https://crm.example')"
    assert said_with(error) == f'{{"error":"no such time zone"}} ({text})'
    rejected = Rejected(response=response)
    assert said_with(rejected) == """{"error":"no such time zone"} (Rejected('rejected'))"""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such lead"),
        KeyboardInterrupt(),
        exc.OperationalError("SELECT", {}, Exception("no route to host")),  # has a code
        httpx.HTTPStatusError(
            "500: {'error': {'message': 'overloaded'}}",
            request=httpx.Request("GET", "https://crm.example"),
            response=httpx.Response(500, json={"error": {"message": "overloaded"}}),
        ),
        httpx.HTTPStatusError(
            "500",
            request=httpx.Request("GET", "https://crm.example"),
            response=httpx.Response(500),
        ),
    ],
    ids=repr,
)
def test_an_error_that_says_it_already_or_has_no_answer_is_kept_as_it_is(error: BaseException):
    assert said_with(error) == error_excerpt(error)
