"""What answers mean: two tables of answers, and what no table can say."""

import gzip
import json
import logging
import pickle
import socket
import ssl
import time
import urllib.error
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from dagster_tidegate.breaker.answers import Answer, is_answer_type, may_have_arrived
from dagster_tidegate.breaker.errors import AnswerError, Denied, Pending, Rejected, Throttled
from dagster_tidegate.breaker.judge import every_error, judge, judge_exception, judge_for
from dagster_tidegate.breaker.policy import ServicePolicy
from dagster_tidegate.breaker.profiles import load
from dagster_tidegate.breaker.verdicts import Scope, Verdict, VerdictKind
from tests.support.answer_table import Row, read, summary

HERE = Path(__file__).parent
NOW = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
REQUEST = httpx.Request("GET", "http://service.test/")
GENERIC = load("generic")
ROWS = read(HERE / "answers.json") + read(HERE / "more_answers.json")


def verdict_on(thing: object, profile: str = "generic") -> Verdict:
    answer = Answer.of(thing, NOW)
    assert answer is not None
    return judge(answer, load(profile))


def throttled(headers: dict[str, str] | None = None, body: Any = None) -> int | None:
    """The seconds that a 429 asks to wait."""
    verdict = judge(Answer(429, headers or {}, body, at=NOW), GENERIC)
    assert verdict.kind is VerdictKind.THROTTLED
    return summary(verdict, NOW)["until"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_every_answer_of_the_tables_is_judged_right(row: Row):
    status, headers, body = row.at(NOW)
    verdict = judge(Answer(status, headers, body, at=NOW), load(row.profile))
    assert summary(verdict, NOW) == {
        "verdict": row.verdict,
        "until": row.until,
        "scope": row.scope,
    }
    if row.verdict != "success":
        assert verdict.reason


# --- every client leads to the same answer -------------------------------------------------------


def of_httpx(status: int, headers: dict[str, str], body: bytes) -> Exception:
    response = httpx.Response(status, request=REQUEST, headers=headers, content=body)
    return httpx.HTTPStatusError(str(status), request=REQUEST, response=response)


def of_requests(status: int, headers: dict[str, str], body: bytes) -> Exception:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers)
    response._content = body  # noqa: SLF001 -- as if it had been read
    return requests.HTTPError(str(status), response=response)


def of_an_sdk(status: int, headers: dict[str, str], body: bytes) -> Exception:
    """As openai's, anthropic's, Stripe's and generated ones have it."""
    error = Exception(str(status))
    vars(error).update(status_code=status, headers=headers, body=body.decode())
    return error


def of_botocore(status: int, headers: dict[str, str], body: bytes) -> Exception:
    error = Exception(str(status))
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": {k.lower(): v for k, v in headers.items()}}
    vars(error)["response"] = {"Error": json.loads(body)["error"], "ResponseMetadata": metadata}
    return error


def chained(status: int, headers: dict[str, str], body: bytes) -> Exception:
    error = ValueError("my client's own")
    error.__cause__ = of_httpx(status, headers, body)
    return error


CLIENTS = [of_httpx, of_requests, of_an_sdk, of_botocore, chained]


@pytest.mark.parametrize("client", CLIENTS)
def test_an_exception_of_any_client_has_code_header_and_status(client):
    quota = b'{"error": {"code": "insufficient_quota"}}'
    denied = verdict_on(client(429, {"Retry-After": "7"}, quota))
    assert (denied.kind, denied.reason) == (VerdictKind.DENIED, "insufficient_quota")
    later = verdict_on(client(429, {"Retry-After": "7"}, b'{"error": {}}'))
    assert (later.kind, later.until) == (VerdictKind.THROTTLED, NOW + timedelta(seconds=7))
    assert verdict_on(client(422, {}, b'{"error": {}}')).kind is VerdictKind.REJECTED


