"""What a service said, short enough to keep, without secrets."""

import re
from dataclasses import replace
from datetime import UTC, datetime

from dagster_tidegate.breaker.answers import Answer
from dagster_tidegate.breaker.errors import AnswerError
from dagster_tidegate.breaker.verdicts import Scope, Verdict, VerdictKind
from dagster_tidegate.text import shown

MAX_EXCERPT = 300
MAX_REASON = 200
_MAX_READ = 2000
MASK = "***"
_NAME = (
    r"(?:api[\s_-]?key|access[\s_-]?key|key|token|secret|passw(?:or)?d|passphrase|pwd|"
    r"authorization|signature|credential|session|cookie|api)"
)
_VALUE = r"[^\s\"',;&<>{}\[\]\\]+"
_MASKS = (
    # "Authorization: Token ...", and "Bearer ..." and the like
    (rf"(\bauthorization\\?[\"']?\s*[:=]\s*\[?\\?[\"']?)(?:[a-z]+\s+)?{_VALUE}", rf"\1{MASK}"),
    (rf"\b(bearer|basic|digest)\s+{_VALUE}", rf"\1 {MASK}"),
    # "password": "with, delimiters"
    (r"((?:secret|passw(?:or)?d|passphrase|pwd)\"\s*:\s*\")(?:[^\"\\]|\\.)*", rf"\1{MASK}"),
    # "api_key": "...", token=..., key: ...
    (rf"(\b[\w-]{{0,40}}{_NAME}[\w-]{{0,40}}\\?[\"']?\s*[:=]\s*\\?[\"']?){_VALUE}", rf"\1{MASK}"),
    # e-mail addresses, and user:password@host
    (r"[^\s@\"'<>;,/()\[\]{}=]{1,128}@[^\s@\"'<>;,()\[\]{}]+", MASK),
    # sk-..., pk_live_..., ghp_..., also where the service masked a part itself
    (r"\b(?:sk|pk|rk|pplx|gh[a-z]|xox[a-z]|org|proj|whsec)[-_][\w*.-]{6,}", MASK),
    (r"\b(?:\d{1,3}\.){3}\d{1,3}\b", MASK),
    (r"(?<![\w:.])(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{0,4}(?![\w:])", MASK),  # IPv6, MAC
    (r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b", MASK),
    (r"[0-9a-f]{16,}", MASK),
)
_COMPILED = [(re.compile(pattern, re.IGNORECASE), by) for pattern, by in _MASKS]
# base64, JWT and other long tokens: 20 characters or more with a digit, or 32 without
_TOKEN = re.compile(r"(?=[a-z_+/=.-]{0,60}\d)[\w+/=.-]{20,}|[a-z0-9+=_]{32,}", re.IGNORECASE)
# What is as long and says where: a path, a host or port with a path, a dotted or snake_case name
_PLACE = re.compile(
    r"/.*|\d{1,5}/.*|[a-z0-9-]+(\.[a-z0-9-]+)+(/.*)?|[a-zA-Z_]\w*(\.[a-zA-Z_]\w*)+|[a-z]+(_[a-z]+)+"
)
_SECRET_SEGMENT = re.compile(r"(?=[a-zA-Z]*\d)[a-zA-Z0-9]{16,}|[a-zA-Z0-9+=]{32,}")


def excerpt(answer: Answer) -> str:
    """Return what the service said: at most 300 characters, with its secrets masked.

    Example:
        >>> excerpt(Answer(401, body={"error": "Invalid key sk-1234567890abcdef"}))
        '{"error": "Invalid key ***"}'
    """
    text = _without_half_a_secret(answer.text)
    if re.search(r"<html|<!doctype html", text[:500], re.IGNORECASE):
        text = re.sub(r"(?is)<(script|style)\b.*?(</\1\s*>|$)|<[^>]*>", " ", text)
    return mask(" ".join(text.split()))[:MAX_EXCERPT]


def mask(text: str) -> str:
    """Replace keys, tokens, and e-mail and IP addresses.

    Example:
        >>> mask("no credits left for ann@acme.example")
        'no credits left for ***'
    """
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return _TOKEN.sub(_masked, text)


def fit_to_keep(verdict: Verdict) -> Verdict:
    """Return a verdict of a client or of anybody's judge as it can be kept and shown.

    Its texts are short, on one line, without secrets and without what a database can't store.

    Raises:
        ValueError: If it is no verdict.

    Example:
        >>> fit_to_keep(Verdict(VerdictKind.DENIED, reason="no seat\\nfor ann@acme.example")).reason
        'no seat for ***'
    """
    if not isinstance(verdict, Verdict):
        raise ValueError(f"a judge returned {verdict!r:.80}: it must be a Verdict")
    kind, scope = VerdictKind(verdict.kind), Scope(verdict.scope)
    reason = _line(str(verdict.reason or ""), MAX_REASON)
    answer = None if verdict.answer is None else _line(str(verdict.answer), MAX_EXCERPT)
    return replace(verdict, kind=kind, scope=scope, reason=reason, answer=answer)


def _line(text: str, longest: int) -> str:
    short = " ".join(_without_half_a_secret(text).split())
    return shown(mask(short)[:longest])[:longest]


def error_excerpt(error: BaseException) -> str:
    """Return an error: at most 2000 characters, with its secrets masked.

    Example:
        >>> error_excerpt(ValueError("503 for https://crm.example/v1/people?api_key=s3cr3t"))
        "ValueError('503 for https://crm.example/v1/people?api_key=***')"
    """
    name = type(error).__name__
    try:
        text = repr(error)
    except Exception:  # noqa: BLE001 -- the author's own __repr__ may do anything
        return name
    if not isinstance(text, str):
        return name
    text = _without_half_a_secret(text)
    rest = text.removeprefix(name)
    return (name if rest != text else "") + mask(rest)


def said_with(error: BaseException) -> str:
    """Return an error as `error_excerpt` does, after what the service said, where that is known.

    Example:
        >>> said_with(ValueError("no such lead"))
        "ValueError('no such lead')"
    """
    text = error_excerpt(error)
    if not isinstance(error, Exception):
        return text
    answer = Answer.of(error, datetime.now(UTC))
    # Errors that no service sent may have a code too.
    is_sent = answer.status is not None or isinstance(answer.exception, AnswerError)
    said = excerpt(answer) if is_sent and answer.body is not None else ""
    is_new = _letters(said) not in _letters(text)
    return f"{said} ({text})" if is_new else text


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text)


def _without_half_a_secret(text: str) -> str:
    return text if len(text) <= _MAX_READ else re.sub(rf"{_VALUE}$", "", text[:_MAX_READ])


def _masked(match: re.Match[str]) -> str:
    token = match.group()
    if not _PLACE.fullmatch(token):
        return MASK
    parts = re.split(r"([/.])", token)
    return "".join(MASK if _SECRET_SEGMENT.search(part) else part for part in parts)
