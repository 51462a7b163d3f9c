"""What a service said, short enough to keep, without secrets."""

import re

from dagster_tidegate.breaker.answers import Answer

MAX_EXCERPT = 300
_MAX_READ = 4000
MASK = "***"
_SECRET_NAME = (
    r"(?:api[\s_-]?key|apikey|access[\s_-]?key|key|token|secret|passw(?:or)?d|authorization|"
    r"signature|credential|session|cookie|api)"
)
_MASKS = (
    # "Authorization: Bearer ..." and the like
    (re.compile(r"(?i)\b(bearer|basic|digest|token)\s+[^\s\"',;<>]+"), rf"\1 {MASK}"),
    # "api_key": "...", token=..., key: ...
    (
        re.compile(
            rf"(?i)([\w-]*{_SECRET_NAME}[\w-]*[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&<>{{}}\[\]]+"
        ),
        rf"\1{MASK}",
    ),
    # user:password@host, and e-mail addresses
    (re.compile(r"(?i)[^\s@\"'<>:;,/()\[\]{}=]+(?::[^\s@/]*)?@[^\s@\"'<>;,()\[\]{}]+"), MASK),
    # sk-..., pk_live_..., ghp_..., also where the service masked a part itself
    (
        re.compile(r"(?i)\b(?:sk|pk|rk|pplx|ghp|gho|xox[a-z]|key|org|proj|whsec)[-_][\w*.-]{6,}"),
        MASK,
    ),
    (re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b"), MASK),
    (re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"), MASK),
    (re.compile(r"[0-9a-fA-F]{16,}"), MASK),
    # base64, JWT and other long tokens: 20 characters or more with a digit, or 32 without
    (re.compile(r"(?=[A-Za-z_+/=.-]*\d)[\w+/=.-]{20,}|[A-Za-z0-9+/=_-]{32,}"), MASK),
)


def excerpt(answer: Answer) -> str:
    """Return what the service said: at most 300 characters, with its secrets masked.

    Example:
        >>> excerpt(Answer(401, body={"error": "Invalid key sk-1234567890abcdef"}))
        '{"error": "Invalid key ***"}'
    """
    text = answer.text
    if len(text) > _MAX_READ:
        text = re.sub(r"\S*$", "", text[:_MAX_READ])  # not half of a secret
    if re.search(r"<html|<!doctype html", text[:500], re.IGNORECASE):
        text = re.sub(r"(?is)<(script|style)\b.*?(</\1\s*>|$)|<[^>]*>", " ", text)
    return mask(" ".join(text.split()))[:MAX_EXCERPT]


def mask(text: str) -> str:
    """Replace keys, tokens, and e-mail and IP addresses.

    Example:
        >>> mask("no credits left for ann@acme.example")
        'no credits left for ***'
    """
    for pattern, replacement in _MASKS:
        text = pattern.sub(replacement, text)
    return text