def test_an_sdks_code_counts_where_there_is_no_body_or_status():
    for fields in ({"code": "insufficient_quota"}, {"code": "insufficient_quota", "status": 429}):
        error = Exception("in the middle of a stream")
        vars(error).update(fields)
        assert verdict_on(error).kind is VerdictKind.DENIED


def test_urllibs_error_has_its_headers_and_its_body_stays_unread():
    headers = Message()
    headers["retry-after"] = "7"
    stream = BytesIO(b'{"error": {"code": "insufficient_quota"}}')
    error = urllib.error.HTTPError("http://service.test/", 429, "", headers, stream)
    assert verdict_on(error).until == NOW + timedelta(seconds=7)
    assert stream.tell() == 0


def test_a_streamed_response_is_not_read():
    response = httpx.Response(200, stream=httpx.ByteStream(b'{"error": "no credits"}'))
    assert verdict_on(response).kind is VerdictKind.SUCCESS
    assert not response.is_stream_consumed


def test_a_returned_response_is_an_answer_and_other_values_are_none():
    response = httpx.Response(200, json={"error": "Insufficient credits", "result": "error"})
    assert verdict_on(response).kind is VerdictKind.DENIED
    assert verdict_on(response.json()).kind is VerdictKind.DENIED
    assert is_answer_type(httpx.Response)
    assert is_answer_type(requests.Response)
    for value in (None, "text", 3, [1], object()):
        assert not is_answer_type(type(value))
        assert Answer.of(value, NOW) is None


def test_header_names_are_case_insensitive_in_plain_dicts_too():
    for name in ("retry-after", "Retry-After", "RETRY-AFTER"):
        assert throttled({name: "12"}) == 12
        assert Answer(429, {name: "12"}).headers["Retry-After"] == "12"


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "120"}, 120),
        ({"retry-after": "292.052427053"}, 293),
        ({"retry-after": "0.503"}, 1),
        ({"retry-after": "7.0"}, 7),
        ({"retry-after": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90),
        ({"retry-after": (NOW + timedelta(seconds=90)).isoformat()}, 90),
        ({"retry-after": "0"}, None),
        ({"retry-after": format_datetime(NOW - timedelta(days=1), usegmt=True)}, None),
        ({"retry-after-ms": "1500"}, 2),
        ({"x-ms-retry-after-ms": "1500"}, 2),
        ({"ratelimit": "limit=10, remaining=0, reset=45"}, 45),
        ({"ratelimit": '"default";r=0;t=45'}, 45),
        ({"ratelimit": '"second";r=0;t=1, "day";r=0;t=9000, "month";r=7;t=99999'}, 9000),
        ({"ratelimit-reset": "30"}, 30),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "30", "retry-after": "10"}, 30),
        ({"ratelimit-remaining": "5", "ratelimit-reset": "30", "retry-after": "10"}, 10),
        ({"ratelimit-remaining": "5", "ratelimit-reset": "30"}, None),
        ({"x-ratelimit-reset": str(int(NOW.timestamp()) + 600)}, 600),
        ({"x-ratelimit-reset": str((int(NOW.timestamp()) + 600) * 1000)}, 600),
        ({"x-ratelimit-reset-after": "1.2"}, 2),
        ({"x-rate-limit-reset": "2026-03-01T09:10:00Z"}, 600),
        ({"x-ratelimit-reset": ""}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "17ms"}, 1),
        (
            {"x-requests-remaining": "0", "zendesk-ratelimit-x": "total=1; remaining=0; resets=54"},
            54,
        ),
    ],
)
def test_each_form_of_header_says_when_to_call_again(headers: dict[str, str], seconds: int | None):
    assert throttled(headers) == seconds


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"retry_after_seconds": 30}, 30),
        ({"retryAfter": "30"}, 30),
        ({"error": {"retry_after_ms": 1500}}, 2),
        ({"parameters": {"retry_after": 35}}, 35),
        ({"error": {"details": [{"retryDelay": "32.5s"}]}}, 33),
        ({"resets_at": int(NOW.timestamp()) + 600}, 600),
        ({"reset_at": "2026-03-01T09:10:00+00:00"}, 600),
        ({"message": "Please try again in 1h 2m 3s."}, 3723),
        ({"message": "Quota will be replenished in 2.12:34:56."}, 2 * 86400 + 45296),
        ({"message": "Rate limit of 100 requests in 24 hours. Retry after 30 seconds"}, 30),
        ({"message": "Rate limit of 100 requests in 24 hours."}, None),
        ({"retry_after": None, "retry_after_seconds": True}, None),
    ],
)
def test_a_body_says_when_to_call_again(body: dict[str, Any], seconds: int | None):
    assert throttled(body=body) == seconds


