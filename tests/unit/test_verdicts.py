import json
import logging
import socket
import ssl
import urllib.error
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime

import httpx
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from dagster_tidegate.breaker.verdicts import (
    VerdictKind,
    default_verdict,
    every_error,
    label,
    parse_retry_after,
    retry_after,
)

NOW = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
REQUEST = httpx.Request("GET", "http://service.test/")


def httpx_error(status: int, headers: dict[str, str] | None = None) -> httpx.HTTPStatusError:
    response = httpx.Response(status, request=REQUEST, headers=headers)
    return httpx.HTTPStatusError(str(status), request=REQUEST, response=response)


def requests_error(status: int, headers: dict[str, str] | None = None) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers or {})
    return requests.HTTPError(str(status), response=response)


def urllib_error(status: int, headers: dict[str, str] | None = None) -> urllib.error.HTTPError:
    message = Message()
    for name, value in (headers or {}).items():
        message[name] = value
    return urllib.error.HTTPError("http://service.test/", status, "", message, None)


class SdkError(Exception):
    """As the SDKs of many services have it."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


BY_STATUS = [httpx_error, requests_error, urllib_error, SdkError]


@pytest.mark.parametrize("make", BY_STATUS)
@pytest.mark.parametrize("status", [500, 502, 503, 504, 529, 408, 425, 429])
def test_a_service_that_is_unwell_or_overrun_failed(make, status):
    assert default_verdict(make(status)) == VerdictKind.FAILURE
    assert label(make(status)) == str(status)


@pytest.mark.parametrize("make", BY_STATUS)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_a_request_that_was_wrong_says_nothing_about_the_service(make, status):
    assert default_verdict(make(status)) == VerdictKind.IGNORED


def test_the_policy_can_count_other_statuses():
    assert default_verdict(httpx_error(404), [404]) == VerdictKind.FAILURE


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        ConnectionResetError(),
        TimeoutError(),
        socket.gaierror(),
        ssl.SSLError(),
        ssl.SSLCertVerificationError(),
        OSError("network is unreachable"),
        urllib.error.URLError("refused"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("hung up"),
        requests.ConnectionError(),
        requests.Timeout(),
        requests.exceptions.ChunkedEncodingError(),
        json.JSONDecodeError("Expecting value", "<html>", 0),
        requests.exceptions.JSONDecodeError("Expecting value", "<html>", 0),
        RuntimeError("an SDK's own"),
    ],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)
def test_a_service_that_can_not_be_reached_failed(error):
    assert default_verdict(error) == VerdictKind.FAILURE


@pytest.mark.parametrize(
    "error",
    [
        TypeError(),
        KeyError("email"),
        AttributeError(),
        ValueError("bad row"),
        ZeroDivisionError(),
        AssertionError(),
        NotImplementedError(),
        UnicodeEncodeError("ascii", "ü", 0, 1, ""),
        StopIteration(),
        FileNotFoundError("leads.csv"),
        httpx.UnsupportedProtocol("ftp"),
        httpx.InvalidURL("no host"),
        requests.exceptions.MissingSchema(),
        requests.exceptions.InvalidURL(),
    ],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)
def test_the_callers_own_mistakes_say_nothing(error):
    assert default_verdict(error) == VerdictKind.IGNORED
    assert every_error(error) == VerdictKind.FAILURE


@pytest.mark.parametrize("make", [httpx_error, requests_error, urllib_error])
def test_retry_after_is_read_from_the_headers(make):
    assert retry_after(make(429, {"Retry-After": "120"}), NOW, 3600) == 120
    date = format_datetime(NOW + timedelta(seconds=90), usegmt=True)
    assert retry_after(make(503, {"Retry-After": date}), NOW, 3600) == 90
    assert retry_after(make(503), NOW, 3600) is None


def test_an_error_without_headers_asks_for_nothing():
    assert retry_after(ConnectionError(), NOW, 3600) is None


def test_retry_after_is_capped_and_never_negative():
    assert parse_retry_after("7200", NOW, 3600) == 3600
    past = format_datetime(NOW - timedelta(days=1), usegmt=True)
    assert parse_retry_after(past, NOW, 3600) == 0


@pytest.mark.parametrize(
    "value", ["soon", "", "-5", "1e9", "99999999999999999999", "31536000", "inf", "٣", "12.5.2026"]
)
def test_an_absurd_retry_after_is_refused_with_a_line_in_the_log(value, caplog):
    with caplog.at_level(logging.WARNING):
        assert parse_retry_after(value, NOW, 3600) is None
    assert "ignoring Retry-After" in caplog.text


@given(st.text(max_size=60) | st.from_regex(r"\w{3}, \d+ \w{3} \d{4} [\d:]{8} \S+", fullmatch=True))
def test_whatever_a_service_sends_is_none_or_within_the_cap(value):
    seconds = parse_retry_after(value, NOW, 3600)
    assert seconds is None or 0 <= seconds <= 3600
