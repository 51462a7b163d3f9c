"""What an answer says: its machine codes, and its words."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from dagster_tidegate.breaker.answers import MAX_ITEMS, Answer, html_headings
from dagster_tidegate.breaker.profiles import USED_UP, Profile, code_of, find
from dagster_tidegate.breaker.verdicts import VerdictKind

_ABOUT_RECORDS = frozenset({400, 409, 422})
_CODE_KEYS = [
    "code",
    "error_code",
    "errcode",
    "errorcode",
    "err_code",
    "error_key",
    "reason",
    "error_name",
    "name",
    "status",
    "error_status",
    "status_info",
    "type",
    "error_type",
    "category",
    "error_category",
    "policy_name",
    "error",
    "id",
]
PROSE_KEYS = [
    "message",
    "error",
    "msg",
    "err_msg",
    "errmsg",
    "error_msg",
    "errormessage",
    "status_msg",
    "status_message",
    "status_text",
    "detail",
    "error_message",
    "error_description",
    "description",
    "title",
    "info",
    "information",
    "faultstring",
    "reason",
    "note",
    "errors",
]
_CONTAINERS = frozenset(
    [
        "error",
        "errors",
        "detail",
        "details",
        "fault",
        "extensions",
        "innererror",
        "inner_error",
        "meta",
        "response",
        "exception",
        "response_status",
        "base_resp",
        "status",
        "header",
        "head",
    ]
)


def known_code(answer: Answer, profile: Profile) -> tuple[str, str] | None:
    """Return the first machine code of an answer that a profile knows, with its meaning."""
    codes = list(codes_of(answer))
    for meaning in (profile.of_code, profile.of_pattern):
        for code in codes:
            kind = meaning(code)
            if kind is not None:
                return code, kind
    return None


def says_why(answer: Answer, profile: Profile) -> bool:
    """Return whether an answer has a code or words that are known."""
    return (
        known_code(answer, profile) is not None
        or phrase_in(prose_of(answer), profile, 200) is not None
    )


def phrase_in(prose: str, profile: Profile, status: int) -> tuple[str, str] | None:
    """Return the words of a message that are in the first phrase of a profile, with its meaning."""
    for phrase, kind in profile.phrases.items():
        if kind == USED_UP and status in _ABOUT_RECORDS:
            continue
        if kind == VerdictKind.FAILURE and not 200 <= status < 300:
            continue
        words = find(phrase, prose)
        if words is not None:
            return words, kind
    return None


def codes_of(answer: Answer) -> Iterator[str]:
    """Yield the machine codes of an answer, the most specific first."""
    body = answer.outline
    if body is not None:
        yield from _codes_in(body)
    elif "<" in answer.text[:200]:
        yield from re.findall(r"<(?:Code|code|errorCode)>([\w.:-]+)</", answer.text[:4000])
    for name in ("x-amzn-errortype", "x-ms-error-code", "x-error-code", "grpc-message"):
        if name in answer.headers:
            yield answer.headers[name].partition(":")[0]


def _codes_in(node: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _codes_in(item, depth + 1)
    if not isinstance(node, dict) or depth > 5:
        return
    fields = {code_of(str(key)): value for key, value in node.items()}
    for name, value in fields.items():
        if name in _CONTAINERS and isinstance(value, dict | list):
            yield from _codes_in(value, depth + 1)
    for key in _CODE_KEYS:
        value = fields.get(key)
        if isinstance(value, str | int) and not isinstance(value, bool):
            text = str(value)
            if text and len(text) <= 80:
                yield text


def prose_of(answer: Answer) -> str:
    """Return what an answer says in words, in lower case."""
    body = answer.outline
    words: list[str] = []
    if body is None:
        text = answer.text[:4000]
        words.append(html_headings(text) if "<html" in text[:500].lower() else text)
        if "<html" in text[:500].lower():
            words.append(re.sub(r"<[^>]+>", " ", text))
    else:
        words_in(body, words)
    return plain(words)


def plain(words: list[str]) -> str:
    """Return words in the form in which phrases are compared."""
    return " ".join(" ".join(words).lower().split())[:4000]


def words_in(node: Any, words: list[str], depth: int = 0) -> None:
    """Append the messages of a parsed body to `words`."""
    if isinstance(node, str):
        words.append(node[:4000].replace("_", " "))
    elif isinstance(node, list):
        for item in node:
            words_in(item, words, depth + 1)
    elif isinstance(node, dict) and depth <= 5:
        for key, value in node.items():
            name = code_of(str(key))
            if isinstance(value, dict | list):
                if name in _CONTAINERS:
                    words_in(value, words, depth + 1)
                    if name == "errors" and isinstance(value, dict):  # by the name of a field
                        for texts in islice(value.values(), MAX_ITEMS):
                            if isinstance(texts, str | list):
                                words_in(texts, words, depth + 1)
            elif isinstance(value, str) and name in PROSE_KEYS:
                words.append(value[:4000].replace("_", " "))