@pytest.mark.parametrize("value", ["soon", "-6", "1e9", "99999999999999999999", "31536000", "inf"])
def test_an_absurd_time_is_refused_with_one_line_in_the_log(value: str, caplog):
    fresh = f"{value}x" if value == "soon" else value
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert throttled({"retry-after": fresh}) is None
    assert caplog.text.count(f"ignoring {fresh!r}") == 1


def test_an_empty_header_is_no_time_and_is_not_logged(caplog):
    assert throttled({"retry-after": "", "x-ratelimit-reset": " "}) is None
    assert not caplog.records


def test_the_services_own_clock_counts_where_it_is_wrong():
    an_hour_ahead = NOW + timedelta(hours=1)
    headers = {
        "date": format_datetime(an_hour_ahead, usegmt=True),
        "retry-after": format_datetime(an_hour_ahead + timedelta(seconds=30), usegmt=True),
    }
    assert throttled(headers) == 30


def test_waiting_is_capped():
    answer = Answer(429, {"retry-after": "864000"}, at=NOW)
    assert judge(answer, GENERIC).until == NOW + timedelta(days=7)
    assert judge(answer, GENERIC, cap_s=60).until == NOW + timedelta(seconds=60)


@given(st.text(max_size=60) | st.from_regex(r"\w{3}, \d+ \w{3} \d{4} [\d:]{8} \S+", fullmatch=True))
def test_whatever_a_service_sends_is_none_or_within_the_cap(value: str):
    for name in ("retry-after", "x-ratelimit-reset", "ratelimit"):
        seconds = throttled({name: value})
        assert seconds is None or 0 < seconds <= 7 * 86400


@pytest.mark.parametrize(
    "value",
    ["1" * 309, "9" * 5000, "1" * 1_000_000, "1d" * 100_000, "Mon, " * 50_000],
    ids=lambda value: f"{value[:3]} {len(value)}",
)
def test_a_header_of_any_length_is_read_at_once(value: str):
    for name in ("retry-after", "x-ratelimit-reset", "ratelimit"):
        assert throttled({name: value}) is None
    if value.isdigit():
        assert throttled({"ratelimit": f"limit=9, remaining=0, reset={value}"}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ratelimit", '"' + "a" * 60_000),
        ("ratelimit", "=" + "a" * 60_000),
        ("date", "a" + " " * 60_000 + "b"),
        ("x-error-code", "a_" * 30_000),
        ("grpc-message", "aA" * 30_000),
    ],
    ids=["quotas", "old quotas", "date", "code", "message"],
)
def test_a_header_of_any_content_is_read_at_once(name: str, value: str):
    began = time.process_time()
    throttled({"retry-after": "5", name: value})
    assert time.process_time() - began < 1


def nested(levels: int) -> dict[str, Any]:
    body: dict[str, Any] = {"code": "insufficient_quota"}
    for _ in range(levels):
        body = {"error": body}
    return body


CYCLE: dict[str, Any] = {"code": "insufficient_quota"}
CYCLE["error"] = [CYCLE] * 20


