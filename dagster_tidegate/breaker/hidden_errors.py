"""Errors in answers whose status says success."""

import re
from itertools import islice
from typing import Any

from dagster_tidegate.breaker.answers import MAX_ITEMS, MAX_PARSED, Answer, is_huge, outline
from dagster_tidegate.breaker.codes_and_words import (
    PROSE_KEYS,
    known_code,
    phrase_in,
    plain,
    says_why,
    words_in,
)
from dagster_tidegate.breaker.profiles import Profile, code_of

_ERROR_KEYS = (
    *("error_code", "error_message", "error_msg", "errormessage", "errorcode"),
    *("errcode", "err_code", "errno"),
)
# An object with no other names says something about the call, and has no data.
_CALL_CODES = ("code", "status_code", "statuscode", "ret", "retcode", "status", "result")
_CALL_WORDS = frozenset({"note", "information", "info"})
_ABOUT_CALLS = (
    (frozenset(PROSE_KEYS) - {"title", "description", "errors"})
    | frozenset(_CALL_CODES)
    | {"success", "type", "request_id", "requestid", "trace_id", "timestamp", "time", "path"}
)
_PARTS = ("meta", "status", "response", "base_resp", "response_status", "header", "head")
"""Where services put what they say about a call."""
_FINE = frozenset({"0", "200", "201", "202", "ok", "success", "succeeded", "successful", "true"})
_XML_ERROR = re.compile(r"(<\?xml[^>]*>\s*)?<(\w+:)?(error|errorresponse|fault)[\s>]")
MAX_FIELDS = 100
"""So many fields of a successful answer are looked at for an error."""
MAX_LINE = 300
"""A longer message in a 2xx is an answer, and no error."""
_NO_ERROR = frozenset({"", "none", "null", "ok", "false", "0", "no_error", "success"})
_FAILED_STATUSES = frozenset({"error", "fail", "failed", "failure"})
_MESSAGES = ("message", "msg", "detail", "title")


def error_within(answer: Answer, profile: Profile) -> int | None:
    """Return the status of an error that the body of a 2xx names, 0 without one, None if none."""
    body = answer.body if isinstance(answer.body, dict | list) else _small_json(answer)
    if isinstance(body, dict):
        return _error_in(body, answer, profile)
    if isinstance(body, list):
        # Of a batch, some items may fail. The call did if all did, and of a cause that is known.
        errors: list[int] = []
        for item in body[:MAX_ITEMS]:
            error = _error_in(item, answer, profile) if isinstance(item, dict) else None
            if error is None:
                return None
            errors.append(error)
        return errors[0] if errors and says_why(answer, profile) else None
    if isinstance(answer.body, str | bytes):
        start = answer.text[:MAX_LINE].lstrip().lower()
        if _XML_ERROR.match(start):
            return 0
        is_line = len(answer.body) < MAX_LINE and answer.media_type in ("", "text/plain")
        if is_line and start.startswith("error") and says_why(answer, profile):
            return 0
    return None


def _error_in(body: dict[Any, Any], answer: Answer, profile: Profile) -> int | None:
    fields = _fields(body)
    error, errors = fields.get("error"), fields.get("errors")
    if isinstance(error, str) and code_of(error) in _NO_ERROR:
        error = None
    says = any(isinstance(fields.get(key), str) and fields[key] for key in _MESSAGES)
    inner = _status_in(error) if isinstance(error, dict) else None
    if inner is None and (error or says):
        inner = _status_in(fields)
    status = fields.get("status")
    if isinstance(status, str) and (says or status.isupper()) and code_of(status) in profile.codes:
        return 0  # as Google's maps have it
    named = {code_of(v) for k in ("status", "result") if isinstance(v := fields.get(k), str)}
    flags = (fields.get("success"), fields.get("ok"))
    reasons = says or isinstance(fields.get("reason"), str)
    failed = bool(named & _FAILED_STATUSES) or any(_is_no(flag, reasons) for flag in flags)
    if error or failed or inner:
        return inner or 0
    if any(_is_given(fields.get(key)) for key in _ERROR_KEYS):
        return 0
    if isinstance(errors, list | dict) and errors and not fields.get("data"):
        # Beside other data, some items of a batch failed; alone, the whole call did.
        others = fields.keys() - {"errors", "data", "message", "extensions", "status", "success"}
        return 0 if not others or known_code(answer, profile) is not None else None
    if isinstance(errors, list) and errors:
        return 0 if known_code(answer, profile) is not None else None
    for key in _PARTS:
        part = fields.get(key)
        if isinstance(part, dict):
            inner = _fields(part)
            failed = inner.get("success") is False or inner.get("status") == "error"
            failed = failed or any(_is_given(inner.get(name)) for name in ("error", *_ERROR_KEYS))
            if (failed and says_why(answer, profile)) or _is_about_the_call(part, profile):
                return 0
    return 0 if _is_about_the_call(body, profile) else None


def _fields(body: dict[Any, Any]) -> dict[str, Any]:
    items = islice(body.items(), MAX_FIELDS)
    return {code_of(key): value for key, value in items if isinstance(key, str)}


def _is_no(value: object, says: bool) -> bool:
    """Return whether a flag of success is not set; 0 may be a number of something."""
    if type(value) is int:
        return value == 0 and says
    return value is False or (isinstance(value, str) and value.lower() == "false")


def _is_given(value: object) -> bool:
    """Return whether a field that is for errors has one."""
    return bool(value) and code_of(_shortened(value)) not in _NO_ERROR


def _shortened(value: object) -> str:
    """Return the beginning of a value as text, whatever its size and depth."""
    return "huge" if is_huge(value) else str(outline(value))[:80]


def _is_about_the_call(body: dict[Any, Any], profile: Profile) -> bool:
    """Return whether an object is a code and a message about an error, and nothing else."""
    if len(body) > MAX_FIELDS:
        return False
    given: dict[str, Any] = {}
    for key, value in body.items():
        if value is None or value in ("", [], {}):
            continue
        name = code_of(key) if isinstance(key, str) else ""
        if name not in _ABOUT_CALLS:
            return False
        given[name] = value
    codes = {key: code_of(_shortened(given[key])) for key in _CALL_CODES if key in given}
    if any(code in _FINE or not (code.isdigit() or key == "code") for key, code in codes.items()):
        return False
    if not codes and not (len(given) == 1 and given.keys() <= _CALL_WORDS):
        return False  # words alone may be what was asked for
    words: list[str] = []
    words_in(given, words)
    prose = plain(words)
    return len(prose) < MAX_LINE and phrase_in(prose, profile, 200) is not None


def _status_in(node: dict[Any, Any]) -> int | None:
    """Return the HTTP status of an error that an object names, or None."""
    for key in ("code", "status", "statusCode", "status_code", "error_code"):
        value = node.get(key)
        if isinstance(value, str) and re.fullmatch(r"[45]\d\d", value):
            return int(value)
        if type(value) is int and 400 <= value <= 599:
            return value
    return None


def _small_json(answer: Answer) -> Any:
    if not isinstance(answer.body, str | bytes) or len(answer.body) > MAX_PARSED:
        return None
    return answer.json