@pytest.mark.parametrize(
    "body",
    [
        nested(5_000),
        CYCLE,
        {"error": {"code": "bad", "retry_after": 10**5000}, 10**5000: 10**5000},
        {"error": {1, 2}, "message": object()},
        '{"error":' * 100_000,
        "[" * 500_000,
        '{"retry_after": ' + "9" * 4000 + "}",
        bytes(range(256)) * 100,
        "\ud800\0" * 1000,
        "<html>" + "<title>" * 20_000,
        [{"retry_after": 5}] * 100_000,
        {f"key{n}": {"retry_after": n} for n in range(100_000)},
        {"aA" * 50_000: 1, "error": "a_" * 50_000},
        {"error_code": nested(5_000)},
        {"code": 10**5000, "error_code": 10**5000, "message": "no"},
        {"error": {"message": f"try again in {'9' * 1000}s"}},
        {"error": {"message": f"try again in {'9' * 1000}.01:01:01"}},
    ],
    ids=[
        *("nested dictionary", "within itself", "huge integers", "no JSON", "nested JSON"),
        *("nested arrays", "long number", "binary", "no text", "titles", "long array", "many keys"),
        *("long key", "nested code", "huge codes", "long duration", "long clock"),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 429, 500])
def test_no_body_breaks_or_delays_the_judge(status: int, body: Any):
    for media_type in ("application/json", "text/html"):
        began = time.process_time()
        verdict = judge(Answer(status, {"content-type": media_type}, body, at=NOW), GENERIC)
        assert time.process_time() - began < 5
        assert len(verdict.answer or "") <= 300
        assert status == 200 or verdict.kind is not VerdictKind.SUCCESS


def test_a_code_is_read_in_any_body_of_up_to_a_megabyte():
    body = {"error": {"code": "insufficient_quota"}, "echo": "x" * 900_000}
    for sent in (body, json.dumps(body), json.dumps(body).encode()):
        assert judge(Answer(429, {}, sent, at=NOW), GENERIC).kind is VerdictKind.DENIED
    longer = json.dumps({**body, "echo": "x" * 10_000_000})
    assert judge(Answer(429, {}, longer, at=NOW), GENERIC).kind is VerdictKind.THROTTLED
    assert judge(Answer(500, {}, longer, at=NOW), GENERIC).kind is VerdictKind.FAILURE


@pytest.mark.parametrize("body", ["é" * 3_000_000, b"\xff" * 3_000_000], ids=["text", "bytes"])
def test_of_a_body_of_more_than_a_megabyte_no_more_is_read(body: Any):
    assert len(Answer(500, {}, body).text) <= 1_000_000


def test_an_error_that_hides_its_arguments_is_judged():
    class Hidden(Exception):
        @property
        def args(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
            raise RuntimeError

    assert verdict_on(Hidden()).kind is VerdictKind.FAILURE
    assert may_have_arrived(Hidden())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "errors", "code", "status", "type", "retry_after", "message", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    status=st.integers(100, 599) | st.none(),
    body=json_values | st.text(max_size=80) | st.binary(max_size=80),
    headers=st.dictionaries(
        st.sampled_from(["content-type", "retry-after", "date", "ratelimit", "x-ratelimit-reset"]),
        st.sampled_from(["application/json", "text/html", "5", "", "r=0;t=1"])
        | st.text(max_size=9),
    ),
    profile=st.sampled_from(["generic", "openai", "millionverifier"]),
)
def test_no_answer_breaks_the_judge(status, body, headers, profile):
    verdict = judge(Answer(status, headers, body, at=NOW), load(profile))
    assert verdict.until is None or verdict.until > NOW
    if status is not None and status >= 300 and status != 304:
        assert verdict.kind is not VerdictKind.SUCCESS or "zero_results" in str(body)


# --- exceptions without an answer ----------------------------------------------------------------

UNREADABLE = [gzip.compress(b"{}"), '{"name": "Müller"}'.encode("latin-1"), b'{"a": [1,']


def parse_error(body: bytes) -> Exception:
    try:
        json.loads(body)
    except ValueError as error:
        return error
    raise AssertionError


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
        httpx.TooManyRedirects("loop"),
        requests.ConnectionError(),
        requests.Timeout(),
        requests.exceptions.ChunkedEncodingError(),
        requests.exceptions.JSONDecodeError("Expecting value", "<html>", 0),
        requests.exceptions.ContentDecodingError(),
        RuntimeError("an SDK's own"),
        *map(parse_error, UNREADABLE),
    ],
    ids=lambda error: f"{type(error).__module__}.{type(error).__name__}",
)
def test_a_service_that_can_not_be_reached_or_read_failed(error: Exception):
    assert verdict_on(error).kind is VerdictKind.FAILURE
    assert judge_exception(Answer(exception=error)).kind is VerdictKind.FAILURE


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
def test_the_callers_own_mistakes_are_ignored(error: Exception):
    assert verdict_on(error).kind is VerdictKind.IGNORED
    assert judge_exception(Answer(exception=error)).kind is VerdictKind.IGNORED
    assert every_error(Answer(exception=error)).kind is VerdictKind.FAILURE


class ContentTypeError(Exception):
    """As aiohttp's, which carries the status of an answer that could not be read."""

    def __init__(self, status: int) -> None:
        super().__init__(status, "unexpected mimetype: text/html")
        self.status = status
        self.headers = {"Content-Type": "text/html"}


@pytest.mark.parametrize("status", [200, 204, 301, 302, 307, 304, 100])
def test_an_exception_with_a_status_below_400_is_a_failure_that_may_have_arrived(status: int):
    for error in (ContentTypeError(status), of_httpx(status, {}, b"")):
        assert verdict_on(error).kind is VerdictKind.FAILURE
        answer = Answer.of(error, NOW)
        assert answer is not None
        assert judge_exception(answer).kind is VerdictKind.FAILURE
        assert may_have_arrived(error)


@pytest.mark.parametrize("client", [of_httpx, of_requests, of_an_sdk])
@pytest.mark.parametrize("status", [500, 502, 503, 504, 529, 408, 425, 429])
def test_by_the_exception_alone_5xx_and_429_fail_and_the_rest_says_nothing(client, status: int):
    def kind(status: int, *failure_statuses: int) -> VerdictKind:
        answer = Answer.of(client(status, {}, b""), NOW)
        assert answer is not None
        return judge_exception(answer, failure_statuses=failure_statuses).kind

    assert kind(status) is VerdictKind.FAILURE
    for harmless in (400, 401, 403, 404, 409, 422):
        assert kind(harmless) is VerdictKind.IGNORED
    assert kind(404, 404) is VerdictKind.FAILURE


# --- what may have arrived -----------------------------------------------------------------------


def wrapped() -> Exception:
    return requests.ConnectionError(urllib.error.URLError(ConnectionRefusedError()))


@pytest.mark.parametrize(
    ("error", "may"),
    [
        (TimeoutError(), True),
        (httpx.ReadTimeout(""), True),
        (httpx.ConnectTimeout(""), False),
        (ConnectionRefusedError(), False),
        (urllib.error.URLError(ConnectionRefusedError()), False),
        (wrapped(), False),
        (parse_error(b"{"), True),
        *[(of_an_sdk(status, {}, b"{}"), True) for status in (200, 202, 204, 302, 500, 502, 504)],
        *[(of_an_sdk(status, {}, b"{}"), True) for status in (520, 522, 524)],
        *[(of_an_sdk(status, {}, b"{}"), False) for status in (400, 401, 402, 403, 404, 408, 409)],
        *[(of_an_sdk(status, {}, b"{}"), False) for status in (422, 425, 429, 501, 503, 521, 523)],
        (Throttled("later"), False),
        (Denied("no credits"), False),
        (Rejected("no such address"), False),
        (Pending(after=3), False),
        (AnswerError("unreadable"), True),
    ],
)
def test_a_call_may_have_arrived_unless_the_service_says_that_it_did_nothing(error, may: bool):
    assert may_have_arrived(error) is may


def test_a_returned_200_without_credits_did_nothing_and_a_524_may_have():
    denied = AnswerError.of(Verdict(VerdictKind.DENIED), httpx.Response(200))
    assert not may_have_arrived(denied)
    gave_up = AnswerError.of(Verdict(VerdictKind.THROTTLED), httpx.Response(524))
    assert may_have_arrived(gave_up)


# --- what a client says directly, and policies ---------------------------------------------------


def test_a_client_says_directly_what_an_answer_means():
    later = verdict_on(Throttled("month used", after=60, scope="endpoint"))
    assert (later.kind, later.until) == (VerdictKind.THROTTLED, NOW + timedelta(seconds=60))
    assert (later.scope, later.reason) == (Scope.ENDPOINT, "month used")
    assert verdict_on(Throttled("x", until=NOW + timedelta(days=1))).until == NOW + timedelta(
        days=1
    )
    assert verdict_on(Denied("no credits")).kind is VerdictKind.DENIED
    assert verdict_on(Pending()).scope is Scope.RECORD
    assert verdict_on(Rejected("no such address")).kind is VerdictKind.REJECTED
    own = RuntimeError("my client's own")
    own.__cause__ = Denied("no credits")
    assert verdict_on(own).reason == "no credits"


@pytest.mark.parametrize(
    ("after", "waits_s"),
    [(float("inf"), 30 * 86400), (1e300, 30 * 86400), (-5, 0), (float("nan"), None)],
)
def test_whatever_a_client_computes_as_a_wait_is_within_thirty_days(
    after: float, waits_s: int | None
):
    until = Throttled("wait", after=after).verdict_at(NOW).until
    assert until == (None if waits_s is None else NOW + timedelta(seconds=waits_s))


def test_a_time_without_a_zone_is_utc():
    naive = NOW.replace(tzinfo=None)
    assert Throttled("wait", until=naive).verdict.until == NOW


def test_the_error_of_a_verdict_is_of_the_class_that_says_the_same():
    verdict = Verdict(VerdictKind.DENIED, reason="no credits", answer='{"error": "no credits"}')
    error = AnswerError.of(verdict, response="r")
    assert type(error) is Denied
    assert (error.verdict, error.response) == (verdict, "r")
    assert str(error) == 'denied (no credits): {"error": "no credits"}'
    assert type(AnswerError.of(Verdict(VerdictKind.FAILURE))) is AnswerError
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.verdict, str(copy)) == (Denied, verdict, str(error))


def own_judge(answer: Answer) -> Verdict:
    return Verdict(VerdictKind.DENIED if answer.status == 418 else VerdictKind.SUCCESS)


def test_a_policy_chooses_its_judge():
    def kind(answer: Answer, **fields: Any) -> VerdictKind:
        return judge_for(ServicePolicy(name="x", **fields))(answer).kind

    teapot = Answer(418, exception=ContentTypeError(418), at=NOW)
    assert kind(teapot) is VerdictKind.REJECTED
    assert kind(teapot, failure_statuses=[418]) is VerdictKind.FAILURE
    assert kind(teapot, profile=None) is VerdictKind.IGNORED
    assert kind(teapot, judge=f"{__name__}:own_judge") is VerdictKind.DENIED
    assert kind(Answer(200, body={"error": "no credits"}), profile=None) is VerdictKind.SUCCESS
    unknown = Answer(404, body={"status": "result_pending"}, at=NOW)
    assert kind(unknown, profile="apollo") is VerdictKind.PENDING


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"judge": f"{__name__}:nobody"}, "can't be imported"),
        ({"judge": "no.such.module:judge"}, "can't be imported"),
        ({"judge": f"{__name__}:NOW"}, "it must be a function"),
        ({"profile": "no/such.toml"}, "can't be read"),
    ],
)
def test_a_judge_that_can_not_be_loaded_is_refused_with_the_reason(fields, says: str):
    with pytest.raises(ValueError, match=says):
        judge_for(ServicePolicy(name="x", **fields))
